from __future__ import annotations

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pybackup.core.archive.input import decompress_aligned, decompress_frame
from pybackup.core.system.unfilled import is_aligned
from pybackup.formats.errors import FormatError

compressor = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True)


@given(st.binary(min_size=1, max_size=300), st.integers(1, 200))
def test_both_ways_to_decompress_give_the_content(part: bytes, times: int) -> None:
    content = part * times
    frame = memoryview(compressor.compress(content))
    assert decompress_aligned(frame, len(content), 0) == content
    assert decompress_frame(frame, len(content), 0) == content


def test_large_frames_can_be_written_directly() -> None:
    content = bytes(1 << 20)
    assert is_aligned(memoryview(decompress_aligned(memoryview(compressor.compress(content)), len(content), 0)))


@given(at=st.integers(0, 200), change=st.integers(1, 255))
def test_no_changed_byte_gives_other_content(at: int, change: int) -> None:
    content = bytes(range(256)) * 64
    frame = bytearray(compressor.compress(content))
    frame[at % len(frame)] ^= change
    for decompress in (decompress_aligned, decompress_frame):
        try:
            assert decompress(memoryview(frame), len(content), 7) == content
        except FormatError as error:
            assert error.offset == 7


@pytest.mark.parametrize("told", [8191, 8193, 9000, 1 << 20])
def test_a_frame_that_holds_something_else(told: int) -> None:
    frame = memoryview(compressor.compress(bytes(8192)))
    for decompress in (decompress_aligned, decompress_frame):
        with pytest.raises(FormatError, match="does not hold what its header says"):
            decompress(frame, told, 0)


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_frame_that_is_cut_short(size: int) -> None:
    frame = memoryview(compressor.compress(bytes(size)))
    for cut in (1, 4, 5, len(frame) - 8):
        with pytest.raises(FormatError):
            decompress_frame(frame[:-cut], size, 0)
