from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest

from pybackup.formats import vma
from pybackup.formats import vma_layout as layout
from pybackup.formats.errors import FormatError, NotAnArchiveError
from pybackup.formats.vma import DriveInfo, Header

SIMPLE = Header(uuid=bytes(range(16)), created=1_700_000_000, drives=(DriveInfo(1, "scsi0", 1 << 20),))
TIB = 1 << 40
MAX = 256 * TIB


def signed(header: bytearray) -> bytes:
    """The header with its MD5 right again after a change."""
    header[layout.HEADER_MD5] = bytes(16)
    header[layout.HEADER_MD5] = hashlib.md5(header).digest()
    return bytes(header)


def changed(at: int, content: bytes, header: Header = SIMPLE) -> bytes:
    out = bytearray(vma.encode_header(header))
    out[at : at + len(content)] = content
    return signed(out)


@pytest.mark.parametrize(
    "header",
    [
        SIMPLE,
        replace(SIMPLE, created=0, extent_digests=False),
        replace(SIMPLE, created=0, extent_digests=False, is_ours=False),
        replace(SIMPLE, created=(1 << 63) - 1),
        replace(SIMPLE, configs=(("qemu-server.conf", b"cores: 1\n"), ("empty", b""), ("large", b"x" * 65535))),
        replace(SIMPLE, is_delta=True, parent_uuid=b"p" * 16, parent_index_digest=b"d" * 16),
        replace(SIMPLE, drives=(DriveInfo(1, "vmstate", 5), DriveInfo(7, "Größe", 513), DriveInfo(254, "c d", MAX))),
        replace(SIMPLE, drives=(DriveInfo(1, "\udcff\udc80", 1),)),
        replace(SIMPLE, drives=tuple(DriveInfo(number, f"d{number}", number) for number in range(1, 255))),
        replace(SIMPLE, configs=tuple((f"c{number}", bytes(number)) for number in range(256))),
    ],
)
def test_what_was_encoded_is_decoded(header: Header) -> None:
    content = vma.encode_header(header)
    assert vma.header_length(content[:60]) == len(content)
    assert len(content) % 512 == 0
    assert vma.decode_header(content, allow_delta=True) == header


@pytest.mark.parametrize("size", [1, 511, 512, 513, 4097, 65537])
def test_the_recorded_size_is_whole_sectors_and_the_exact_one_survives(size: int) -> None:
    content = vma.encode_header(replace(SIMPLE, drives=(DriveInfo(1, "d", size),)))
    recorded = struct.unpack_from(">Q", content, 4096 + 32 + 8)[0]
    assert recorded % 512 == 0
    assert size <= recorded < size + 512
    assert vma.decode_header(content).drives[0].size == size


