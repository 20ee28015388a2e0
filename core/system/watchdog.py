"""A watchdog: a small process that outlives us, and puts in order what we would have, where we are killed.

Whoever changes something outside of this process that must not stay so (a guest's filesystems that are frozen, a
connection inside QEMU that somebody must read) starts one first, waits until it is ready(), and hands over what is
needed to undo the change *before* making it. When we die, by whatever it may be, the watchdog calls a function with
all that was handed over until then. In the end it is dismissed, and goes without having done anything.

    async with watched(undo, seconds=60) as watchdog:
        watchdog.hand_over("the guest is frozen", [agent.fileno()], within=15.0)
        ...

    def undo(notes: list[Note]) -> None: ...

``undo`` is a function of a module that can be imported; the module is imported at the start, so what is heavy (asyncio)
belongs into the function. It runs in a process without a terminal, whose standard output and error lead nowhere: let
it use syslog. It is called with what has been handed over, which may be nothing, if we die early; and it may be that
what it is to undo was not done yet, or has been undone already: a note is sent before, and we may die right after.

What holds: the process is in a session of its own, ignores the signals that a terminal or systemd sends to all, holds
no descriptor of ours but those handed over, so no pipeline waits for it, and stands in the root folder, so no
filesystem is busy because of it. It has ended when dismiss() returns.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence

from pybackup.core.tasks import uninterrupted

from . import watchdog_process
from .child_group import look_until
from .watchdog_process import IGNORED, Note

__all__ = ["Note", "Watchdog", "watched"]

READY_SECONDS = 10.0
"""How long it may take to start: 30 milliseconds on a machine that is idle."""
END_SECONDS = 5.0
"""How long it may take to go when it is dismissed; then it is killed."""


class Watchdog:
    """Fixed: the process and our end of the pair of sockets. Changing: whether it was dismissed."""

    def __init__(
        self, act: Callable[[list[Note]], None], *, seconds: int, look: Callable[[list[Note]], None] | None = None
    ) -> None:
        """Start it (OSError). ``act``: what it calls, which gets ``seconds`` to return, lest the process stays.

        ``look``: what it calls several times a second while we live, with what was handed over so far; a function of
        the same module, which must return at once.
        """
        if not sys.executable:
            raise FileNotFoundError("the path of the Python interpreter is not known")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._socket.setblocking(False)
                functions = {"module": act.__module__, "act": act.__qualname__, "look": look and look.__qualname__}
                self._send(path=_import_path(), functions=functions, seconds=seconds)
                self._process = _start(theirs.fileno(), f"for {os.getpid()}: {act.__module__}")
        except BaseException:
            self._socket.close()
            raise

    async def ready(self) -> None:
        """Return when it watches (OSError). It is dismissed if this fails."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                told = json.loads(await self._answer() or '{"failed": "it ended"}')
            if "failed" in told:
                raise ChildProcessError(f"the watchdog did not start: {told['failed']}")
        except BaseException as error:
            await uninterrupted(self.dismiss())
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"the watchdog was not ready within {READY_SECONDS:g} s") from None
            raise

    async def _answer(self) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, watchdog_process.MOST_BYTES)
        except ConnectionResetError:  # it ended without having read the order
            return b""

    def hand_over(self, text: str, descriptors: Sequence[int] = (), *, within: float | None = None) -> None:
        """From now on it knows this (OSError), and has descriptors of its own of what these are.

        ``within``: if it hears nothing more within so many seconds it acts although we live, for we may be suspended.
        OSError if it has acted already, or was killed.
        """
        self._send(descriptors, note=text, within=within)

    def _send(self, descriptors: Sequence[int] = (), **message: object) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._socket.sendmsg([json.dumps(message).encode()], rights, socket.MSG_NOSIGNAL)

    async def dismiss(self) -> None:
        """It is not needed any more, and has ended when this returns. Never raises; a second time nothing happens."""
        with contextlib.suppress(OSError):
            self._send(dismissed=True)
        self._socket.close()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await look_until(lambda: self._process.poll() is not None)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def leave(self) -> None:
        """Let it act now, whether we die or not; it is not waited for."""
        self._socket.close()
        # Somebody has to take note of its end.
        threading.Thread(target=self._process.wait, daemon=True).start()


def _import_path() -> list[str]:
    """Ours, for a process in another folder; what is no folder may mean something to a finder of modules."""
    return [os.path.abspath(one) if os.path.exists(one or ".") else one for one in sys.path]


def _start(fd: int, about: str) -> subprocess.Popen[bytes]:
    """Start the process (OSError); ``about`` can be seen in a list of processes."""
    # It inherits what is blocked, so that no signal can end it before it ignores them itself.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        return subprocess.Popen(
            [sys.executable, "-I", watchdog_process.__file__, about],
            stdin=fd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.asynccontextmanager
async def watched(act: Callable[[list[Note]], None], *, seconds: int) -> AsyncIterator[Watchdog]:
    """A watchdog that is ready (OSError), and is dismissed in the end, whatever may have happened."""
    watchdog = Watchdog(act, seconds=seconds)
    await watchdog.ready()
    try:
        yield watchdog
    finally:
        await uninterrupted(watchdog.dismiss())
