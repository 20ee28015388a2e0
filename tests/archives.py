"""Archives of small disks, made and read in memory, without files, jobs or an event loop."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pybackup.core.archive.damage import Damage
from pybackup.core.archive.index import ArchiveIndex
from pybackup.core.archive.stream import ArchiveStream, Digests
from pybackup.core.jobs.walk import runs_of
from pybackup.formats import cluster_index as index
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.archive import ArchiveEncoder
from pybackup.formats.clusters import ClusterRun, scan
from pybackup.formats.vma import DriveInfo, Header

UUID = bytes(range(16))
CREATED = 1_700_000_000

pool = ThreadPoolExecutor(1, thread_name_prefix="test-decompress")
"""One for all tests: a pool a decoded archive would cost more than the decoding."""


def header_of(drives: Mapping[str, bytes], configs: Iterable[tuple[str, bytes]] = ()) -> Header:
    """A header for these disks."""
    infos = (DriveInfo(number, name, len(disk)) for number, (name, disk) in enumerate(drives.items(), 1))
    return Header(uuid=UUID, created=CREATED, drives=tuple(infos), configs=tuple(configs))


def _keep(about: dict[str, Any]) -> None:
    """Change nothing."""


def encode(
    drives: Mapping[str, bytes],
    *,
    level: int | None = 1,
    frame_size: int = 1 << 20,
    configs: Iterable[tuple[str, bytes]] = (),
    change_about: Callable[[dict[str, Any]], object] = _keep,
) -> bytes:
    """The archive of some disks; the same for the same disks."""
    encoder = ArchiveEncoder(header_of(drives, configs), level=level, frame_size=frame_size)
    compressor = encoder.compressor()
    out = [encoder.start()]

    def write_ready() -> None:
        for item in encoder.ready:
            out.extend(bytes(part) for part in encoder.commit(encoder.encode(item, compressor)))
        encoder.ready.clear()

    for number, disk in enumerate(drives.values(), 1):
        for first, runs in _pieces(disk):
            if any(run.mask for run in runs):
                encoder.add(number, first, runs)
            else:
                encoder.add_zeros(number, first, sum(run.clusters for run in runs))
        write_ready()
    encoder.close_extent()
    write_ready()
    archive = b"".join((*out, *encoder.finish(about_of(encoder))))
    return archive if change_about is _keep else with_about(archive, change_about)


def _pieces(disk: bytes) -> Iterable[tuple[int, list[ClusterRun]]]:
    """A disk cut at every change between zero and other clusters: the first cluster, and what was found from there."""
    first = 0
    for _, group in groupby(scan(disk), lambda run: bool(run.mask)):
        runs = list(group)
        yield first, runs
        first += sum(run.clusters for run in runs)


def about_of(encoder: ArchiveEncoder) -> dict[str, Any]:
    """What the directory tells of the drives, as the backup job writes it."""
    drives = [
        {
            "id": drive.drive_id,
            "name": drive.name,
            "size": drive.size,
            "stored_clusters": counts.stored_clusters,
            "zero_clusters": counts.zero_clusters,
            "stored_bytes": counts.stored_bytes,
        }
        for drive in encoder.header.drives
        if (counts := encoder.index.counts[drive.drive_id])
    ]
    return {"tool": "test", "drives": drives, "unreadable": []}


@dataclass(frozen=True)
class Decoded:
    """What was read of an archive. ``written``: (drive id, offset, bytes) in the order of the archive."""

    stream: ArchiveStream
    written: list[tuple[int, int, bytes]]

    @property
    def damage(self) -> list[Damage]:
        return self.stream.damage

    @property
    def drives(self) -> dict[str, bytes]:
        """The disks, put together; what the archive does not have is zeros."""
        disks = {drive.drive_id: bytearray(drive.size) for drive in self.stream.header.drives}
        for drive_id, offset, content in self.written:
            disk = disks[drive_id]
            disk[offset : offset + len(content)] = content[: len(disk) - offset]
        return {drive.name: bytes(disks[drive.drive_id]) for drive in self.stream.header.drives}


def decode(archive: bytes, *, tolerant: bool = False, digests: Digests = Digests.ALL, piece: int = 1 << 20) -> Decoded:
    """Read an archive from its beginning to its end, as restore does; raises what ArchiveStream raises."""
    source = io.BytesIO(archive)
    stream = ArchiveStream(
        lambda size: source.read(min(size, piece)), "test.vma", pool, tolerant=tolerant, digests=digests
    )
    written = [
        (run.drive_id, run.offset, b"".join(run.buffers))
        for checked in stream
        for run in runs_of(checked.extent)
        if run.buffers is not None
    ]
    return Decoded(stream, written)


def read_of(archive: bytes) -> Callable[[int, int], bytes]:
    """A pread() over an archive in memory."""

    def pread(offset: int, length: int) -> bytes:
        content = archive[offset : offset + length]
        if offset < 0 or len(content) != length:
            raise OSError(f"bytes {offset} to {offset + length} of {len(archive)}")
        return content

    return pread


def open_index(archive: bytes) -> ArchiveIndex:
    """Random access to an archive in memory."""
    return ArchiveIndex(read_of(archive), len(archive), "test.vma")


def open_layer(archive: bytes, name: str) -> ArchiveIndex:
    """The same of what may be a delta."""
    return ArchiveIndex(read_of(archive), len(archive), name, allow_delta=True)


def frames_of(archive: bytes) -> list[zs.Frame]:
    """Every frame of a zstd file, whole."""
    source = io.BytesIO(archive)
    feed = zs.ByteFeed(source.read)
    frames = []
    while (frame := zs.next_frame(feed, 1 << 26)) is not None:
        assert isinstance(frame, zs.Frame)
        frames.append(frame)
    return frames


def with_index(archive: bytes, change: Callable[[int, bytes], bytes]) -> bytes:
    """The archive with each index frame's content changed: ``change(kind, content)``; all else fits it again.

    So sizes, checksums, the directory's places and the seek table are right, and only what was changed lies.
    """
    builder = b""
    table = zs.SeekTable()
    places: list[tuple[int, int]] = []
    for frame in frames_of(archive)[:-1]:
        content = bytes(frame.content)
        if frame.magic == zs.INDEX_MAGIC:
            kind, inner = index.unwrap(frame.content, frame.offset)
            inner = _moved(inner, places) if kind == index.DIRECTORY else inner
            content = index.wrap(kind, change(kind, inner))
            if kind == index.SEGMENT:
                places.append((len(builder), len(content)))
        skippable = frame.magic is not None
        checksum = 0 if skippable else int.from_bytes(content[-zs.CHECKSUM_SIZE :], "little")
        table.add(len(content), frame.content_size, checksum)
        builder += content
    return builder + table.encode()


def with_about(archive: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The archive with what its directory tells changed, and all else fitting it again."""

    def changed(kind: int, content: bytes) -> bytes:
        if kind != index.DIRECTORY:
            return content
        segments, ranges, size = index.DIRECTORY_START.unpack_from(content)
        about = json.loads(content[len(content) - size :])
        change(about)
        text = json.dumps(about, separators=(",", ":"), sort_keys=True).encode()
        start = index.DIRECTORY_START.pack(segments, ranges, len(text))
        return start + content[len(start) : len(content) - size] + text

    return with_index(archive, changed)


def _moved(directory: bytes, places: list[tuple[int, int]]) -> bytes:
    """The directory with its segments where they lie now."""
    out = bytearray(directory)
    for number, (offset, length) in enumerate(places):
        at = index.DIRECTORY_START.size + number * index.SEGMENT_ROW.size
        _, _, ranges = index.SEGMENT_ROW.unpack_from(out, at)
        index.SEGMENT_ROW.pack_into(out, at, offset, length, ranges)
    return bytes(out)