BAD_NAMES = [
    "",
    ".",
    "..",
    "a/b",
    "/etc/passwd",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "a\x7f",
    "a\x9b",
    "x" * 256,
    "ü" * 128,
    "\ud800",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_not_written(name: str) -> None:
    with pytest.raises(FormatError, match="name of a drive"):
        vma.encode_header(replace(SIMPLE, drives=(DriveInfo(1, name, 1),)))
    with pytest.raises(FormatError, match="name of a configuration"):
        vma.encode_header(replace(SIMPLE, configs=((name, b""),)))


@pytest.mark.parametrize("name", [b"../ab", b"a\0b/c", b"a\x1b[m", b"\xc2\x9babc"])
def test_bad_names_are_not_read(name: bytes) -> None:
    good = replace(SIMPLE, drives=(DriveInfo(1, "NAME5", 1 << 20),), configs=(("CONF5", b"x"),))
    for old in (b"NAME5\0", b"CONF5\0"):
        at = vma.encode_header(good).index(old)
        with pytest.raises(FormatError, match="cannot be the name"):
            vma.decode_header(changed(at, name[:5].ljust(5, b"."), good))


def test_a_name_must_end_in_nul() -> None:
    at = vma.encode_header(SIMPLE).index(b"scsi0\0")
    with pytest.raises(FormatError, match="does not end in NUL"):
        vma.decode_header(changed(at + 5, b"x"))


def test_duplicate_names_are_neither_written_nor_read() -> None:
    two = replace(SIMPLE, drives=(DriveInfo(1, "aa", 1), DriveInfo(2, "ab", 1)))
    with pytest.raises(FormatError, match="two drives are called 'aa'"):
        vma.encode_header(replace(two, drives=(DriveInfo(1, "aa", 1), DriveInfo(2, "aa", 1))))
    with pytest.raises(FormatError, match="two drives are called 'aa'"):
        vma.decode_header(changed(vma.encode_header(two).index(b"ab\0"), b"aa", two))
    with pytest.raises(FormatError, match="two configurations"):
        vma.encode_header(replace(SIMPLE, configs=(("a", b""), ("a", b""))))


@pytest.mark.parametrize(
    "header, message",
    [
        (replace(SIMPLE, drives=()), "at least one drive"),
        (replace(SIMPLE, drives=tuple(DriveInfo(n, f"d{n}", 1) for n in range(1, 256))), "at most 254 drives"),
        (replace(SIMPLE, drives=(DriveInfo(1, "d", 0),)), "0 bytes"),
        (replace(SIMPLE, drives=(DriveInfo(1, "d", 256 * TIB + 1),)), "256 TiB"),
        (replace(SIMPLE, configs=(("c", b"x" * 65536),)), "65535"),
        (replace(SIMPLE, configs=tuple((f"c{n}", b"") for n in range(257))), "at most 256"),
        (replace(SIMPLE, configs=tuple((f"c{n}", b"x" * 65535) for n in range(8))), "512 KiB"),
        (replace(SIMPLE, created=1 << 64), "seconds since 1970"),
        (replace(SIMPLE, created=-1), "seconds since 1970"),
    ],
)
def test_what_vma_cannot_hold_is_refused(header: Header, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        vma.encode_header(header)


@pytest.mark.parametrize("size", [0, 1, 12287, 12288, 64 * 1024 * 1024 + 1, 0xFFFFFFFF])
def test_a_nonsense_header_size_is_refused_from_its_first_bytes(size: int) -> None:
    start = bytearray(vma.encode_header(SIMPLE)[:60])
    start[56:60] = struct.pack(">I", size)
    with pytest.raises(FormatError, match="claims a size"):
        vma.header_length(start)


@pytest.mark.parametrize(
    "at, content, message",
    [
        (0, b"VMB\0", "not a VMA"),
        (4, struct.pack(">I", 2), "version 2"),
        (48, struct.pack(">I", 12287), "blob buffer"),
        (52, struct.pack(">I", 0xFFFFFFFF), "blob buffer"),
        (56, struct.pack(">I", 1 << 20), "cut short"),
        (64, struct.pack(">I", 4), "features"),
        (4096 + 32, struct.pack(">I", 0xFFFFFFFF), "points outside"),
        (4096 + 32, struct.pack(">I", 0), "names no drives"),
        (4096 + 32 + 8, struct.pack(">Q", 256 * TIB + 512), "more than VMA can hold"),
        (4096 + 32 + 16, struct.pack(">Q", (1 << 20) - 512), "disagree"),
        (4096 + 32 + 16, struct.pack(">Q", (1 << 20) + 1), "disagree"),
        (12289, b"\xff\xff", "points outside"),
    ],
)
def test_nonsense_is_refused_though_its_md5_is_right(at: int, content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        vma.decode_header(changed(at, content))


def test_a_wrong_md5_is_damage() -> None:
    content = bytearray(vma.encode_header(SIMPLE))
    content[3000] ^= 1
    with pytest.raises(FormatError, match="MD5"):
        vma.decode_header(bytes(content))


def test_every_truncation_is_refused() -> None:
    content = vma.encode_header(SIMPLE)
    for size in (0, 3, 4, 59):
        with pytest.raises(NotAnArchiveError):
            vma.header_length(content[:size])
    for size in (60, 12288, len(content) - 1):
        with pytest.raises(FormatError, match="cut short"):
            vma.decode_header(content[:size])


def test_entries_0_and_255_are_no_drives() -> None:
    for entry in (0, 255):
        name = vma.encode_header(SIMPLE)[4096 + 32 : 4096 + 64]
        assert vma.decode_header(changed(4096 + 32 * entry, name)).drives == SIMPLE.drives


def test_without_our_mark_the_exact_size_means_nothing() -> None:
    header = replace(SIMPLE, extent_digests=False, is_ours=False)
    content = changed(4096 + 32 + 16, struct.pack(">Q", (1 << 20) - 1), header)
    assert vma.decode_header(content).drives[0].size == 1 << 20
