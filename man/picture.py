"""Draws the README's picture: what a terminal shows of a real backup, half done, and of its archive. `make picture`."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import random
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 92
MIB = 1 << 20
SIZE = 20480 * MIB
COMMANDS = ("pybackup run disk.img disk.vma.zst", "pybackup info --map disk.vma.zst")
CHARACTER = 12.2
"""Units of the picture that rich gives to a character."""
FONTS = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def make_disk(folder: Path) -> None:
    """A disk of text, noise and holes, as one in use has them."""
    dice = random.Random(3)
    line = b"".join(b"%08d the quick brown fox jumps over the lazy dog\n" % number for number in range(20000))
    with (folder / "disk.img").open("wb") as file:
        file.truncate(SIZE)
        for _ in range(60):
            file.seek(int(dice.triangular(0, SIZE // MIB - 128, SIZE // MIB // 3)) * MIB)
            file.write((dice.randbytes(MIB // 4) + line) * int(dice.paretovariate(0.8) % 24 + 1) * 4)


def on_a_terminal(arguments: list[str], folder: Path) -> str:
    """What a command writes to a terminal of WIDTH columns; of lines that are drawn again and again, half-way."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    # Click would take the width from these.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    program = [sys.executable, "-m", "pybackup.cli", *arguments]
    with subprocess.Popen(program, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        parts = []
        while True:
            try:
                parts.append(os.read(ours, 65536))
            except OSError:  # the other side has been closed
                break
    os.close(ours)
    if process.returncode:
        raise SystemExit(b"".join(parts).decode())
    states = b"".join(parts).decode().replace("\r\n", "\n").split("\x1b[J")
    shown = min(states, key=_from_half_way)
    return re.sub(r"\x1b\[\?25[hl]", "", shown)


def _from_half_way(state: str) -> float:
    """How far a state is from 50 %."""
    percent = re.search(r"([\d.]+) %", state)
    return abs(50 - float(percent[1])) if percent else 100


def _moved(found: re.Match[str]) -> str:
    """A text of the picture without its leading spaces, so much farther to the right."""
    x, y, length, rest, spaces = found.groups()
    by = spaces.count(";") * CHARACTER
    return f'x="{float(x) + by:g}" {y} textLength="{float(length) - by:g}"{rest}>'


def main() -> None:
    """Write picture.svg beside this file."""
    console = Console(record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        make_disk(Path(folder))
        for command in COMMANDS:
            console.print(Text(f"$ {command}", style="bold"))
            shown = on_a_terminal(command.split()[1:], Path(folder))
            console.print(Text.from_ansi(shown.strip("\r\n")), end="\n\n" if command != COMMANDS[-1] else "\n")
    svg = console.export_svg(title="pybackup", unique_id="pybackup")
    # Some programs drop spaces at the beginning of a text, so none begins with one.
    svg = re.sub(r'x="([\d.]+)" (y="[\d.]+") textLength="([\d.]+)"([^>]*)>((?:&#160;)+)(?!<)', _moved, svg)
    # A picture that needs no other server: no fonts from afar.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: Fira Code, monospace", f"font-family: {FONTS}", svg)
    Path(__file__).with_name("picture.svg").write_text(svg)


if __name__ == "__main__":
    main()
