"""Draws the README's picture: what a terminal shows of a real backup and of its archive. `make picture`."""

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

WIDTH = 100
MIB = 1 << 20
COMMANDS = (
    "pybackup run scsi0=root.img scsi1=data.img -c qemu-server.conf vm.vma.zst",
    "pybackup verify vm.vma.zst",
    "pybackup info --map vm.vma.zst",
)
CHARACTER = 12.2
"""Units of the picture that rich gives to a character."""
FONTS = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def make_disks(folder: Path) -> None:
    """Two disks of text, noise and holes, as files in use have them, and a configuration."""
    dice = random.Random(3)
    line = b"".join(b"%08d the quick brown fox jumps over the lazy dog\n" % number for number in range(20000))
    for name, size, pieces in (("root.img", 4096, 60), ("data.img", 1024, 12)):
        with (folder / name).open("wb") as file:
            file.truncate(size * MIB)
            for _ in range(pieces):
                file.seek(int(dice.triangular(0, size - 32, size // 5)) * MIB)
                file.write((dice.randbytes(MIB // 4) + line) * int(dice.paretovariate(0.8) % 24 + 1))
    (folder / "qemu-server.conf").write_text("cores: 2\nmemory: 2048\n")


def on_a_terminal(arguments: list[str], folder: Path) -> str:
    """What a command writes to a terminal of WIDTH columns, or of its redrawn lines the last state."""
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
    shown = b"".join(parts).decode().replace("\r\n", "\n").rpartition("\x1b[J")[2]
    return re.sub(r"\x1b\[\?25[hl]", "", shown)


def _moved(found: re.Match[str]) -> str:
    """A text of the picture without its leading spaces, so much farther to the right."""
    x, y, length, rest, spaces = found.groups()
    by = spaces.count(";") * CHARACTER
    return f'x="{float(x) + by:g}" {y} textLength="{float(length) - by:g}"{rest}>'


def main() -> None:
    """Write picture.svg beside this file."""
    console = Console(record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        make_disks(Path(folder))
        for command in COMMANDS:
            console.print(Text(f"$ {command}", style="bold"))
            shown = on_a_terminal(command.split()[1:], Path(folder))
            console.print(Text.from_ansi(shown.strip("\n")), end="\n\n" if command != COMMANDS[-1] else "\n")
    svg = console.export_svg(title="pybackup", unique_id="pybackup")
    # Some programs drop spaces at the beginning of a text, so none begins with one.
    svg = re.sub(r'x="([\d.]+)" (y="[\d.]+") textLength="([\d.]+)"([^>]*)>((?:&#160;)+)(?!<)', _moved, svg)
    # A picture that needs no other server: no fonts from afar.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: Fira Code, monospace", f"font-family: {FONTS}", svg)
    Path(__file__).with_name("picture.svg").write_text(svg)


if __name__ == "__main__":
    main()
