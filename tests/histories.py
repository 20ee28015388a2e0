"""Histories of small disks in memory: nights, each a full archive or a delta, and what can be read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random

from archives import about_of, header_of, open_layer, pool

from pybackup.core.archive.by_index import DrivesOfChain
from pybackup.core.archive.delta import ParentDrives
from pybackup.core.archive.view import ArchiveView
from pybackup.core.jobs.walk import runs_of
from pybackup.formats.archive import ArchiveEncoder
from pybackup.formats.clusters import ClusterRun, scan
from pybackup.formats.vma import Header

CLUSTER = 65536
Disks = Mapping[str, bytes]


@dataclass(frozen=True)
class Night:
    """An archive, and what the disks were when it was made."""

    archive: bytes
    disks: Disks
    name: str


def night(disks: Disks, parent: ArchiveView | None, number: int, *, frame_size: int = 1 << 18) -> Night:
    """The archive of some disks: a delta, where there is a parent."""
    header = _header(disks, parent, number)
    encoder = ArchiveEncoder(header, level=1, frame_size=frame_size)
    out = [encoder.start()]
    for drive in header.drives:
        _add(encoder, drive.drive_id, disks[drive.name], parent and ParentDrives(parent, header.drives))
    encoder.close_extent()
    for item in encoder.ready:
        out += [bytes(part) for part in encoder.commit(encoder.encode(item, encoder.compressor()))]
    about = about_of(encoder) if parent is None else {"parent": {"name": parent.name}}
    return Night(b"".join([*out, *encoder.finish(about)]), disks, f"night-{number}.vma")


def _header(disks: Disks, parent: ArchiveView | None, number: int) -> Header:
    plain = header_of(disks)
    uuid = number.to_bytes(16, "big")
    if parent is None:
        return Header(uuid, plain.created + number, plain.drives, plain.configs)
    return Header(
        uuid,
        plain.created + number,
        plain.drives,
        plain.configs,
        parent_uuid=parent.header.uuid,
        parent_index_digest=parent.newest.digest,
        is_delta=True,
    )


def _add(encoder: ArchiveEncoder, drive_id: int, disk: bytes, parent: ParentDrives | None) -> None:
    runs = scan(disk)
    placed = parent.changed(drive_id, 0, runs) if parent is not None else _one_after_other(runs)
    for zero, group in groupby(placed, lambda one: not one[1].mask):
        for first, run in group:
            if zero:
                encoder.add_zeros(drive_id, first, run.clusters)
            else:
                encoder.add(drive_id, first, [run])


def _one_after_other(runs: Sequence[ClusterRun]) -> Sequence[tuple[int, ClusterRun]]:
    placed, first = [], 0
    for run in runs:
        placed.append((first, run))
        first += run.clusters
    return placed


def view_of(nights: Sequence[Night]) -> ArchiveView:
    """The last of some nights, with those before it down to the last full one."""
    layers = []
    for one in reversed(nights):
        layers.append(open_layer(one.archive, one.name))
        if not layers[-1].header.is_delta:
            break
    return ArchiveView(layers)


def read_all(view: ArchiveView) -> dict[str, bytes]:
    """All drives, as restore puts them together; every cluster comes once, in the order of the drive."""
    source = DrivesOfChain(view, pool, stop=lambda: None)
    disks = {drive.drive_id: bytearray(drive.size) for drive in view.header.drives}
    ends = dict.fromkeys(disks, 0)
    for checked in source.extents(list(disks)):
        for run in runs_of(checked.extent):
            assert run.offset == ends[run.drive_id]
            ends[run.drive_id] += run.length
            if run.buffers is not None:
                disk, content = disks[run.drive_id], b"".join(run.buffers)
                disk[run.offset : run.offset + len(content)] = content[: len(disk) - run.offset]
    for drive in view.header.drives:
        assert ends[drive.drive_id] >= drive.size
    return {drive.name: bytes(disks[drive.drive_id]) for drive in view.header.drives}


def changed(disks: Disks, chance: Random) -> dict[str, bytes]:
    """The disks a day later: written to, zeroed, grown, shrunk; one may come, go, or be called otherwise."""
    later = {name: _changed(disk, chance) for name, disk in disks.items()}
    match chance.randrange(12):
        case 0:
            later[f"new{chance.randrange(3)}"] = chance.randbytes(chance.randrange(1, 4 * CLUSTER))
        case 1 if len(later) > 1:
            del later[chance.choice(sorted(later))]
        case 2:
            later[f"called{chance.randrange(3)}"] = later.pop(chance.choice(sorted(later)))
    return later


def _changed(disk: bytes, chance: Random) -> bytes:
    content = bytearray(disk)
    for _ in range(chance.randrange(4)):
        at, length = chance.randrange(len(content)), chance.choice((1, 512, 4096, CLUSTER, 3 * CLUSTER))
        length = min(length, len(content) - at)
        content[at : at + length] = chance.choice((bytes(length), chance.randbytes(length), b"x" * length))
    match chance.randrange(8):
        case 0:
            del content[chance.randrange(1, len(content) + 1) :]
        case 1:
            content += bytes(chance.randrange(5 * CLUSTER))
        case 2:
            content += chance.randbytes(chance.randrange(3 * CLUSTER))
    return bytes(content)
