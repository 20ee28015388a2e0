"""Chains of archives in memory: full ones and deltas, made of what disks were night after night."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archives import open_layer

from pybackup.core.archive.index import ArchiveIndex
from pybackup.formats.archive import ArchiveEncoder
from pybackup.formats.clusters import ClusterRun, scan
from pybackup.formats.vma import DriveInfo, Header
from pybackup.formats.vma_layout import CLUSTER_SIZE

Disks = Mapping[str, bytes]


@dataclass(frozen=True)
class Night:
    """The archive of one night, and what the disks were."""

    archive: bytes
    disks: Disks
    uuid: bytes
    chain: int = 0
    configs: Sequence[tuple[str, bytes]] = ()

    def index(self, name: str = "night.vma") -> ArchiveIndex:
        return open_layer(self.archive, name)


def clusters_of(disk: bytes) -> list[bytes]:
    """A disk's clusters, the last one filled up."""
    return [disk[at : at + CLUSTER_SIZE].ljust(CLUSTER_SIZE, b"\0") for at in range(0, len(disk), CLUSTER_SIZE)]


def changed_clusters(disk: bytes, before: bytes | None) -> list[int]:
    """What a delta lists of a drive."""
    old = [] if before is None else clusters_of(before)
    return [at for at, cluster in enumerate(clusters_of(disk)) if at >= len(old) or old[at] != cluster]


def make_night(
    disks: Disks,
    parent: Night | None = None,
    *,
    seed: int = 0,
    level: int = 1,
    frame_size: int = 1 << 16,
    shuffled: bool = False,
    first_id: int = 1,
) -> Night:
    """A full archive, or a delta. ``shuffled``: the clusters lie in no order, as those of a disk in use may."""
    dice = random.Random(seed)
    uuid = dice.randbytes(16)
    infos = tuple(DriveInfo(number, name, len(disk)) for number, (name, disk) in enumerate(disks.items(), first_id))
    configs = (("notes", f"night {seed}".encode()),)
    header = Header(uuid, 1_700_000_000 + seed, infos, configs)
    if parent is not None:
        digest = parent.index().digest
        header = Header(
            uuid,
            1_700_000_000 + seed,
            infos,
            configs,
            is_delta=True,
            parent_uuid=parent.uuid,
            parent_index_digest=digest,
        )
    encoder = ArchiveEncoder(header, level=level, frame_size=frame_size)
    out = [encoder.start()]
    for info in infos:
        before = None if parent is None else parent.disks.get(info.name)
        numbers = changed_clusters(disks[info.name], before)
        if shuffled and info.name != "vmstate":
            dice.shuffle(numbers)
        for number, run in _runs_of(disks[info.name], numbers):
            if run.mask:
                encoder.add(info.drive_id, number, [run])
            else:
                encoder.add_zeros(info.drive_id, number, run.clusters)
    encoder.close_extent()
    compressor = encoder.compressor()
    for item in encoder.ready:
        out += [bytes(part) for part in encoder.commit(encoder.encode(item, compressor))]
    chain = 0 if parent is None else parent.chain + 1
    about = {"tool": "test", "sources": [{"name": f"source of night {seed}", "kind": "raw"}]}
    if parent is not None:
        about |= {"chain": chain, "parent": {"uuid": parent.uuid.hex(), "index": digest.hex()}}
    return Night(b"".join((*out, *map(bytes, encoder.finish(about)))), disks, uuid, chain, configs)


def _runs_of(disk: bytes, numbers: Sequence[int]) -> list[tuple[int, ClusterRun]]:
    """What is found at these clusters, neighbours together."""
    found: list[tuple[int, ClusterRun]] = []
    at = 0
    while at < len(numbers):
        end = at + 1
        while end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
            end += 1
        first = numbers[at]
        for run in scan(disk[first * CLUSTER_SIZE : (first + end - at) * CLUSTER_SIZE]):
            found.append((first, run))
            first += run.clusters
        at = end
    return found
