"""A share of an archive is read, evenly, and what is wrong in it is found."""

from __future__ import annotations

import asyncio
import random

import pytest
from archives import encode, open_index, read_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pybackup.core.archive.index import ArchiveIndex
from pybackup.core.jobs.sample import SampleJob

NOISE = random.Random(9)
DISK = NOISE.randbytes(64 << 16)
ARCHIVE = encode({"a": DISK, "b": bytes(5 << 16) + NOISE.randbytes(3 << 16)}, frame_size=1 << 16)


def sample(index: ArchiveIndex, share: float, seed: int = 1) -> SampleJob:
    job = SampleJob(index, share, chance=random.Random(seed))
    asyncio.run(job.run())
    return job


@pytest.mark.parametrize("share", [0.01, 0.1, 0.33, 0.5, 0.9, 1.0])
def test_so_much_is_read_as_was_asked(share: float) -> None:
    for seed in range(20):
        job = sample(open_index(ARCHIVE), share, seed)
        assert job.clusters == 67 and not job.damage
        assert job.read >= 1 and abs(job.read - share * job.clusters) < 3


def test_in_the_end_everything_is_read() -> None:
    seen: set[int] = set()
    for seed in range(200):
        index = open_index(ARCHIVE)
        read = index.read_stored
        index.read_stored = lambda *given, read=read: (seen.add(given[1]), read(*given))[1]  # type: ignore[method-assign, misc]
        sample(index, 0.1, seed)
    assert seen == set(range(67))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(ARCHIVE) - 1), st.integers(1, 255))
def test_a_whole_sample_finds_what_is_wrong_with_stored_clusters(at: int, flip: int) -> None:
    """What a whole sample calls good can be read as it was."""
    damaged = bytearray(ARCHIVE)
    damaged[at] ^= flip
    try:
        index = open_index(bytes(damaged))
    except Exception:
        return
    job = sample(index, 1.0)
    good = open_index(ARCHIVE)
    if not job.damage and job.clusters == 67:
        for cluster in (0, 7, 63):
            assert index.read_cluster(1, cluster) == good.read_cluster(1, cluster)


def test_damage_is_told_by_its_place() -> None:
    index = open_index(ARCHIVE)
    place = next(iter(index.segments(index.directory.segments, _pool())))
    frame = place.frame_of(place.stored(10).vma_offset)
    damaged = bytearray(ARCHIVE)
    damaged[frame.file_offset + frame.compressed // 2] ^= 1
    job = sample(open_index(bytes(damaged)), 1.0)
    (found,) = job.damage
    assert "is damaged" in str(found) and job.read < job.clusters


def test_an_archive_of_nothing_but_zeros_has_nothing_to_read() -> None:
    job = sample(open_index(encode({"a": bytes(1 << 20)})), 0.5)
    assert (job.clusters, job.read, job.damage) == (0, 0, [])


def test_an_archive_that_cannot_be_read_on_is_damaged() -> None:
    read = read_of(ARCHIVE)
    broken = False

    def pread(offset: int, length: int) -> bytes:
        if broken:
            raise OSError("the disk has gone")
        return read(offset, length)

    index = ArchiveIndex(pread, len(ARCHIVE), "test.vma")
    broken = True
    job = sample(index, 0.5)
    assert "the disk has gone" in str(job.damage[0])


def _pool():  # type: ignore[no-untyped-def]
    from archives import pool

    return pool
