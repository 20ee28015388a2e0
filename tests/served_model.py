"""A server of disks in use and the histories that are made of them: chains of deltas, by what the server has seen.

The guests and their disks are those of live_model.py, and server and client are the real ones, over real sockets, in
one event loop without real time. What must hold beside what holds there:
- every archive, with its ancestors, holds every disk as it was at its instant, whatever became of the backups between;
- what the server calls unchanged is unchanged, unless a disk was changed behind its back, and then that is found;
- a backup that fails costs no other job its record.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from live_model import Disk, Game
from virtual_time import InlineExecutor, run
from wild import WildSink

from pybackup.core.archive.delta import DeltaWriter
from pybackup.core.archive.identity import Reference, identity_of_index
from pybackup.core.archive.index import ArchiveIndex
from pybackup.core.archive.view import ArchiveView
from pybackup.core.archive.writer import ArchiveWriter
from pybackup.core.cow import changed_clusters
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.cow.guest_copies import GuestCopies, OnError
from pybackup.core.errors import PybackupError
from pybackup.core.jobs.backup import GuestPolicy
from pybackup.core.jobs.changes import BY_DIGEST, BY_SERVER, DriveWay
from pybackup.core.live import client, server
from pybackup.core.live.archive_records import MOST_ARCHIVES, UNKNOWN
from pybackup.core.live.client import RemoteBackup
from pybackup.core.live.cluster_receiver import ClusterReceiver
from pybackup.core.live.control import ControlSocket
from pybackup.core.live.server import LiveServer
from pybackup.formats.archive import ArchiveEncoder
from pybackup.formats.vma import DriveInfo, Header

POOL = InlineExecutor(1)


def play(seed: int, backups: int = 12) -> dict[str, int]:
    """Play one game to its end; how often which outcome came up."""

    async def main(folder: str) -> dict[str, int]:
        asyncio.get_running_loop().set_default_executor(POOL)
        return await _History(Random(seed), folder).play(backups)

    with tempfile.TemporaryDirectory() as folder, _in_small():
        return run(main(folder))


@contextmanager
def _in_small() -> Iterator[None]:
    """Small pieces; and neither this process's priority nor its memory are the backup's to manage."""
    with (
        patch.object(changed_clusters, "PIECE_CLUSTERS", 16),
        patch.object(client, "_lower_priority"),
        patch.object(server, "_tidy"),
        patch.object(client, "ClusterReceiver", _Receiver),
    ):
        yield


class _Filter(CopyBeforeWrite):
    """Notes what a disk holds at the instant. Changing: ``frozen``."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.wild)
        self.frozen, self._disk = b"", disk

    def arm(self, guard: GuestCopies) -> None:
        super().arm(guard)
        assert self._disk.wild.disk.contents() == self._disk.model, "a change was in flight at the freeze"
        self.frozen = bytes(self._disk.model)


class _Receiver(ClusterReceiver):
    """The client's end, which can be killed. Changing: the one that was made last, and whether it dies at the end."""

    last: _Receiver | None = None
    dies_at_the_end = False

    @classmethod
    async def begin(cls, path: str, request: dict[str, Any]) -> ClusterReceiver:
        receiver = await super().begin(path, request)
        assert isinstance(receiver, _Receiver)
        _Receiver.last = receiver
        return receiver

    def kill(self) -> None:
        for _, writer in (self._clusters, self._control):
            writer.transport.abort()

    async def acknowledge(self, digest: bytes | None) -> None:
        if self.dies_at_the_end:
            self.kill()
        await super().acknowledge(digest)


@dataclass
class _Made:
    """An archive with its ancestors, and what the disks held."""

    view: ArchiveView
    frozen: dict[str, bytes]

    @property
    def reference(self) -> Reference:
        found = identity_of_index(self.view.newest).reference
        assert found is not None
        return found


