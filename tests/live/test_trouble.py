"""A guest writes during a backup whose archive is full, slow or gone, or whose source cannot be read: who suffers?"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from doubles import FaultyDevice
from nbd_peer import NbdPeer
from nbd_serving import run, serving, until

from pybackup.core.archive.create import ArchiveOptions, make_writer
from pybackup.core.archive.intake import Prepared
from pybackup.core.archive.stream import ArchiveStream
from pybackup.core.archive.writer import ArchiveWriter
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.cow.fleece_file import FleeceFile
from pybackup.core.cow.guest_copies import OnError
from pybackup.core.cow.old_data import OldData
from pybackup.core.device import CLUSTER_SIZE, BlockDevice, Buffer
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.errors import SourceError, TargetError, TargetFullError
from pybackup.core.jobs.backup import BackupJob, GuestPolicy
from pybackup.core.jobs.copying import Drive
from pybackup.core.jobs.walk import runs_of
from pybackup.core.places.kinds import LocalPath
from pybackup.core.sinks import Sink
from pybackup.core.sinks.stream import StreamSink
from pybackup.formats import nbd_wire as wire

CLUSTERS = 96
SIZE = CLUSTERS * CLUSTER_SIZE
OLD = random.Random(1).randbytes(SIZE)
NEW = b"new" * 1000


class MemorySink:
    """Keeps the archive, and is full after ``room`` bytes."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.name, self.room = "archive.vma", room
        self.content = bytearray()
        self.ended = ""

    async def begin(self) -> None:
        """Nothing to do."""

    async def write(self, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            self.content += buffer
        if len(self.content) > self.room:
            raise TargetFullError("cannot write archive.vma: no space is left")

    async def commit(self) -> None:
        self.ended += "commit"

    async def abort(self) -> None:
        self.ended += "abort"


class Gated:
    """A writer that takes nothing while its gate is shut: an archive so slow that it stands still."""

    def __init__(self, writer: ArchiveWriter) -> None:
        self._writer = writer
        self.gate = asyncio.Event()
        self.gate.set()

    async def take(self, drive_id: int, first: int, prepared: Prepared) -> None:
        await self.gate.wait()
        await self._writer.take(drive_id, first, prepared)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


class Scene:
    """A disk behind a filter, a backup of it, and a guest."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        folder: Path,
        policy: GuestPolicy,
        sink: Sink,
        device: BlockDevice | None = None,
        fleece: FleeceFile | None = None,
        speed: int = 1,
    ) -> None:
        self.pool, self.folder, self.sink = pool, folder, sink
        self.memory = MemoryDevice(OLD)
        self.disk = CopyBeforeWrite(device or self.memory)
        writer = Gated(make_writer([("disk", SIZE)], [], ArchiveOptions(bytes(16), 0, level=None), sink, pool))
        self.gate = writer.gate
        old_data = OldData(policy.buffer, fleece)
        drives = [Drive(1, "disk", self.disk)]
        # So slow that after the first pieces nearly everything is the guest's business.
        self.job = BackupJob(drives, writer, pool, policy=policy, old_data=old_data, speed=speed)

    async def write(self, cluster: int) -> int:
        """The guest overwrites the start of a cluster; NBD's errno."""
        async with serving(str(self.folder / "nbd.sock"), self.disk):
            peer = await NbdPeer.connect(str(self.folder / "nbd.sock"), "disk")
            reply = await peer.ask(wire.CMD_WRITE, cluster * CLUSTER_SIZE, data=NEW)
            await peer.leave()
        found = await self.disk.pread(cluster * CLUSTER_SIZE, len(NEW))
        assert found == (OLD[cluster * CLUSTER_SIZE :][: len(NEW)] if reply.error else NEW)
        return reply.error

    def archived(self) -> bytes:
        """The disk in the archive, from what the plain VMA says."""
        assert isinstance(self.sink, MemorySink) and self.sink.ended == "commit"
        content = bytes(self.sink.content)
        position = 0

        def read(size: int) -> bytes:
            nonlocal position
            position += size
            return content[position - size : position]

        stream = ArchiveStream(read, "archive.vma", self.pool)
        disk = bytearray(SIZE)
        for checked in stream:
            for one in runs_of(checked.extent):
                if one.buffers is not None:
                    data = b"".join(one.buffers)
                    disk[one.offset : one.offset + len(data)] = data
        return bytes(disk)


POLICIES = list(OnError)
SMALL = 4 * CLUSTER_SIZE


def policy(on_error: OnError, timeout: float | None = None, buffer: int = SMALL) -> GuestPolicy:
    return GuestPolicy(on_error, buffer, timeout)


async def fails(job: BackupJob, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        await job.run()


@pytest.mark.parametrize("on_error", POLICIES)
def test_a_full_archive_fails_the_backup_and_never_a_guest(tmp_path: Path, on_error: OnError) -> None:
    async def test(pool: ThreadPoolExecutor) -> None:
        sink = MemorySink(room=SIZE // 2)
        scene = Scene(pool, tmp_path, policy(on_error), sink, speed=0)
        backup = asyncio.create_task(fails(scene.job, TargetFullError, "no space is left"))
        await scene.job.frozen.wait()
        for cluster in range(CLUSTERS - 1, 0, -7):
            assert await scene.write(cluster) == 0
        await backup
        assert sink.ended == "abort" and not scene.disk.is_armed
        assert await scene.write(3) == 0

    with ThreadPoolExecutor(2) as pool:
        run(test(pool))


@pytest.mark.parametrize("on_error", POLICIES)
def test_a_closed_pipe_fails_the_backup_and_never_a_guest(tmp_path: Path, on_error: OnError) -> None:
    async def test(pool: ThreadPoolExecutor) -> None:
        reading, writing = os.pipe()
        scene = Scene(pool, tmp_path, policy(on_error), StreamSink(LocalPath(f"/dev/fd/{writing}")), speed=0)
        backup = asyncio.create_task(fails(scene.job, TargetError, "Broken pipe"))
        await scene.job.frozen.wait()
        assert await scene.write(CLUSTERS - 1) == 0
        os.close(reading)
        await backup
        os.close(writing)
        assert not scene.disk.is_armed and await scene.write(3) == 0

    with ThreadPoolExecutor(2) as pool:
        run(test(pool))


@pytest.mark.parametrize("on_error", POLICIES)
def test_a_slow_archive_and_the_time_a_guest_waits(tmp_path: Path, on_error: OnError) -> None:
    """With the archive shut guests fill the memory; the next write waits for the time allowed, and no longer."""

    async def test(pool: ThreadPoolExecutor) -> None:
        sink = MemorySink()
        scene = Scene(pool, tmp_path, policy(on_error, timeout=0.01), sink)
        if on_error is OnError.BREAK_BACKUP:
            backup = asyncio.create_task(fails(scene.job, TargetError, "the archive is too slow"))
        else:
            backup = asyncio.create_task(scene.job.run())
        await scene.job.frozen.wait()
        scene.gate.clear()
        refused = []
        for cluster in range(CLUSTERS - 1, 0, -1):
            if error := await scene.write(cluster):
                refused.append((cluster, error))
            if len(refused) == 3 or backup.done():
                break
        scene.gate.set()
        if on_error is OnError.BREAK_BACKUP:
            assert not refused
        else:
            assert [error for _, error in refused] == [wire.NBD_EIO] * 3
            # There is room again: the guest goes on, also where it was refused, and the backup is whole.
            scene.job.set_speed(0)
            assert await scene.write(refused[0][0]) == 0
        await backup
        assert not scene.disk.is_armed
        if on_error is OnError.BREAK_GUEST:
            assert scene.archived() == OLD

    with ThreadPoolExecutor(2) as pool:
        run(test(pool))


@pytest.mark.parametrize("on_error", POLICIES)
def test_old_data_that_cannot_be_read(tmp_path: Path, on_error: OnError) -> None:
    async def test(pool: ThreadPoolExecutor) -> None:
        scene = Scene(pool, tmp_path, policy(on_error), MemorySink())
        faulty = FaultyDevice(scene.memory)
        scene.disk.child = faulty
        scene.job._copying[0].source = faulty
        if on_error is OnError.BREAK_BACKUP:
            backup = asyncio.create_task(fails(scene.job, SourceError, "cannot read drive disk at byte"))
        else:
            backup = asyncio.create_task(scene.job.run())
        await scene.job.frozen.wait()
        scene.job.pause()
        await until(lambda: not scene.job._copying[0].claims._inflight)
        faulty._maps["read"] = "r" * faulty.calls["read"] + "E"
        reads = faulty.calls["read"]
        assert await scene.write(CLUSTERS - 1) == (wire.NBD_EIO if on_error is OnError.BREAK_GUEST else 0)
        assert faulty.calls["read"] > reads, "the fault was not met"
        scene.job.set_speed(0)
        scene.job.resume()
        await backup
        assert await scene.write(CLUSTERS - 1) == 0
        if on_error is OnError.BREAK_GUEST:
            assert scene.archived() == OLD

    with ThreadPoolExecutor(2) as pool:
        run(test(pool))


def test_the_fleecing_file_takes_what_memory_cannot_is_bounded_and_goes(tmp_path: Path) -> None:
    folder = tmp_path / "fleece"
    folder.mkdir()

    async def test(pool: ThreadPoolExecutor) -> None:
        sink = MemorySink()
        limit = 40 * CLUSTER_SIZE
        fleece = FleeceFile(str(folder), limit)
        scene = Scene(pool, tmp_path, policy(OnError.BREAK_BACKUP), sink, fleece=fleece)
        backup = asyncio.create_task(scene.job.run())
        await scene.job.frozen.wait()
        scene.gate.clear()
        for cluster in range(CLUSTERS - 1, CLUSTERS - 36, -1):
            assert await scene.write(cluster) == 0
        info = os.fstat(fleece._fd)
        assert 0 < info.st_blocks * 512 <= limit and info.st_size <= limit and info.st_nlink == 0
        assert not list(folder.iterdir())
        # The file is full some day, too: then the guest waits, and goes on when the archive does.
        rest = asyncio.create_task(write_all(scene, range(CLUSTERS - 36, 0, -1)))
        await until(lambda: scene.job._old_data._waiting or rest.done())
        assert not rest.done()
        scene.gate.set()
        await rest
        scene.job.set_speed(0)
        await backup
        assert os.fstat(fleece._fd).st_size <= limit
        await fleece.close()
        assert scene.archived() == OLD

    with ThreadPoolExecutor(2) as pool:
        run(test(pool))


async def write_all(scene: Scene, clusters: Sequence[int]) -> None:
    for cluster in clusters:
        assert await scene.write(cluster) == 0


def test_a_read_error_is_the_guests_own_and_no_copy_is_lost(tmp_path: Path) -> None:
    """With copy-on-read: what a guest cannot read fails for it alone."""

    async def test(pool: ThreadPoolExecutor) -> None:
        scene = Scene(pool, tmp_path, GuestPolicy(copy_on_read=True), MemorySink())
        faulty = FaultyDevice(scene.memory)
        scene.disk.child = faulty
        scene.job._copying[0].source = faulty
        backup = asyncio.create_task(scene.job.run())
        await scene.job.frozen.wait()
        scene.job.pause()
        await until(lambda: not scene.job._copying[0].claims._inflight)
        # The filter's attempt to read whole clusters fails, and then the guest's own.
        faulty._maps["read"] = "r" * faulty.calls["read"] + "EE"
        with pytest.raises(OSError) as failure:
            await scene.disk.pread(SIZE - 100, 100)
        assert failure.value.errno == errno.EIO
        assert await scene.disk.pread(SIZE - 100, 100) == OLD[-100:]
        scene.job.set_speed(0)
        scene.job.resume()
        await backup
        assert scene.archived() == OLD

    with ThreadPoolExecutor(2) as pool:
        run(test(pool))
