from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pybackup.formats import zstd_seekable as zs
from pybackup.formats.errors import FormatError

LIMIT = 1 << 20


def frame(content: bytes, *, size: bool = True, checksum: bool = True) -> bytes:
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=checksum, write_content_size=size)
    return compressor.compress(content)


def streamed(content: bytes) -> bytes:
    """A frame of unknown size, as `zstd` makes of a pipe."""
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return compressor.compress(content) + compressor.flush()


def reader(content: bytes, sizes: list[int]) -> Callable[[int], bytes]:
    """Gives pieces of these sizes, over and over."""
    state = [0, 0]

    def read(at_most: int) -> bytes:
        at, number = state
        size = min(at_most, sizes[number % len(sizes)])
        state[:] = at + size, number + 1
        return content[at : at + size]

    return read


def split(feed: zs.ByteFeed) -> list[bytes]:
    """Every frame of a feed, the large ones put together from their blocks."""
    found = []
    while (one := zs.next_frame(feed, LIMIT)) is not None:
        found.append(bytes(one.content) if isinstance(one, zs.Frame) else b"".join(zs.blocks_of(feed, one.header)))
    return found


FRAMES = [
    frame(b""),
    frame(b"abc" * 1000),
    zs.skippable(zs.INDEX_MAGIC, b"index"),
    zs.skippable(0x184D2A50, b""),
    frame(bytes(500_000), checksum=False),
    streamed(b"unknown" * 50_000),
    frame(bytes(range(256)) * 8000),
    streamed(b""),
    zs.skippable(zs.SEEK_TABLE_MAGIC, bytes(2_000_000)),
]


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.integers(0, len(FRAMES) - 1), max_size=6),
    sizes=st.lists(st.sampled_from([1, 2, 3, 17, 4096, 1 << 20]), min_size=1, max_size=4),
    chunk=st.sampled_from([1, 100, 1 << 20]),
)
def test_frames_are_found_however_the_bytes_come(numbers: list[int], sizes: list[int], chunk: int) -> None:
    frames = [FRAMES[number] for number in numbers]
    sizes = [size for size in sizes if size > 100] or [1 << 20] if sum(map(len, frames)) > 100_000 else sizes
    feed = zs.ByteFeed(reader(b"".join(frames), sizes), chunk=chunk)
    assert split(feed) == frames


@pytest.mark.parametrize("number", range(len(FRAMES)))
def test_every_truncation_is_found(number: int) -> None:
    whole = FRAMES[number]
    for size in range(1, min(len(whole), 600)):
        with pytest.raises(FormatError):
            split(zs.ByteFeed(reader(whole[: len(whole) - size], [1 << 20])))


@given(content=st.binary(max_size=100))
def test_arbitrary_bytes_never_do_worse_than_a_format_error(content: bytes) -> None:
    for start in (b"", zs.FRAME_MAGIC, b"\x5b\x2a\x4d\x18"):
        try:
            split(zs.ByteFeed(reader(start + content, [7])))
        except FormatError:
            continue


@pytest.mark.parametrize("content_size", [0, 255, 256, 65791, 65792, (1 << 32) - 1, 1 << 32, (1 << 64) - 1])
def test_frame_headers_of_every_size_field(content_size: int) -> None:
    if content_size < 256:
        header = zs.FRAME_MAGIC + b"\x24" + content_size.to_bytes(1, "little")
    elif content_size < 65792:
        header = zs.FRAME_MAGIC + b"\x64" + (content_size - 256).to_bytes(2, "little")
    elif content_size < 1 << 32:
        header = zs.FRAME_MAGIC + b"\xa4" + content_size.to_bytes(4, "little")
    else:
        header = zs.FRAME_MAGIC + b"\xe4" + content_size.to_bytes(8, "little")
    parsed = zs.parse_frame_header(header)
    assert parsed[:4] == (len(header), content_size, True, 0)
    if content_size < 1 << 63:
        assert zstandard.get_frame_parameters(header).content_size == content_size


def test_a_frame_that_claims_more_than_its_blocks_hold_is_refused_before_it_is_believed() -> None:
    liar = zs.FRAME_MAGIC + b"\xa0" + struct.pack("<I", LIMIT) + b"\x01\x00\x00"
    with pytest.raises(FormatError, match="more than its blocks"):
        split(zs.ByteFeed(reader(liar, [1000])))


