"""An archive is never taken for a raw disk: its beginning, its end or its name tells it, though a byte is damaged."""

from __future__ import annotations

import asyncio
import gzip
import random
from pathlib import Path

import foreign_vma
import pytest
import zstandard
from archives import encode

from pybackup.core.errors import Advice, ArchiveError, PybackupError, RequestError, SourceError
from pybackup.core.images.formats import source_format
from pybackup.core.live.served_disks import open_served
from pybackup.core.places.kinds import LocalPath

DISK = random.Random(2).randbytes(200_192)
OURS = encode({"a": DISK})
PLAIN = encode({"a": DISK}, level=None)
FOREIGN = foreign_vma.write({"drive-scsi0": DISK})


def flipped(content: bytes, at: int) -> bytes:
    out = bytearray(content)
    out[at] ^= 0x40
    return bytes(out)


CASES = {
    "ours": ("o.bak", OURS),
    "its first byte damaged": ("o.bak", flipped(OURS, 0)),
    "its beginning overwritten": ("o.bak", bytes(4096) + OURS[4096:]),
    "its last byte damaged": ("o.bak", flipped(OURS, len(OURS) - 1)),
    "cut off": ("o.bak", OURS[:50_000]),
    "cut off, and its first byte damaged": ("o.bak", flipped(OURS[:50_000], 0)),
    "plain": ("o.bak", PLAIN),
    "plain, its first byte damaged": ("o.bak", flipped(PLAIN, 0)),
    "by its name alone": ("o.vma.zst", bytes(8192)),
    "a plain one by its name": ("O.VMA", bytes(8192)),
    "of Proxmox, zstd": ("o.bak", zstandard.compress(FOREIGN)),
    "of Proxmox, gzip": ("o.bak", gzip.compress(FOREIGN)),
    "of Proxmox, lzo": ("vzdump.vma.lzo", b"\x89LZO\0\r\n\x1a\n" + bytes(5000)),
    "xz": ("o.bak", b"\xfd7zXZ\0" + bytes(5000)),
    "an index frame first": ("o.bak", b"\x5b\x2a\x4d\x18\0\0\0\0" + OURS),
}


class Source:
    """A source without a name of its own."""

    name = None

    def __init__(self, what: Path) -> None:
        self.what = LocalPath(str(what))


def served(*paths: Path, image_format: str | None = None) -> None:
    """Open disks to be served, and close them."""

    async def open_and_close() -> None:
        disks = await open_served(
            [Source(path) for path in paths], image_format=image_format, read_only=False, force_share=False
        )
        for disk in disks.values():
            await disk.close()

    asyncio.run(open_and_close())


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_as_a_disk_unless_that_is_told(case: str, tmp_path: Path) -> None:
    name, content = CASES[case]
    path, other = tmp_path / name, tmp_path / "disk.img"
    path.write_bytes(content)
    other.write_bytes(DISK)
    with pytest.raises(SourceError) as refused:
        source_format(str(path), None)
    assert refused.value.advice is Advice.RESTORE_FIRST
    assert source_format(str(path), "raw") == "raw"
    with pytest.raises(RequestError, match="served alone"):
        served(path, other)
    served(path, image_format="raw")
    if case not in ("ours", "plain"):  # a plain one is scanned
        with pytest.raises(PybackupError) as failure:
            served(path)
        assert isinstance(failure.value, ArchiveError)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [bytes(8192), b"\xeb\x63\x90" + bytes(8000), DISK, b""])
def test_a_disk_is_a_disk(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "disk.vma.img"
    path.write_bytes(content)
    assert source_format(str(path), None) == "raw"
