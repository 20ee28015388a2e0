"""What qemu-nbd and qemu-img have in common: where they are, and what they say when they fail."""

from __future__ import annotations

import os
import shutil

from pybackup.core.errors import BusyError, PybackupError, TargetError, TargetFullError

MOST_SAID = 8192
"""Bytes kept of what a program says: its reason comes first."""


def find_program(program: str, what_for: str, failure: type[PybackupError]) -> str:
    """The path of a program of QEMU's; raises ``failure`` where it is not installed."""
    found = shutil.which(program)
    if found is None:
        raise failure(f"{what_for} needs {program}, which is not installed (Debian's package qemu-utils has it)")
    return found


def reason_of(said: bytes, *, without: str = "") -> str:
    """QEMU's reason: its first line that is no warning, without the program's name and the words in ``without``."""
    lines = [line.partition(": ")[2] or line for line in said.decode(errors="replace").splitlines()]
    line = next((line for line in lines if line and not line.startswith("warning: ")), "")
    return line.replace(without, "", 1).strip()


def qemu_failure(doing: str, reason: str, failure: type[PybackupError]) -> PybackupError:
    """The error for a reason of QEMU's: BusyError for its lock, TargetFullError where an output found no space."""
    if "Failed to get" in reason and "lock" in reason:
        return BusyError(f"{doing}: it is in use by another program (QEMU image lock)")
    if "key-secret" in reason or "passphrase" in reason:
        return failure(f"{doing}: it is encrypted, and no key is known: {reason}")
    if failure is TargetError and "No space left on device" in reason:
        return TargetFullError(f"{doing}: no space is left")
    return failure(f"{doing}: {reason or 'QEMU gives no reason'}")


def file_options(path: str) -> str:
    """QEMU's options for the file at ``path`` and nothing else: no protocol in its name is looked for, no format.

    A comma is doubled, as in all options of QEMU's.
    """
    driver = "file" if os.path.isfile(path) else "host_device"
    return f"file.driver={driver},file.filename={os.path.abspath(path).replace(',', ',,')}"
