"""Makes the image that `make bench` measures on: a 6 GiB ext4 filled with about 2 GB of this machine's /usr."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SIZE = 6 << 30
CONTENT = 2_000_000_000


def gather(root: str, into: Path, limit: int) -> int:
    """Copy regular files below ``root`` in sorted order until ``limit`` bytes are there; the number of bytes."""
    total = 0
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file() or total + path.stat().st_size > limit:
                continue
            copy = into / path.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
            total += copy.stat().st_size
    return total


def make(image: Path, root: str = "/usr", size: int = SIZE, content: int = CONTENT) -> None:
    """Make the image, under its name only when it is complete; its size and that of its files in bytes."""
    with tempfile.TemporaryDirectory(dir=image.parent) as folder:
        total = gather(root, Path(folder), content)
        partial = image.with_suffix(".partial")
        with partial.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", folder, str(partial)], check=True)
        partial.rename(image)
    print(f"{image}: {size >> 30} GiB, {total / 1e9:.2f} GB of files")


def make_pieces(image: Path) -> None:
    """100,000 pieces of 4 KiB that differ, each 16 KiB from the one before, and holes between them."""
    noise = os.urandom(4096)
    with image.open("wb") as file:
        file.truncate(100_000 * 16384)
        for number in range(100_000):
            os.pwrite(file.fileno(), number.to_bytes(8, "big") + noise[8:], number * 16384)


def make_empty(image: Path) -> None:
    """A disk of 2 TiB with 20 pieces of 1 MiB."""
    with image.open("wb") as file:
        file.truncate(2 << 40)
        for number in range(20):
            os.pwrite(file.fileno(), os.urandom(1 << 20), number * (100 << 30) + 12_345_678)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
