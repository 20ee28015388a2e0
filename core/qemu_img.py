"""Makes new images of any format that QEMU knows, and checks what is there, with qemu-img."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Callable

from .errors import SourceError, TargetError
from .qemu_programs import file_options, find_program, qemu_failure, reason_of

_OPTIONS = {
    # Else the size is that of the nearest number of cylinders, heads and sectors.
    "vpc": "force_size=on",
}

_SOUND, _FAILED, _LEAKS, _NO_CHECK = 0, 1, 3, 63
"""Exit codes of qemu-img check; leaked clusters harm nobody, and some formats have no check."""
_CHECKED_BY_EXTENTS = ("vdi", "qcow")
"""Formats of which qemu-img check does not see that the end is missing."""


async def check_image(path: str, image_format: str) -> None:
    """Refuse an image that lacks parts of itself (SourceError, BusyError).

    QEMU reads what should lie behind the end of a file that was cut off as zeros, in most formats without a word.
    """
    program = find_program("qemu-img", f"{path}: the format {image_format}", SourceError)
    options = ("--image-opts", f"driver={image_format},{file_options(path)}")
    try:
        if image_format in _CHECKED_BY_EXTENTS:
            damage = await _missing_end(path, program, options)
        else:
            damage = await _checked(path, program, options)
    except OSError as error:
        raise SourceError(f"cannot check {path}: {error.strerror or error}") from error
    if damage:
        raise SourceError(f"{path} is damaged: {damage}; --format raw takes the file as it is, damage and all")


async def _checked(path: str, program: str, options: tuple[str, ...]) -> str | None:
    code, said = await _run(program, "check", "-q", *options)
    if code in (_SOUND, _LEAKS, _NO_CHECK):
        return None
    reason = reason_of(said)
    if code == _FAILED and "lock" in reason:
        raise qemu_failure(f"cannot check {path}", reason, SourceError)
    return f"qemu-img check says: {reason}" if reason else "qemu-img check finds errors in it"


async def _missing_end(path: str, program: str, options: tuple[str, ...]) -> str | None:
    size, end = os.stat(path).st_size, 0

    def take(line: bytes) -> None:
        nonlocal end
        extent = json.loads(line.strip(b"[],\n") or b"{}")
        if "offset" in extent and extent["depth"] == 0:  # deeper ones are those of backing files
            end = max(end, extent["offset"] + extent["length"])

    code, said = await _run(program, "map", "--output=json", *options, take=take)
    if code:
        raise qemu_failure(f"cannot check {path}", reason_of(said), SourceError)
    return f"it has {size:,} bytes, and its data goes on to byte {end:,}" if end > size else None


async def create_image(file: str, image_format: str, size: int, *, name: str) -> None:
    """Make the existing, empty ``file`` an image of ``size`` bytes, all zeros (TargetError, BusyError).

    ``name`` is the name it will have: some formats have their own name inside.
    """
    program = find_program("qemu-img", f"{name}: the format {image_format}", TargetError)
    options = ["-o", _OPTIONS[image_format]] if image_format in _OPTIONS else []
    doing = f"cannot create {name}"
    try:
        with tempfile.TemporaryDirectory(prefix="pybackup-") as folder:
            # An absolute path: what stands before a colon in it is no protocol.
            link = os.path.join(folder, os.path.basename(name))
            os.symlink(os.path.abspath(file), link)
            code, said = await _run(program, "create", "-q", "-f", image_format, *options, link, str(size))
    except OSError as error:
        raise TargetError(f"{doing}: {error.strerror or error}") from error
    if code:
        raise qemu_failure(doing, reason_of(said, without=f"{link}: "), TargetError)


async def _run(*command: str, take: Callable[[bytes], None] | None = None) -> tuple[int, bytes]:
    """Run a program; its exit code and standard error, while ``take`` gets the lines of its standard output.

    It is in a session of its own, so that a Ctrl-C in the terminal is ours alone.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    said = asyncio.create_task(process.stderr.read())
    try:
        while line := await process.stdout.readline():
            if take is not None:
                take(line)
        return await process.wait(), await said
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await said
        raise
