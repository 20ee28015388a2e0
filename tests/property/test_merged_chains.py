"""Whatever happened to the disks, night after night: the archive merged of a chain is what they were in the last."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import plain_vma
import zstandard
from archives import decode, open_index, open_layer
from chains import Disks, Night, make_night
from hypothesis import given, settings
from hypothesis import strategies as st
from property.test_histories import history

from pybackup.core.archive.chain_clusters import ChainClusters
from pybackup.core.archive.identity import identity_of_index
from pybackup.core.archive.index import ArchiveIndex
from pybackup.core.archive.view import ArchiveView
from pybackup.core.archive.writer import ArchiveWriter
from pybackup.core.jobs.merge import MergeJob
from pybackup.formats.archive import ArchiveEncoder
from pybackup.formats.vma import Header
from pybackup.formats.vma_layout import CLUSTER_SIZE

pool = ThreadPoolExecutor(2, thread_name_prefix="test-merge")


class Memory:
    """A sink."""

    name = "memory"

    def __init__(self) -> None:
        self.content = bytearray()
        self.committed = False

    async def begin(self) -> None:
        assert not self.content

    async def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        for buffer in buffers:
            self.content += buffer

    async def commit(self) -> None:
        self.committed = True

    async def abort(self) -> None:
        self.content.clear()


def indexes_of(chain: Sequence[Night]) -> list[ArchiveIndex]:
    return [night.index(f"night-{number}.vma") for number, night in enumerate(chain)]


def merge(indexes: Sequence[ArchiveIndex], *, frame_size: int = 1 << 16) -> tuple[bytes, MergeJob]:
    """The archive merged of a chain, newest first."""
    clusters = ChainClusters(ArchiveView(indexes), [identity_of_index(one) for one in indexes], pool, stop=lambda: None)
    newest = clusters.header
    header = Header(newest.uuid, newest.created, newest.drives, newest.configs)
    sink = Memory()
    encoder = ArchiveEncoder(header, level=1, frame_size=frame_size)
    job = MergeJob(clusters, ArchiveWriter(encoder, sink, pool, threads=2))
    asyncio.run(job.run())
    assert sink.committed
    return bytes(sink.content), job


@st.composite
def nights(draw: st.DrawFn) -> list[Night]:
    """A chain, newest first."""
    dice = random.Random(draw(st.integers(0, 1 << 30)))
    disks: dict[str, bytes] = {"scsi0": _fresh(dice), "other": _fresh(dice)}
    if dice.random() < 0.3:
        disks["vmstate"] = _fresh(dice)
    made: list[Night] = []
    for number in range(draw(st.integers(1, 6))):
        if number:
            kept = [name for name in disks if name == "scsi0" or dice.random() < 0.9]
            disks = {name: _written(dice, disks[name]) for name in kept}
            if dice.random() < 0.3:
                disks.setdefault(dice.choice(["other", "new"]), _fresh(dice))
        parent = made[-1] if made else None
        frame_size = dice.choice([1 << 16, 1 << 17, 1 << 20])
        made.append(
            make_night(
                disks,
                parent,
                seed=number,
                frame_size=frame_size,
                shuffled=dice.random() < 0.3,
                first_id=dice.randint(1, 3),
            )
        )
    return made[::-1]


def _fresh(dice: random.Random) -> bytes:
    return b"".join(_cluster(dice) for _ in range(dice.randint(1, 90)))[: -dice.choice([1, 512, 60_000])]


def _cluster(dice: random.Random) -> bytes:
    kind = dice.random()
    if kind < 0.4:
        return bytes(CLUSTER_SIZE)
    if kind < 0.6:
        return bytes(8192) + dice.randbytes(4096) + bytes(CLUSTER_SIZE - 12288)
    return dice.randbytes(64) * 1024


def _written(dice: random.Random, disk: bytes) -> bytes:
    out = bytearray(disk)
    for _ in range(dice.choice([0, 1, 3, 30])):
        at = dice.randrange(len(out))
        length = dice.choice([1, 4096, 70_000])
        out[at : at + length] = bytes(length) if dice.random() < 0.3 else dice.randbytes(1) * length
    size = dice.choice([len(disk)] * 4 + [len(disk) + 100_000, len(disk) + 1, max(1, len(disk) - 200_000)])
    return bytes(out[:size].ljust(size, b"\0"))


def check(archive: bytes, disks: Disks) -> None:
    """Our readers, and one that knows the plain format alone."""
    read = decode(archive)
    assert read.drives == dict(disks)
    assert decode(archive, tolerant=True).damage == []
    opened = open_index(archive)
    for drive in opened.header.drives:
        content = b"".join(opened.read_cluster(drive.drive_id, cluster) for cluster in range(drive.clusters))
        assert content[: drive.size] == disks[drive.name]
    plain = zstandard.ZstdDecompressor().stream_reader(archive, read_across_frames=True).read()
    sizes = {drive.drive_id: drive.size for drive in opened.header.drives}
    found = plain_vma.drives_of(plain, sizes)
    assert {drive.name: found[drive.drive_id] for drive in opened.header.drives} == dict(disks)


@settings(max_examples=20, deadline=None)
@given(chain=nights(), frame_size=st.sampled_from([1 << 16, 1 << 18]))
def test_a_merged_archive_is_the_newest_night(chain: list[Night], frame_size: int) -> None:
    archive, job = merge(indexes_of(chain), frame_size=frame_size)
    check(archive, chain[0].disks)
    assert job.progress.done == job.progress.size
    identity = identity_of_index(open_index(archive))
    newest = identity_of_index(chain[0].index())
    assert (identity.uuid, identity.created) == (newest.uuid, newest.created)
    assert not identity.is_delta and identity.chain == 0 and newest.reference is not None
    assert identity.answers(newest.reference)
    assert identity.header.configs == newest.header.configs
    assert identity.about["sources"] == newest.about["sources"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.sampled_from([1 << 16, 1 << 18]))
def test_what_incremental_backups_make_of_disks(seed: int, nights: int, frame_size: int) -> None:
    found = history(random.Random(seed), nights, frame_size)
    first = max(number for number, night in enumerate(found) if not open_layer(night.archive, "x").header.is_delta)
    archive, _ = merge([open_layer(night.archive, night.name) for night in reversed(found[first:])])
    check(archive, found[-1].disks)


@settings(max_examples=8, deadline=None)
@given(chain=nights(), seed=st.integers(0, 1 << 30))
def test_a_merged_archive_is_the_parent_that_the_newest_was(chain: list[Night], seed: int) -> None:
    dice = random.Random(seed)
    later = make_night({name: _written(dice, disk) for name, disk in chain[0].disks.items()}, chain[0], seed=99)
    archive, _ = merge(indexes_of(chain))
    reference = identity_of_index(later.index()).parent
    merged = Night(archive, chain[0].disks, chain[0].uuid)
    again, _ = merge(indexes_of([later, merged]))
    check(again, later.disks)
    assert reference is not None and identity_of_index(open_index(archive)).answers(reference)
    twice, _ = merge(indexes_of([merged]))
    assert identity_of_index(open_index(twice)).answers(reference)