def test_a_frame_of_endless_empty_blocks_is_refused() -> None:
    liar = zs.FRAME_MAGIC + b"\xa0" + struct.pack("<I", 65536) + bytes(3 * (LIMIT + zs.BLOCK_MAX))
    with pytest.raises(FormatError, match="larger than what it holds"):
        split(zs.ByteFeed(reader(liar, [1 << 20])))


@pytest.mark.parametrize("magic", [0x184D2A50, zs.INDEX_MAGIC])
def test_a_skippable_frame_of_4_gib_is_refused(magic: int) -> None:
    with pytest.raises(FormatError, match="claims"):
        split(zs.ByteFeed(reader(struct.pack("<II", magic, 0xFFFFFFFF) + bytes(100), [1000])))


def test_a_damaged_block_header_is_refused() -> None:
    for word in (0b111, (zs.BLOCK_MAX + 1) << 3):
        with pytest.raises(FormatError, match="block header"):
            zs.parse_block_header(word.to_bytes(3, "little"))


@given(garbage=st.binary(max_size=300), chunk=st.sampled_from([8, 100, 1000]))
def test_after_damage_the_next_magic_is_found(garbage: bytes, chunk: int) -> None:
    whole = garbage + FRAMES[1]
    feed = zs.ByteFeed(reader(whole, [5, 64]), chunk=chunk)
    assert feed.skip_to_magic()
    starts = [whole.find(magic) for magic in (zs.FRAME_MAGIC, b"\x5b\x2a\x4d\x18", b"\x5e\x2a\x4d\x18")]
    assert feed.offset == min(start for start in starts if start >= 0)
    assert bytes(feed.peek(4)) == whole[feed.offset : feed.offset + 4]


def test_no_magic_is_no_place() -> None:
    feed = zs.ByteFeed(reader(bytes(3000), [100]), chunk=64)
    assert not feed.skip_to_magic()
    assert feed.offset == 3000


def test_a_feed_knows_where_it_is_and_refuses_what_is_not_there() -> None:
    feed = zs.ByteFeed(reader(b"0123456789", [3]), offset=100)
    assert bytes(feed.take(4)) == b"0123"
    assert bytes(feed.peek(100)) == b"456789"
    with pytest.raises(FormatError) as caught:
        feed.take(7)
    assert caught.value.offset == 110
    assert bytes(feed.take(6)) == b"456789"
    assert (feed.offset, bytes(feed.take(0))) == (110, b"")


# -- the seek table -------------------------------------------------------------------------------------------------

rows = st.lists(st.tuples(*[st.integers(0, 0xFFFFFFFF)] * 3), max_size=20)


def table_of(some: list[tuple[int, int, int]]) -> zs.SeekTable:
    table = zs.SeekTable()
    for row in some:
        table.add(*row)
    return table


@given(some=rows)
def test_a_seek_table_comes_back(some: list[tuple[int, int, int]]) -> None:
    encoded = table_of(some).encode()
    assert zs.SeekTable.size_from_footer(encoded[-9:], len(encoded)) == len(encoded)
    decoded = zs.SeekTable.decode(encoded)
    assert [decoded.row(number) for number in range(len(decoded))] == some
    if some:
        assert decoded.row(-1) == some[-1]


def test_a_seek_table_is_as_the_specification_says() -> None:
    assert table_of([(1, 2, 3)]).encode() == (
        b"\x5e\x2a\x4d\x18" + struct.pack("<I", 12 + 9) + struct.pack("<IIIIBI", 1, 2, 3, 1, 0x80, 0x8F92EAB1)
    )


@pytest.mark.parametrize(
    "footer",
    [
        struct.pack("<IBI", 1, 0x80, 0x8F92EAB2),
        struct.pack("<IBI", 1, 0x81, 0x8F92EAB1),
        struct.pack("<IBI", 0xFFFFFFFF, 0x80, 0x8F92EAB1),
        struct.pack("<IBI", 1000, 0x80, 0x8F92EAB1),
        struct.pack("<IBI", 100, 0x00, 0x8F92EAB1),
    ],
)
def test_a_footer_that_cannot_be_is_none(footer: bytes) -> None:
    assert zs.SeekTable.size_from_footer(footer, 500) is None


def test_a_seek_table_with_any_byte_of_its_frame_changed_is_refused_or_differs() -> None:
    whole = table_of([(1, 2, 3), (4, 5, 6)]).encode()
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        try:
            assert zs.SeekTable.decode(broken).encode() != whole
        except FormatError:
            continue
    for size in range(len(whole)):
        with pytest.raises(FormatError):
            zs.SeekTable.decode(whole[:size])
