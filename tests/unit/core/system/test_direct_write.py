from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pybackup.core.system import direct_write
from pybackup.core.system.direct_write import DirectWriter
from pybackup.core.system.unfilled import ALIGNMENT, unfilled_aligned

PIECES = [b"a" * 4 * ALIGNMENT, b"b" * 2 * ALIGNMENT, b"c" * 3 * ALIGNMENT]


def memory(content: bytes) -> memoryview:
    aligned = unfilled_aligned(len(content))
    aligned[:] = content
    return memoryview(aligned)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.write_bytes(b"")
    return path


@pytest.fixture
def writer(path: Path) -> Iterator[DirectWriter]:
    fd = os.open(path, os.O_RDWR)
    writer = DirectWriter(fd)
    yield writer
    writer.close()
    os.close(fd)


@pytest.mark.parametrize("offset", [0, ALIGNMENT, 512, 1])
@pytest.mark.parametrize(
    "buffers",
    [
        [memory(piece) for piece in PIECES],
        [memory(piece)[ALIGNMENT:] for piece in PIECES],
        [memory(piece)[512:] for piece in PIECES],
        [memory(piece)[:-1] for piece in PIECES],
        [memoryview(piece) for piece in PIECES],
        [memory(PIECES[0]), memoryview(PIECES[1])],
        [],
    ],
    ids=["aligned", "inside", "shifted", "odd", "read-only", "mixed", "nothing"],
)
def test_whatever_is_written_arrives(
    path: Path, writer: DirectWriter, offset: int, buffers: Sequence[memoryview]
) -> None:
    writer.write_at(offset, buffers)
    content = b"".join(buffers)
    assert path.read_bytes() == (bytes(offset) + content if content else b"")


def test_aligned_memory_is_not_copied(path: Path, writer: DirectWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    if not writer._writer.write_all_at(0, [memory(PIECES[0])]):
        pytest.skip("the filesystem of the tests has no direct writes")
    monkeypatch.setattr(DirectWriter, "_pieces", lambda *_: pytest.fail("it was copied"))
    writer.write_at(0, [memory(piece) for piece in PIECES])
    assert path.read_bytes() == b"".join(PIECES)


@pytest.mark.parametrize("does", [errno.EINVAL, errno.EOPNOTSUPP, ALIGNMENT, 0])
def test_a_direct_write_that_is_refused_or_short_is_finished(
    path: Path, writer: DirectWriter, monkeypatch: pytest.MonkeyPatch, does: int
) -> None:
    real = os.pwritev

    def pwritev(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if does in errno.errorcode:
            raise OSError(does, os.strerror(does))
        return real(fd, [buffers[0][:does]], offset) if does else 0

    monkeypatch.setattr(direct_write.os, "pwritev", pwritev)
    writer.write_at(0, [memory(piece) for piece in PIECES])
    assert path.read_bytes() == b"".join(PIECES)


def test_a_failure_is_told(writer: DirectWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(direct_write.os, "pwritev", full)
    monkeypatch.setattr(direct_write.os, "pwrite", full)
    for piece in (memory(PIECES[0]), memoryview(PIECES[0])):
        with pytest.raises(OSError, match="No space left"):
            writer.write_at(0, [piece])
