"""A database in use is backed up ten times: each backup is what a power failure at its instant would have left."""

from __future__ import annotations

import itertools
import random
import sqlite3
import struct
import threading
from pathlib import Path

import apsw
from live.nbd_client import Nbd
from live.processes import call, restored, served
from live.sqlite_disk import DISK_SIZE, NAME, DiskVfs, extract

WITNESS = struct.Struct("<QQ")
"""On a disk of its own: the last transaction that was begun, and the last whose commit has returned."""
BACKUPS = 10


def content_of(number: int) -> bytes:
    draw = random.Random(number)
    return draw.randbytes(draw.randrange(1, 9000))


class Database(threading.Thread):
    """Commits numbered transactions until it is stopped, and notes on the witness disk how far it is."""

    def __init__(self, socket: str) -> None:
        super().__init__()
        self._disk, self._witness = Nbd(socket, "disk"), Nbd(socket, "witness")
        self._stopping = threading.Event()
        self.failure: BaseException | None = None
        self.committed = 0

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.failure = error

    def _work(self) -> None:
        vfs = DiskVfs(self._disk)
        database = apsw.Connection(NAME, vfs=vfs.name)
        for pragma in ("locking_mode=exclusive", "journal_mode=wal", "synchronous=full", "wal_autocheckpoint=50"):
            database.execute(f"PRAGMA {pragma}")
        assert database.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
        database.execute("CREATE TABLE IF NOT EXISTS log (number INTEGER PRIMARY KEY, content BLOB)")
        database.execute("CREATE TABLE IF NOT EXISTS last (number INTEGER)")
        for number in itertools.count(1):
            if self._stopping.is_set():
                break
            self._witness.write(0, WITNESS.pack(number, number - 1))
            with database:
                database.execute("DELETE FROM last")
                database.execute("INSERT INTO log VALUES (?, ?)", (number, content_of(number)))
                database.execute("DELETE FROM log WHERE number <= ?", (number - 200,))
                database.execute("INSERT INTO last VALUES (?)", (number,))
            self._witness.write(0, WITNESS.pack(number, number))
            self.committed = number
        database.close()

    def __enter__(self) -> Database:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()
        self._disk.close()
        self._witness.close()
        if self.failure is not None:
            raise self.failure


def test_each_backup_holds_exactly_what_was_committed(tmp_path: Path) -> None:
    for name, size in (("disk", DISK_SIZE), ("witness", 65_536)):
        with (tmp_path / f"{name}.img").open("wb") as file:
            file.truncate(size)
    with served(tmp_path, str(tmp_path / "disk.img"), str(tmp_path / "witness.img")) as server:
        with Database(server.nbd) as database:
            for number in range(BACKUPS):
                before = database.committed
                # Every other one slowly, so that the guest overwrites much of what is not copied yet.
                speed = "8M" if number % 2 else "0"
                call("run", f"serve:{server.control}", str(tmp_path / f"{number}.vma"), "--speed", speed)
                assert database.committed > before
    found = [check(tmp_path / f"{number}.vma", tmp_path / f"out{number}") for number in range(BACKUPS)]
    assert found == sorted(found) and found[-1] > found[0]


def check(archive: Path, folder: Path) -> int:
    """The transactions in an archive, which must be those that the witness saw, and all of their data."""
    disks = restored(archive, folder)
    begun, committed = WITNESS.unpack_from(disks["witness"])
    database = sqlite3.connect(extract(disks["disk"], folder / "files"))
    try:
        if not database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            assert committed == 0
            return 0
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = database.execute("SELECT number, content FROM log ORDER BY number").fetchall()
        last = [number for (number,) in database.execute("SELECT number FROM last")]
    finally:
        database.close()
    there = last[0] if last else 0
    assert committed <= there <= begun
    numbers = range(max(1, there - 199), there + 1)
    assert rows == [(number, content_of(number)) for number in numbers]
    return there
