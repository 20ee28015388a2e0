"""Kills around `pybackup serve`: of the server, of who asks it for a backup, and of the server during one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable

from archives import decode
from kills.archives_made import OLD
from kills.box import Box, Ended
from kills.situations import Situation, disk
from live.nbd_client import Nbd
from live.processes import DEADLINE, PYBACKUP, until

from pybackup.core.errors import PybackupError
from pybackup.core.live.control_client import ask
from pybackup.formats.errors import FormatError


def is_whole(box: Box, old: bytes | None) -> bool:
    """Whether the archive of a live backup is there. It tells when it was made, so its bytes are not known before."""
    found = box.content("x.vma.zst")
    if found == old:
        return False
    assert found is not None, "the archive that was there is gone"
    assert decode(found).drives == {"a": disk(1)}
    return True


class Served(Situation):
    """A server that is asked to end when it is ready."""

    def __init__(self, name: str, *options: str) -> None:
        super().__init__(name)
        self._options = options

    def lay(self, box: Box) -> None:
        box.source("a.img", disk(1))

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        return [PYBACKUP, "serve", *self._options, "a=a.img"]

    def meanwhile(self, box: Box, runs: Callable[[], bool]) -> None:
        if control := self.wait_until_ready(box, runs):
            with contextlib.suppress(PybackupError):
                ask(control, {"command": "quit"})

    @staticmethod
    def wait_until_ready(box: Box, runs: Callable[[], bool]) -> str | None:
        """The control socket, in the box's folder; None when the server has ended."""
        while runs():
            for line in box.printed().splitlines(keepends=True):
                if line.startswith("serve:") and line.endswith("\n"):
                    return os.path.join(box.work, line.removeprefix("serve:").strip())
            os.sched_yield()
        return None

    def is_there(self, box: Box, ended: Ended) -> bool:
        return True


class ServerOfBackup(Served):
    """The server is killed while somebody backs up its disks: there is a whole archive, or none."""

    results = frozenset({"x.vma.zst"})

    def before(self, box: Box) -> None:
        box.put("x.vma.zst", None)

    def meanwhile(self, box: Box, runs: Callable[[], bool]) -> None:
        control = self.wait_until_ready(box, runs)
        if control is None:
            return
        command = [PYBACKUP, "run", "--quiet", "--force", f"serve:{control}", "x.vma.zst"]
        client = subprocess.run(
            command, cwd=box.work, env=box.environment, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        assert "Traceback" not in client.stderr, client.stderr
        assert (client.returncode == 0) == is_whole(box, None), client.stderr
        with contextlib.suppress(PybackupError):
            ask(control, {"command": "quit"})

    def is_there(self, box: Box, ended: Ended) -> bool:
        return is_whole(box, None)

    def hold(self, box: Box, ended: Ended) -> None:
        box.wait_for_quiet()
        box.check_sources()
        self.is_there(box, ended)


class BackedUpLive(Situation):
    """Who asks for the backup is killed: the server goes on as if nothing had been."""

    results = frozenset({"x.vma.zst", "control.sock", "nbd.sock"})

    def __init__(self, name: str, *command: str, old: bytes | None = None) -> None:
        super().__init__(name)
        self._command, self._old = command, old

    def lay(self, box: Box) -> None:
        box.source("a.img", disk(1))
        box.stand(PYBACKUP, "serve", "--control", "control.sock", "--socket", "nbd.sock", "a=a.img")
        box.place = str(box.path("control.sock"))
        until(lambda: box.path("control.sock").exists())

    def before(self, box: Box) -> None:
        box.put("x.vma.zst", self._old)

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        force = ["--force"] if self._old is not None or (again and box.path("x.vma.zst").exists()) else []
        return [PYBACKUP, *self._command, *force, "x.vma.zst"]

    def is_there(self, box: Box, ended: Ended) -> bool:
        return is_whole(box, self._old)

    def hold(self, box: Box, ended: Ended) -> None:
        super().hold(box, ended)
        until(lambda: ask(box.place, {"command": "status"})["job"] is None)
        assert not any(drive["armed"] for drive in ask(box.place, {"command": "status"})["drives"])


class Recovered(Served):
    """A live restore: what a guest's flush was answered for is never lost, and the same command goes on."""

    results = frozenset({"new.raw"})
    flushed_at, written_at = 70_000, 300_000

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._flushed: list[bytes] = []
        self._written: list[bytes] = []

    def lay(self, box: Box) -> None:
        box.source("a.img", disk(1))
        box.call("run", "--quiet", "a.img", "x.vma.zst")
        box.source("x.vma.zst")

    def before(self, box: Box) -> None:
        for name in ("new.raw", "new.raw.restoring", "new.raw.restoring.new"):
            box.put(name, None)
        self._flushed = [disk(1)[self.flushed_at :][:5000]]
        self._written = [disk(1)[self.written_at :][:5000]]

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        if again and not box.path("new.raw.restoring").exists():
            self.before(box)  # it was complete, or had not begun: no live restore replaces it
        where = ["--control", "control.sock", "--socket", "nbd.sock"]
        return [PYBACKUP, "restore", "--live", "--quiet", "--speed", "1M", *where, "x.vma.zst", "new.raw"]

    def meanwhile(self, box: Box, runs: Callable[[], bool]) -> None:
        while runs() and not box.path("nbd.sock").exists():
            os.sched_yield()
        control = str(box.path("control.sock"))
        while runs():
            # The connection may be lost at any place.
            with contextlib.suppress(OSError, AssertionError, PybackupError, FormatError):
                self._work_on(box)
                ask(control, {"command": "speed", "speed": 0})
                while ask(control, {"command": "status"})["restore"]["state"] != "concluded":
                    os.sched_yield()
                ask(control, {"command": "quit"})
                return

    def _work_on(self, box: Box) -> None:
        with Nbd(str(box.path("nbd.sock")), "a") as guest:
            for place, known in ((self.written_at, self._written), (self.flushed_at, self._flushed)):
                known.append(os.urandom(5000))
                guest.write(place, known[-1])
            guest.flush()
            del self._flushed[:-1], self._written[:-1]
            self._written.append(os.urandom(5000))
            guest.write(self.written_at, self._written[-1])

    def is_there(self, box: Box, ended: Ended) -> bool:
        found = box.content("new.raw")
        if not found or box.content("new.raw.restoring") is not None:
            return False
        expected = bytearray(disk(1))
        for place, known in ((self.flushed_at, self._flushed), (self.written_at, self._written)):
            told = found[place : place + 5000]
            assert told in known, f"what was written at {place} is lost"
            expected[place : place + 5000] = told
        assert found == expected, "the disk is not the archive's with what was written"
        return True

    def again(self, box: Box) -> None:
        """Those of earlier games were killed with their sockets."""
        super().again(box)
        assert self._written[-1] in (box.content("new.raw") or b"")


SERVERS = [
    Recovered("restore-live"),
    Served("serve", "--control", "control.sock", "--socket", "nbd.sock"),
    Served("serve-in-a-private-folder"),
    ServerOfBackup("serve-during-a-backup", "--control", "control.sock", "--socket", "nbd.sock"),
    BackedUpLive("run-serve", "run", "--quiet", "serve:control.sock"),
    BackedUpLive("run-serve-force", "run", "--quiet", "serve:control.sock", old=OLD),
    BackedUpLive("ctl-backup", "ctl", "control.sock", "backup"),
]
