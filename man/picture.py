"""Draws the README's picture, a real backup as a terminal shows it: `make picture`."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybackup.cli.info import make_table
from pybackup.cli.progress_rich import Picture
from pybackup.cli.running import run_job
from pybackup.core.archive_create import ArchiveOptions, make_writer
from pybackup.core.archive_facts import archive_facts
from pybackup.core.backup import BackupJob, Drive
from pybackup.core.devices.raw import RawDevice
from pybackup.core.sinks.file import FileSink
from rich.console import Console

WIDTH = 110
DISKS = (("scsi0", 96, 6), ("scsi1", 160, 20))
"""Name, MiB of size, MiB of data."""


def make_disks(folder: Path) -> None:
    """Disks of text and holes."""
    line = b"".join(b"%08d the quick brown fox jumps over the lazy dog\n" % number for number in range(20000))
    for name, size, data in DISKS:
        with (folder / f"{name}.img").open("wb") as file:
            file.truncate(size << 20)
            for at in range(data):
                file.seek(at * (size // data) << 20)
                file.write(os.urandom(300_000) + line[:700_000])


async def draw(console: Console, folder: Path) -> None:
    """Back the disks up, with the picture on the console."""
    devices = [RawDevice.open(folder / f"{name}.img") for name, _, _ in DISKS]
    archive = str(folder / "vm1.vma.zst")
    with ThreadPoolExecutor(2) as pool:
        options = ArchiveOptions(uuid=uuid.uuid4().bytes, created=int(time.time()), threads=2)
        sizes = [(name, device.size) for (name, _, _), device in zip(DISKS, devices, strict=True)]
        writer = make_writer(sizes, [], options, FileSink(archive), pool)
        drives = [
            Drive(number, name, device)
            for number, ((name, _), device) in enumerate(zip(sizes, devices, strict=True), 1)
        ]
        picture = Picture(Console(file=io.StringIO(), width=WIDTH))
        await run_job(BackupJob(drives, writer, pool), "backup", picture)
        console.print(picture.lines)
    for device in devices:
        await device.close()
    console.print("[bold]$ pybackup info vm1.vma.zst[/bold]")
    console.print(make_table(archive_facts(archive)))


def main() -> None:
    """Write picture.svg beside this file."""
    console = Console(record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        make_disks(Path(folder))
        console.print("[bold]$ pybackup run scsi0.img scsi1.img vm1.vma.zst[/bold]")
        asyncio.run(draw(console, Path(folder)))
        console.save_svg(str(Path(__file__).with_name("picture.svg")), title="pybackup")


if __name__ == "__main__":
    main()
