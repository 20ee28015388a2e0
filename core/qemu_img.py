"""Makes new images of any format that QEMU knows, and checks what is there, with qemu-img."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile

from .errors import SourceError, TargetError
from .qemu_programs import file_options, find_program, qemu_failure, reason_of

_OPTIONS = {
    # Else the size is that of the nearest number of cylinders, heads and sectors.
    "vpc": "force_size=on",
}

_SOUND, _FAILED, _LEAKS, _NO_CHECK = 0, 1, 3, 63
"""Exit codes of qemu-img check; leaked clusters harm nobody, and some formats have no check."""


async def check_image(path: str, image_format: str) -> None:
    """Refuse an image that lacks parts of itself (SourceError, BusyError).

    QEMU reads what should lie behind the end of a file that was cut off as zeros, in most formats without a word.
    """
    program = find_program("qemu-img", f"{path}: the format {image_format}", SourceError)
    try:
        code, said = await _run(program, "check", "-q", "--image-opts", f"driver={image_format},{file_options(path)}")
    except OSError as error:
        raise SourceError(f"cannot check {path}: {error.strerror or error}") from error
    if code in (_SOUND, _LEAKS, _NO_CHECK):
        return
    reason = reason_of(said)
    if code == _FAILED and "lock" in reason:
        raise qemu_failure(f"cannot check {path}", reason, SourceError)
    says = f"says: {reason}" if reason else "finds errors in it"
    raise SourceError(f"{path} is damaged: qemu-img check {says}; --format raw takes the file as it is, damage and all")


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


async def _run(*command: str) -> tuple[int, bytes]:
    """Run a program in a session of its own, so that Ctrl-C is ours alone; its exit code and its standard error."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, said
