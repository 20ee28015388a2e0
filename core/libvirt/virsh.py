"""libvirt, through its program virsh: no library of it is needed, and no version of one.

Each call is a process that dies with us, without a terminal, and with a bound on what it may say and how long it may
take. What was asked of libvirt's daemon is done all the same when the process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Sequence

from pybackup.core.errors import RequestError, SourceError
from pybackup.core.system.child_death import dying_with_us

from .english import in_english

ANSWER_SECONDS = 60.0
"""How long a call may take: libvirt itself waits for up to 30 seconds for another one on the same domain."""
MOST_SAID = 8 << 20
"""Bytes that virsh may print: the XML of a domain has a few thousand."""
MOST_REASON = 1000
"""Characters of its reason that are told."""
_DEFAULTS = ("VIRSH_DEFAULT_CONNECT_URI", "LIBVIRT_DEFAULT_URI")
"""By which virsh chooses, the first that is there."""
_URI = re.compile(r"([a-z]+)(?:\+([a-z0-9]+))?://([^/?]*)(/[^?]*)?(\?.*)?")


class VirshError(SourceError):
    """libvirt refuses; ``reason`` is what it says."""

    def __init__(self, doing: str, reason: str) -> None:
        super().__init__(f"cannot {doing}: {reason}")
        self.reason = reason


class NoAnswerError(VirshError):
    """There was no answer in time: what was asked may be done, and done later."""


class Virsh:
    """Fixed: the program, and the URI of the hypervisor, the one that virsh chooses where it is None."""

    def __init__(self, uri: str | None) -> None:
        """SourceError where virsh is not installed."""
        found = shutil.which("virsh")
        if found is None:
            raise SourceError(
                "the domains of libvirt need virsh, which is not installed (Debian's package libvirt-clients has it)"
            )
        self._program, self.uri = found, uri

    @classmethod
    async def connect(cls, uri: str | None) -> Virsh:
        """The hypervisor of this machine (RequestError for another one, SourceError).

        One of another machine is not even asked: that could take long, or want a password.
        """
        uri = uri or next(filter(None, map(os.environ.get, _DEFAULTS)), None)
        if uri is not None:
            refuse_remote(uri)
        virsh = cls(uri)
        chosen = (await virsh.ask("connect to libvirt", "uri")).strip()
        refuse_remote(chosen)
        return cls(chosen)

    async def ask(
        self, doing: str, command: str, *arguments: str, given: str | None = None, seconds: float = ANSWER_SECONDS
    ) -> str:
        """What a command prints (VirshError, NoAnswerError). ``given``: what it gets as its standard input.

        ``doing`` says what fails, behind "cannot".
        """
        code, said, complaint = await self._run([command, *arguments], given, doing, seconds)
        if code:
            raise VirshError(doing, reason_of(complaint) or f"virsh ended with the exit status {code}")
        return said.decode("utf-8", "surrogateescape")

    async def _run(
        self, arguments: Sequence[str], given: str | None, doing: str, seconds: float
    ) -> tuple[int, bytes, bytes]:
        connect = [] if self.uri is None else ["--connect", self.uri]
        try:
            process = await asyncio.create_subprocess_exec(
                *dying_with_us(self._program, "--quiet", *connect, *arguments),
                stdin=asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                env=in_english(),
            )
        except OSError as error:
            raise VirshError(doing, f"{self._program} cannot be started: {error.strerror or error}") from error
        try:
            async with asyncio.timeout(seconds):
                return await _conversation(process, None if given is None else given.encode(), doing)
        except TimeoutError:
            raise NoAnswerError(doing, f"libvirt does not answer within {seconds:g} s") from None
        finally:
            await _end(process)


async def _conversation(
    process: asyncio.subprocess.Process, given: bytes | None, doing: str
) -> tuple[int, bytes, bytes]:
    assert process.stdout is not None and process.stderr is not None
    if process.stdin is not None:
        with contextlib.suppress(ConnectionError):
            process.stdin.write(given or b"")
            await process.stdin.drain()
        process.stdin.close()
    said, complaint = await asyncio.gather(_read(process.stdout, doing), _read(process.stderr, doing))
    return await process.wait(), said, complaint


async def _read(stream: asyncio.StreamReader, doing: str) -> bytes:
    heard = bytearray()
    while part := await stream.read(1 << 16):
        heard += part
        if len(heard) > MOST_SAID:
            raise VirshError(doing, f"virsh says more than {MOST_SAID:,} bytes")
    return bytes(heard)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    # What nobody reads any more would keep asyncio from noticing the end.
    for stream in (process.stdout, process.stderr):
        while stream is not None and await stream.read(1 << 16):
            pass
    await process.wait()


def reason_of(complaint: bytes) -> str:
    """What virsh says on its standard error, as a clause."""
    lines = [line.removeprefix("error: ").strip() for line in complaint.decode(errors="replace").splitlines()]
    return ": ".join(line for line in lines if line)[:MOST_REASON]


def refuse_remote(uri: str) -> None:
    """RequestError where this is not QEMU's driver on this machine, whose disks and sockets can be reached."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise RequestError(f"{uri} is no URI of libvirt; write for example qemu:///system")
    driver, transport, host, path, _query = found.groups()
    if host or transport not in (None, "unix"):
        there = f"{driver}://{path or '/system'}"
        raise RequestError(
            f"{uri} is a libvirt of another machine, and disks are read where they are used: run pybackup there (with"
            f" {there}), and let it send the archive to a store (s3://, sftp://) or to a command"
            " ('|ssh HOST \"cat > FILE\"')"
        )
    if driver != "qemu":
        raise RequestError(f"{uri} is no QEMU: pybackup backs up the domains of qemu:///system and qemu:///session")
