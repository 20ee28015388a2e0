"""Makes new images of any format that QEMU knows, and checks what is there, with qemu-img."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
from collections.abc import Sequence

from pybackup.core.errors import Advice, SourceError, TargetError, UnreadableError
from pybackup.core.system.child_death import dying_with_us
from pybackup.core.system.private_folder import private_folder

from .programs import MOST_SAID, find_program, qemu_failure, reason_of

_OPTIONS = {
    # Else the size is that of the nearest number of cylinders, heads and sectors.
    "vpc": "force_size=on",
}

_SOUND, _FAILED, _LEAKS, _NO_CHECK = 0, 1, 3, 63
"""Exit codes of qemu-img check; leaked clusters harm nobody, and some formats have no check."""
_UNCLOSED = (
    rb"ERROR cluster \d+ refcount=0 reference=1",
    rb"ERROR OFLAG_COPIED data cluster: l2_entry=[0-9a-f]+ refcount=0",
    rb"Leaked cluster \d+ refcount=\d+ reference=\d+",
    rb"ERROR image was not closed correctly",
    rb"ERROR space leaked at the end of the image \d+",
)
"""What the check finds in an image that was only not closed: counters that QEMU makes anew when it opens it."""


async def check_image(path: str, options: str, unclosed: bool = False) -> bool:
    """Refuse an image whose tables are damaged (SourceError, BusyError); whether clusters are lost to all tables.

    ``options``: the image, in QEMU's words; ``path``: what it is called. ``unclosed``: it says that it was not closed.
    """
    program = find_program("qemu-img", path, SourceError)
    try:
        passed_over = _UNCLOSED if unclosed else ()
        code, said = await _run(program, "check", "-q", "--image-opts", options, passed_over=passed_over)
    except OSError as error:
        raise SourceError(f"cannot check {path}: {error.strerror or error}") from error
    if code in (_SOUND, _LEAKS, _NO_CHECK) or (unclosed and code != _FAILED and not said):
        return code == _LEAKS
    reason = reason_of(said)
    if code == _FAILED and "lock" in reason:
        raise qemu_failure(f"cannot check {path}", reason, SourceError)
    if os.strerror(errno.EIO) in reason:
        raise UnreadableError(f"cannot check {path}: {reason}")
    damage = f"qemu-img check says: {reason}" if reason else "qemu-img check finds errors in it"
    raise SourceError(f"{path} is damaged: {damage}", advice=Advice.RAW_DAMAGE_AND_ALL)


async def create_image(file: str, image_format: str, size: int, *, name: str) -> None:
    """Make the existing, empty ``file`` an image of ``size`` bytes, all zeros (TargetError, BusyError).

    ``name`` is the name it will have: some formats have their own name inside.
    """
    program = find_program("qemu-img", f"{name}: the format {image_format}", TargetError)
    options = ["-o", _OPTIONS[image_format]] if image_format in _OPTIONS else []
    doing = f"cannot create {name}"
    try:
        with private_folder() as folder:
            # An absolute path: what stands before a colon in it is no protocol.
            link = os.path.join(folder, os.path.basename(name))
            os.symlink(os.path.abspath(file), link)
            code, said = await _run(program, "create", "-q", "-f", image_format, *options, link, str(size))
    except OSError as error:
        raise TargetError(f"{doing}: {error.strerror or error}") from error
    if code:
        raise qemu_failure(doing, reason_of(said, without=f"{link}: "), TargetError)


async def _run(*command: str, passed_over: Sequence[bytes] = ()) -> tuple[int, bytes]:
    """Run a program; its exit code and the beginning of its standard error.

    Lines that are one of ``passed_over``, regular expressions, are not counted. It dies with us, and is in a session of
    its own, so that a Ctrl-C in the terminal is ours alone.
    """
    process = await asyncio.create_subprocess_exec(
        *dying_with_us(*command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    said = asyncio.create_task(_heard(process.stderr, passed_over))
    try:
        return await process.wait(), await said
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await said
        raise


async def _heard(stream: asyncio.StreamReader, passed_over: Sequence[bytes]) -> bytes:
    """What a program says, MOST_SAID bytes of it at most: a check has a line for every cluster of an image."""
    known = re.compile(b"|".join(passed_over) or b"(?!)")
    heard, rest = bytearray(), b""
    while part := await stream.read(1 << 16):
        *lines, rest = (rest + part).split(b"\n")
        rest = rest[:MOST_SAID]
        for line in lines:
            if len(heard) < MOST_SAID and not known.fullmatch(line):
                heard += line[:MOST_SAID] + b"\n"
    return bytes(heard + rest)
