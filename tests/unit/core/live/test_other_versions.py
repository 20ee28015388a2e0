"""A server and a client of different versions, and requests that nobody of ours makes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from virtual_time import InlineExecutor
from wild import Weather, WildSink

from pybackup.core.archive.delta import DeltaWriter
from pybackup.core.archive.index import ArchiveIndex
from pybackup.core.archive.view import ArchiveView
from pybackup.core.archive.writer import ArchiveWriter
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.jobs.backup import GuestPolicy
from pybackup.core.jobs.changes import BY_DIGEST, DriveWay
from pybackup.core.live import client, cluster_sender, control
from pybackup.core.live.client import OTHER_VERSION, RemoteBackup
from pybackup.core.live.control import ControlSocket
from pybackup.core.live.control_client import connect
from pybackup.core.live.server import BackupRequest, LiveServer
from pybackup.formats.archive import ArchiveEncoder
from pybackup.formats.vma import DriveInfo, Header

SIZE = 5 * 65536 + 512
CONTENT = Random(1).randbytes(SIZE)
DRIVES = [("d", SIZE)]
POOL = InlineExecutor(1)


class Served:
    """A server of one disk, and backups of it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "control.sock")
        self.disk = CopyBeforeWrite(MemoryDevice(CONTENT))
        self.live = LiveServer({"d": self.disk}, policy=GuestPolicy(), tool="t")
        self.control = ControlSocket(self.path, self.live, dict, asyncio.Event())

    async def backup(self, parent: ArchiveView | None, asked: dict[str, Any]) -> tuple[RemoteBackup, ArchiveView]:
        sink = WildSink(Weather(Random(1)))
        drives = tuple(DriveInfo(number, *drive) for number, drive in enumerate(DRIVES, 1))
        encoder = ArchiveEncoder(Header(bytes(16), 0, drives, is_delta=parent is not None), level=1)
        if parent is None:
            writer, ways = ArchiveWriter(encoder, sink, POOL, threads=1), {}
        else:
            writer, ways = DeltaWriter(encoder, sink, POOL, parent, {}, threads=1), {"d": DriveWay(BY_DIGEST)}
        job = RemoteBackup(self.path, asked, DRIVES, writer, POOL, ways=ways)
        await job.run()
        content = bytes(sink.content)
        index = ArchiveIndex(lambda at, size: content[at : at + size], len(content), "archive", allow_delta=True)
        return job, ArchiveView([index, *(parent.archives if parent is not None else ())])


def test_a_server_that_knows_no_records_makes_deltas_all_the_same(tmp_path: Path) -> None:
    """It ignores what it does not know in a request, and tells of no ways."""

    def drop_ways(sender: Any, about: dict[str, Any]) -> Any:
        about = {**about, "drives": [{"id": 1, "name": "d", "size": SIZE}]}
        return finish(sender, about)

    async def main() -> None:
        served = Served(tmp_path)
        _, parent = await served.backup(None, {"uuid": "00" * 16})
        assert served.disk.write_now(70_000, b"new")
        job, view = await served.backup(
            parent, {"uuid": "00" * 16, "base": {"uuid": "00" * 16, "digests": ["11" * 16]}}
        )
        assert job.ways == {"d": DriveWay(BY_DIGEST, OTHER_VERSION)}
        assert view.read_cluster(1, 1)[70_000 - 65536 :][:3] == b"new"
        assert served.live.status()["archives"] == []
        await served.control.close()

    finish = cluster_sender.ClusterSender.finish
    with (
        patch.object(client, "_lower_priority"),
        patch.object(control, "_backup_request", lambda request: BackupRequest()),
        patch.object(cluster_sender.ClusterSender, "finish", drop_ways),
    ):
        asyncio.run(main())


def test_a_client_that_knows_no_records_is_told_of_none(tmp_path: Path) -> None:
    async def main() -> None:
        served = Served(tmp_path)
        _, view = await served.backup(None, {})
        assert "takes_identity" not in view.newest.directory.about
        assert served.live.status()["archives"] == [] and served.live.status()["drives"][0]["changed"] is None
        await served.control.close()

    with patch.object(client, "_lower_priority"):
        asyncio.run(main())


@pytest.mark.parametrize(
    "asked",
    [
        {"uuid": 5},
        {"uuid": "00" * 15},
        {"uuid": "zz" * 16},
        {"base": []},
        {"base": {}},
        {"base": {"uuid": "00" * 16}},
        {"base": {"uuid": None, "digests": []}},
        {"base": {"uuid": "00" * 16, "digests": "00" * 16}},
        {"base": {"uuid": "00" * 16, "digests": [None]}},
    ],
)
def test_what_names_no_archive_is_refused_in_a_sentence(tmp_path: Path, asked: dict[str, Any]) -> None:
    async def main() -> None:
        served = Served(tmp_path)
        with connect(served.path) as sock:
            sock.setblocking(False)
            sock.send(json.dumps({"command": "backup", **asked}).encode() + b"\n")
            answer = json.loads(await asyncio.get_running_loop().sock_recv(sock, 65536))
        assert answer["exit_code"] == 2 and ("hexadecimal" in answer["error"] or "base is" in answer["error"])
        await served.control.close()

    asyncio.run(main())
