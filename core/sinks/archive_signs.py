"""Whether a file is an archive, as far as its first and last bytes tell: asked before one is replaced.

A sound archive is recognized, and one of ours that is damaged at one of its ends too. What is no archive - a disk, a
dump in a zstd file - is not taken for one.
"""

from __future__ import annotations

import contextlib
import os
import zlib

import zstandard

from pybackup.formats import vma, vma_layout
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.age_header import looks_encrypted, parse_header
from pybackup.formats.errors import FormatError
from pybackup.formats.public_facts import KIND

from .archive_evidence import is_archive_name

HEAD_BYTES = 128 << 10
"""Bytes from the start that is_archive() looks at: at least the first block of a zstd frame."""
_GZIP = b"\x1f\x8b\x08"
_LARGEST_WINDOW = 128 << 20
"""Bytes; `zstd` itself asks for permission above that."""


def is_archive(fd: int, name: str = "") -> bool:
    """Whether the open file is an archive: VMA, plain or in zstd or gzip, or what may be one, encrypted (OSError).

    ``name``: the file's.
    """
    size = os.fstat(fd).st_size
    return begins_archive(os.pread(fd, HEAD_BYTES, 0), name) or _ends_archive(fd, size)


def begins_archive(head: bytes, name: str = "") -> bool:
    """Whether these first bytes of a file, up to HEAD_BYTES, are an archive's, or those of an encrypted one.

    That what is encrypted is an archive, its header tells, or the name alone.
    """
    if looks_encrypted(head):
        return is_archive_name(name) or _tells_of_archive(head)
    start = vma_layout.HEADER_START.size
    try:
        vma.header_length(_unpacked(head, start))
    except FormatError:
        return False
    return True


def _tells_of_archive(head: bytes) -> bool:
    with contextlib.suppress(FormatError):
        header = parse_header(head, is_all=False)
        return header is not None and any(stanza.kind == KIND for stanza in header.stanzas)
    return False


def _unpacked(head: bytes, most: int) -> bytes:
    """The first bytes of what is compressed, at most ``most``; nothing where it cannot be decompressed."""
    if head.startswith(_GZIP):
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(wbits=31).decompress(head, most)
        return b""
    if head.startswith(zs.FRAME_MAGIC) or zs.is_skippable(head):
        with contextlib.suppress(zstandard.ZstdError):
            decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
            return decompressor.stream_reader(head, read_across_frames=True).read(most)
        return b""
    return head[:most]


def _ends_archive(fd: int, size: int) -> bool:
    """Whether the file ends in a seek table whose last frame is our index."""
    tail_size = zs.SEEK_ROW.size + zs.SEEK_FOOTER.size
    tail = os.pread(fd, tail_size, max(0, size - tail_size))
    if len(tail) < tail_size:
        return False
    with contextlib.suppress(FormatError):
        table_size = zs.SeekTable.size_from_footer(tail[zs.SEEK_ROW.size :], size)
        compressed, decompressed, _ = zs.SEEK_ROW.unpack_from(tail)
        if table_size is None or decompressed or table_size + compressed > size:
            return False
        frame = os.pread(fd, zs.SKIPPABLE_HEADER.size, size - table_size - compressed)
        if len(frame) == zs.SKIPPABLE_HEADER.size:
            return bool(zs.SKIPPABLE_HEADER.unpack(frame)[0] == zs.INDEX_MAGIC)
    return False
