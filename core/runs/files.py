"""Files out of an archive's disks, by libguestfs: another kernel mounts what a guest wrote, in a machine of its own.

guestfish does that on exports of ours, read-only. What it prints are names that a guest has chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from pybackup.core.archive.chain import ParentSearch
from pybackup.core.archive.open_disks import open_disks
from pybackup.core.errors import PybackupError, RequestError, TargetError
from pybackup.core.nbd.server import NbdServer
from pybackup.core.places.kinds import ArchivePlace, HistoryPlace
from pybackup.core.system.child_death import dying_with_us
from pybackup.core.system.private_folder import private_folder

PROGRAM = "guestfish"
MOST_PRINTED = 64 << 20
"""Bytes of names: a folder with more of them is none that anybody lists."""
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class FilesRequest:
    """Which disks are looked into, and which filesystem of theirs: None for all of the guest's, as it mounts them."""

    archive: ArchivePlace
    device: str | None = None
    drives: Sequence[str] = ()
    parents: Sequence[HistoryPlace] = ()


def find_guestfish() -> str:
    """Its path (RequestError)."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise RequestError(
            f"files come out of a disk by {PROGRAM}, which is not installed (Debian's package libguestfs-tools has it)"
        )
    return found


async def filesystems(request: FilesRequest) -> dict[str, str]:
    """The filesystems on the disks, by their devices: those of partitions and of LVM (PybackupError)."""
    printed = await _guestfish(request, [], ["run", ":", "list-filesystems"])
    rows = (line.partition(": ") for line in printed.decode("utf-8", "surrogateescape").splitlines())
    return {device: kind for device, _, kind in rows}


async def names_in(request: FilesRequest, path: str) -> list[str]:
    """What a folder holds (PybackupError)."""
    printed = await _guestfish(request, _mounted(request), ["ls0", _checked(path), "-"])
    return sorted(filter(None, printed.decode("utf-8", "surrogateescape").split("\0")))


async def listing_of(request: FilesRequest, path: str) -> list[str]:
    """A line for each file of a folder, or for a file, as `ls -la` writes it (PybackupError)."""
    printed = await _guestfish(request, _mounted(request), ["ll", _checked(path)])
    return printed.decode("utf-8", "surrogateescape").splitlines()


async def copy_out(request: FilesRequest, path: str, folder: str) -> str:
    """Copy a file, or a folder with all that is in it, into a folder of the host, where nothing has its name yet.

    Its path there. TargetError where that cannot be; nothing is left of what was not copied whole.
    """
    name = os.path.basename(_checked(path).rstrip("/"))
    if not name:
        raise RequestError("name a file or a folder of the disk to be copied")
    target = os.path.join(folder, name)
    if os.path.lexists(target):
        raise TargetError(f"{target} exists already")
    try:
        partial = tempfile.mkdtemp(prefix=".pybackup-files-", dir=folder)
    except OSError as error:
        raise TargetError(f"cannot write into {folder}: {error.strerror}") from error
    try:
        await _guestfish(request, _mounted(request), ["copy-out", path, partial])
        try:
            if os.path.lexists(target):
                raise TargetError(f"{target} exists already")
            os.rename(os.path.join(partial, name), target)
        except OSError as error:
            raise TargetError(f"cannot make {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _checked(path: str) -> str:
    """A path that guestfish takes for nothing else (RequestError)."""
    if not path.startswith("/") or "\0" in path:
        raise RequestError(f"{path!r}: name a path in the guest that begins with a slash")
    return path


def _mounted(request: FilesRequest) -> list[str]:
    if request.device is None:
        return ["--inspector"]
    if not request.device.startswith("/dev/") or ":" in request.device:
        raise RequestError(f"{request.device!r} is no device of a guest, such as /dev/sda1 or /dev/vg/root")
    return ["--mount", f"{request.device}:/"]


def arguments(exports: Sequence[str], socket: str, mounted: Sequence[str], words: Sequence[str]) -> list[str]:
    """Of guestfish. The format is said, for a guest may have written another's header to its disk."""
    disks = [word for name in exports for word in ("--add", f"nbd:///{quote(name, safe='')}?socket={quote(socket)}")]
    return ["--ro", "--format=raw", *disks, *mounted, "--", *words]


async def _guestfish(request: FilesRequest, mounted: Sequence[str], words: Sequence[str]) -> bytes:
    """What a command of guestfish prints."""
    program = find_guestfish()
    archive = open_disks(request.archive, ParentSearch(request.parents), held=True)
    try:
        missing = [name for name in request.drives if name not in archive.drives]
        if missing:
            raise RequestError(f"{request.archive} has no drive {missing[0]!r}; it has {', '.join(archive.drives)}")
        with private_folder() as folder:
            socket = os.path.join(folder, "nbd.sock")
            nbd = NbdServer(archive.drives)
            try:
                await nbd.start_unix(socket)
                exports = request.drives or list(archive.drives)
                return await _run([program, *arguments(exports, socket, mounted, words)])
            finally:
                await nbd.close()
    finally:
        archive.stop()
        await archive.close()


async def _run(command: Sequence[str]) -> bytes:
    """What it prints (PybackupError with its reason where it fails)."""
    process = await asyncio.create_subprocess_exec(
        *dying_with_us(*command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        # Without libvirt, which might not run, and would start the machine as another user.
        env={"LIBGUESTFS_BACKEND": "direct", **os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        said = asyncio.create_task(_bounded(process.stderr))
        printed = await _bounded(process.stdout)
        reason = await said
        code = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if code:
        lines = reason.decode("utf-8", "replace").splitlines()
        told = next((line for line in lines if "error:" in line), lines[0] if lines else f"exit status {code}")
        raise PybackupError(f"{PROGRAM} has failed: {told.partition('error: ')[2] or told}")
    return printed


async def _bounded(stream: asyncio.StreamReader) -> bytes:
    content = bytearray()
    while part := await stream.read(CHUNK):
        content += part[: MOST_PRINTED - len(content)]
    return bytes(content)