class _History(Game):
    def __init__(self, random: Random, folder: str) -> None:
        super().__init__(random)
        for disk in self.disks:
            disk.filter = _Filter(disk)
        self.policy = GuestPolicy(
            on_error=random.choice(list(OnError)),
            buffer=random.choice([1, 300_000, 64 << 20]),
            timeout=random.choice([None, 30.0]),
            copy_on_read=random.choice([False, True]),
        )
        self._path = str(Path(folder) / "control.sock")
        self._live = LiveServer(self._filters, policy=self.policy, tool="t")
        self._live._records._room.left = random.choice([0, 2, 1000, 1000])
        self._made: list[_Made] = []
        self._behind: set[str] = set()

    @property
    def _filters(self) -> dict[str, _Filter]:
        return {disk.wild.name: disk.filter for disk in self.disks if isinstance(disk.filter, _Filter)}

    async def play(self, backups: int) -> dict[str, int]:
        control = ControlSocket(self._path, self._live, dict, asyncio.Event())
        try:
            return await super().play(backups)
        finally:
            await control.close()

    async def _backup(self, *, tame: bool) -> None:
        await asyncio.sleep(self.random.choice([0, 1.0, 30.0]))
        parent = self.random.choice([None, *self._made[-10:], *self._made[-1:] * 10])
        if parent is not None and self.random.random() < 0.25:
            self._change_behind_the_back()
        was_known = parent is not None and self._is_known(parent)
        sink = WildSink(self.weather)
        job = self._make_remote(sink, parent)
        _Receiver.dies_at_the_end = not tame and self.random.random() < 0.1
        torment = asyncio.create_task(self._torment_remote(job, tame=tame))
        try:
            await job.run()
        except PybackupError:
            assert sink.outcome in ("aborted", "") and not tame, job.error
            self.count("failed")
        else:
            assert sink.outcome == "committed"
            self._check_archive(job, bytes(sink.content), parent)
            if parent is not None:
                self._check_ways(job, was_known=was_known)
            assert self._is_known(self._made[-1]) or not tame
        torment.cancel()
        with suppress(asyncio.CancelledError):
            await torment
        await self._live.cancel()  # the server may not yet know that its client has gone
        assert not any(one.is_armed for one in self._filters.values())

    def _change_behind_the_back(self) -> None:
        """A guest that works on the disk itself, at a place that no guest is at."""
        disk = self.random.choice(self.disks)
        start, end = self._range(disk)
        if disk.is_free(start, end) and not self._live.is_busy:
            data = self._data(end - start)
            disk.wild.disk.write_now(start, data)
            disk.model[start:end] = data
            self._behind.add(disk.wild.name)

    def _make_remote(self, sink: WildSink, parent: _Made | None) -> RemoteBackup:
        drives = [(disk.wild.name, disk.size) for disk in self.disks]
        header = Header(
            uuid=self.random.randbytes(16),
            created=0,
            drives=tuple(DriveInfo(number, name, size) for number, (name, size) in enumerate(drives, 1)),
            is_delta=parent is not None,
            parent_uuid=bytes(16) if parent is None else parent.reference.uuid,
            parent_index_digest=bytes(16) if parent is None else parent.reference.digest,
        )
        encoder = ArchiveEncoder(header, level=1)
        asked: dict[str, Any] = {"uuid": header.uuid.hex(), "skip_unreadable": self.random.random() < 0.6}
        if parent is None:
            writer, ways = ArchiveWriter(encoder, sink, POOL, threads=1), {}
        else:
            asked["base"] = {"uuid": parent.reference.uuid.hex(), "digests": [parent.reference.digest.hex(), "00" * 16]}
            writer = DeltaWriter(encoder, sink, POOL, parent.view, {}, threads=1)
            ways = {name: DriveWay(BY_DIGEST) for name, _ in drives}
        return RemoteBackup(self._path, asked, drives, writer, POOL, ways=ways)

    async def _torment_remote(self, job: RemoteBackup, *, tame: bool) -> None:
        _Receiver.last = None
        for _ in range(self.random.randint(0, 12)):
            await self.weather.wait()
            await asyncio.sleep(self.random.choice([0, 0, 0.001, 1.0]))
            match self.random.choice(["pause", "resume", "cancel", "server cancels", "kill", *["nothing"] * 5]):
                case "pause" if self._live.job is not None:
                    self._live.job.pause()
                case "resume" if self._live.job is not None:
                    self._live.job.resume()
                case "cancel" if not tame:
                    job.cancel()
                case "server cancels" if not tame and self._live.job is not None:
                    await self._live.cancel()
                case "kill" if not tame and _Receiver.last is not None:
                    _Receiver.last.kill()
        while not tame or job.error is None:
            if self._live.job is not None:
                self._live.job.resume()
            await asyncio.sleep(0.1)

    def _check_archive(self, job: RemoteBackup, content: bytes, parent: _Made | None) -> None:
        index = ArchiveIndex(lambda at, size: content[at : at + size], len(content), "archive", allow_delta=True)
        view = ArchiveView([index, *(parent.view.archives if parent is not None else ())])
        frozen = {name: one.frozen for name, one in self._filters.items()}
        for drive in view.header.drives:
            clusters = range(drive.clusters)
            found = b"".join(view.read_cluster(drive.drive_id, cluster) for cluster in clusters)[: drive.size]
            wanted = bytearray(frozen[drive.name])
            for one in job.lost:
                if one.drive == drive.name:
                    end = one.offset + one.length
                    wanted[one.offset : end] = found[one.offset : end]
                    self.count("lost")
            differ = [at for at in range(0, drive.size, 512) if found[at : at + 512] != wanted[at : at + 512]]
            assert not differ, (drive.name, drive.size, differ, job.ways, job.lost.as_json())
        made = _Made(view, frozen)
        self._made.append(made)
        self.count("done")
        self.count("known" if self._is_known(made) else "unknown")
        assert len(self._live._records._known) <= MOST_ARCHIVES

    def _is_known(self, made: _Made) -> bool:
        return any(known.reference == made.reference for known in self._live._records._known)

    def _check_ways(self, job: RemoteBackup, *, was_known: bool) -> None:
        for name, way in job.ways.items():
            self.count(way.way)
            if way.why is not None and "unchanged" in way.why:
                assert name in self._behind, way.why
                self.count("behind the back")
            elif was_known and way != DriveWay(BY_SERVER):
                assert way.why is not None and "cannot be told" in way.why and self.weather.faults
            elif not was_known:
                assert way == DriveWay(BY_DIGEST, UNKNOWN)
