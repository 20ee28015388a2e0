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
from live.processes import DEADLINE, PYBACKUP, until

from pybackup.core.errors import PybackupError
from pybackup.core.live.control_client import ask


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


SERVERS = [
    Served("serve", "--control", "control.sock", "--socket", "nbd.sock"),
    Served("serve-in-a-private-folder"),
    ServerOfBackup("serve-during-a-backup", "--control", "control.sock", "--socket", "nbd.sock"),
    BackedUpLive("run-serve", "run", "--quiet", "serve:control.sock"),
    BackedUpLive("run-serve-force", "run", "--quiet", "serve:control.sock", old=OLD),
    BackedUpLive("ctl-backup", "ctl", "control.sock", "backup"),
]
