"""Random damage to archives of every kind, and what each command may make of it: the right data, or "damage"."""

from __future__ import annotations

import gzip
import io
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import foreign_vma
import zstandard
from archives import Decoded, decode, encode, open_index, pool
from merging import drives_of

from pybackup.core.archive.by_index import DrivesByIndex
from pybackup.core.archive.chain_clusters import ChainClusters
from pybackup.core.archive.identity import identity_of_index
from pybackup.core.archive.index import NoIndexError
from pybackup.core.archive.stream import ArchiveStream, Digests
from pybackup.core.archive.view import ArchiveView
from pybackup.core.errors import ArchiveError
from pybackup.core.jobs.stream_clusters import StreamClusters
from pybackup.core.jobs.walk import runs_of
from pybackup.formats.vma_layout import CLUSTER_SIZE

NOISE = random.Random(17)
scanners = ThreadPoolExecutor(1, thread_name_prefix="test-scan")
DISKS = {
    "scsi0": NOISE.randbytes(90_112) + bytes(199_680) + b"text" * 3840 + bytes(CLUSTER_SIZE * 70) + b"end".ljust(512),
    "vmstate": NOISE.randbytes(70_144),
}
OURS = encode(DISKS, configs=[("qemu-server.conf", b"cores: 2\n")], frame_size=65536)
PLAIN = encode(DISKS, level=None)
FOREIGN = foreign_vma.write(DISKS, {"qemu-server.conf": b"cores: 2\n"})


def _streamed(content: bytes) -> bytes:
    """As `zstd` compresses a pipe: one frame of unknown size, with a checksum."""
    stream = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compressobj()
    return stream.compress(content) + stream.flush()


KINDS: dict[str, tuple[bytes, bool]] = {
    "compressed": (OURS, True),
    "plain": (PLAIN, True),
    "foreign plain": (FOREIGN, False),
    "foreign zstd": (_streamed(FOREIGN), True),
    "foreign gzip": (gzip.compress(FOREIGN, 1, mtime=0), True),
    "plain in zstd": (_streamed(PLAIN), True),
}
"""What is damaged, and whether anything guards its data. A foreign memory image may end early, and nobody can tell."""


def damaged(archive: bytes, dice: random.Random) -> bytes:
    """One to three things that go wrong with files."""
    out = bytearray(archive)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        at = dice.randrange(len(out) + 1)
        if dice.random() < 0.3:  # the ends hold what all depends on
            at = dice.choice((dice.randrange(200), max(0, len(out) - dice.randrange(1, 400))))
        length = dice.choice((1, 4, 16, 512, 4096, 70_000))
        match dice.randrange(8):
            case 0 | 1:
                out[at : at + 1] = bytes(byte ^ 1 << dice.randrange(8) for byte in out[at : at + 1])
            case 2:
                out[at : at + length] = dice.randbytes(len(out[at : at + length]))
            case 3:
                out[at : at + length] = bytes(len(out[at : at + length]))
            case 4:
                del out[at:]
            case 5:
                del out[at : at + length]
            case 6:
                out[at:at] = out[at : at + length]
            case 7:
                other = dice.randrange(len(out) + 1)
                out[at : at + length] = out[other : other + length]
        if not out:
            break
    return bytes(out)


@dataclass
class Tally:
    """What came of the damages: how often each command gave data or said damage, and the longest it took in seconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0


def check(archive: bytes, guarded: bool, tally: Tally) -> None:
    """Run every command's way of reading; AssertionError where one is wrong. Errors but ArchiveError go through."""
    for command, read in COMMANDS.items():
        began = time.monotonic()
        try:
            right = read(archive, guarded)
        except ArchiveError:
            right = None
        tally.longest = max(tally.longest, time.monotonic() - began)
        assert right is not False, f"{command} gave wrong data and called it right"
        tally.outcomes[f"{command}: {'damage' if right is None else 'right'}"] += 1


def _is_right(read: Decoded, guarded: bool) -> bool | None:
    """Whether it is the truth; None where it was called damage. Foreign memory is right as far as it is there."""
    if read.damage:
        return None
    stream = read.stream
    if not guarded or not stream.protects_data:
        return stream.header.extent_digests is False
    short = dict(stream.ends_early())
    return list(read.drives) == list(DISKS) and all(
        disk[: short.get(name, len(disk))] == DISKS[name][: short.get(name, len(disk))]
        for name, disk in read.drives.items()
    )


def _verify(archive: bytes, guarded: bool) -> bool | None:
    return _is_right(decode(archive, tolerant=True), guarded)


def _restore(archive: bytes, guarded: bool) -> bool | None:
    return _is_right(decode(archive, digests=Digests.UNPROVEN), guarded)


def _compare(archive: bytes, guarded: bool) -> bool | None:
    return _is_right(decode(archive), guarded)


def _info(archive: bytes, guarded: bool) -> bool | None:
    read = decode(archive, digests=Digests.NONE)
    return not guarded or [one.name for one in read.stream.header.drives] == list(DISKS)


def _restore_one(archive: bytes, guarded: bool) -> bool | None:
    opened = open_index(archive)
    source = DrivesByIndex(opened, pool, stop=lambda: None)
    for drive in opened.header.drives:
        disk = bytearray(drive.size)
        for checked in source.extents([drive.drive_id]):
            for run in runs_of(checked.extent):
                if run.buffers is not None:
                    disk[run.offset : run.offset + run.length] = b"".join(run.buffers)
        if disk[: drive.size] != DISKS.get(drive.name):
            return False
    return True


def _serve(archive: bytes, guarded: bool) -> bool | None:
    opened = open_index(archive)
    for drive in opened.header.drives:
        content = b"".join(opened.read_cluster(drive.drive_id, cluster) for cluster in range(drive.clusters))
        if content[: drive.size] != DISKS.get(drive.name):
            return False
    return True


def _merge(archive: bytes, guarded: bool) -> bool | None:
    """By its index, where it has one, else from its beginning to its end."""
    try:
        index = open_index(archive)
    except NoIndexError:
        source = io.BytesIO(archive)
        stream = ArchiveStream(lambda size: source.read(min(size, 1 << 20)), "test.vma", pool, digests=Digests.UNPROVEN)
        drives = drives_of(StreamClusters(stream, scanners))
        if not guarded or not stream.protects_data:
            return stream.header.extent_digests is False
    else:
        identity = identity_of_index(index)
        drives = drives_of(ChainClusters(ArchiveView([index]), [identity], pool, stop=lambda: None))
    return {name: disk.rstrip(b"\0") for name, disk in drives.items()} == {
        name: disk.rstrip(b"\0") for name, disk in DISKS.items()
    }


COMMANDS: dict[str, Callable[[bytes, bool], bool | None]] = {
    "verify": _verify,
    "restore": _restore,
    "compare": _compare,
    "info": _info,
    "restore of one drive": _restore_one,
    "serve": _serve,
    "merge": _merge,
}


def play(seed: int, tally: Tally) -> None:
    """One damage, the same for the same seed."""
    dice = random.Random(seed)
    archive, guarded = KINDS[dice.choice(list(KINDS))]
    check(damaged(archive, dice), guarded, tally)
