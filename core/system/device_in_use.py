"""Does anybody use this disk? Asked before a restore overwrites it, or guests write to it: the worst accident.

The kernel is asked in five places: /proc/self/mountinfo, /proc/swaps, the holders in /sys (LVM, dm-crypt, RAID), the
loop devices, which show a file or device under another name and claim nothing, and an exclusive open, which fails while
anybody has claimed the device, also in another mount namespace.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

DeviceNumber = Callable[[str], str | None]


def device_in_use(path: str | os.PathLike[str]) -> str | None:
    """Why the block device at ``path`` must not be overwritten, as the end of a sentence; None when nothing is known.

    Raises OSError when the device cannot be looked at. Anything but a block device gives None.
    """
    path = os.fspath(path)
    number = _number(os.stat(path))
    if number is None:
        return None
    return DeviceUsers().of(number) or _exclusive_open_fails(path)


def disk_in_use(path: str | os.PathLike[str]) -> str | None:
    """As device_in_use(), also of a regular file: it may be swap, or behind a loop device that is in use."""
    path = os.fspath(path)
    info = os.stat(path)
    return DeviceUsers().of_file(info) if stat.S_ISREG(info.st_mode) else device_in_use(path)


def claim(path: str) -> int | None:
    """Claim the block device at ``path``, so that nobody can mount it, or claim it, until the descriptor is closed.

    None for anything else. Raises OSError (EBUSY) when another has claimed it.
    """
    if device_number(path) is None:
        return None
    return os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)


def users_of(path: str) -> str | None:
    """What the kernel tells of who uses the block device at ``path``, as the end of a sentence; None for nothing."""
    number = device_number(path)
    return None if number is None else DeviceUsers().of(number)


def device_number(path: str) -> str | None:
    """The number ("8:16") of the block device at ``path``; None when there is none."""
    try:
        return _number(os.stat(path))
    except OSError:
        return None


class DeviceUsers:
    """What the kernel says of the users of block devices. Nothing changes after construction; nothing is kept."""

    def __init__(
        self, proc: Path = Path("/proc"), sys: Path = Path("/sys"), number_of: DeviceNumber = device_number
    ) -> None:
        """``number_of`` gives the number of the block device at a path, as device_number() does."""
        self._proc = proc
        self._sys = sys
        self._number_of = number_of

    def of(self, number: str) -> str | None:
        """Why device ``number`` ("8:16"), its partitions or its whole disk are in use; None when they are not."""
        mounts, swaps, loops = dict(self._mounts()), dict(self._swaps()), list(self._loops())
        if (reason := self._of(number, mounts, swaps)) is not None:
            return reason
        backing = next((file for loop, _, file in loops if loop == number), None)
        for loop, name, file in loops:
            shows_it = self._number_of(file) == number or (backing is not None and _same(file, backing))
            if loop != number and shows_it and (reason := self._of(loop, mounts, swaps)) is not None:
                return f"it is behind {name}, of which is known: {reason}"
        return None

    def of_file(self, info: os.stat_result) -> str | None:
        """Why the regular file of which ``info`` tells is in use; None when it is not."""
        for line in _read(self._proc / "swaps").splitlines()[1:]:
            if _is(_unescaped(line.split()[0]), info):
                return "it is used as swap"
        mounts, swaps = dict(self._mounts()), dict(self._swaps())
        for loop, name, file in self._loops():
            if _is(file, info) and (reason := self._of(loop, mounts, swaps)) is not None:
                return f"it is behind {name}, of which is known: {reason}"
        return None

    def _of(self, number: str, mounts: Mapping[str, str], swaps: Mapping[str, str]) -> str | None:
        for relation, related, folder in self._relatives(number):
            if related in mounts:
                return f"{relation} is mounted on {mounts[related]}"
            if related in swaps:
                return f"{relation} is used as swap"
            if held := _holders(folder):
                return f"{relation} is part of {', '.join(held)}"
        return None

    def _loops(self) -> Iterator[tuple[str, str, str]]:
        """Yield (number, name, path of what is behind it) of the loop devices."""
        for backing in sorted((self._sys / "block").glob("loop*/loop/backing_file")):
            folder = backing.parent.parent
            yield _read(folder / "dev"), folder.name, _read(backing)

    def _relatives(self, number: str) -> Iterator[tuple[str, str, Path]]:
        """Yield (what it is in a sentence, number, folder in /sys) of the device, its partitions, its whole disk."""
        folder = (self._sys / "dev" / "block" / number).resolve()
        yield "it", number, folder
        for partition in sorted(folder.glob("*/partition")):
            yield f"its partition {partition.parent.name}", _read(partition.parent / "dev"), partition.parent
        if (folder / "partition").exists():
            yield f"its whole disk {folder.parent.name}", _read(folder.parent / "dev"), folder.parent

    def _mounts(self) -> Iterator[tuple[str, str]]:
        """Yield (number, mount point); the source as well, for btrfs shows a number that no device has (proc(5))."""
        for line in _read(self._proc / "self" / "mountinfo").splitlines():
            left, _, right = line.partition(" - ")
            fields, source = left.split(), right.split()
            mount_point = _unescaped(fields[4])
            yield fields[2], mount_point
            if len(source) > 1 and (number := self._number_of(_unescaped(source[1]))):
                yield number, mount_point

    def _swaps(self) -> Iterator[tuple[str, str]]:
        for line in _read(self._proc / "swaps").splitlines()[1:]:
            path = _unescaped(line.split()[0])
            if number := self._number_of(path):
                yield number, path


def _is(path: str, info: os.stat_result) -> bool:
    """Whether the file at ``path`` is the one of which ``info`` tells."""
    try:
        return os.path.samestat(os.stat(path), info)
    except OSError:
        return False


def _same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return path == other


def _number(info: os.stat_result) -> str | None:
    return f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}" if stat.S_ISBLK(info.st_mode) else None


def _holders(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder / "holders"))
    except OSError:
        return []


def _read(path: Path) -> str:
    """The text of a small kernel file, stripped; empty when there is no such file (a container may hide it)."""
    try:
        return path.read_text(errors="surrogateescape").strip()
    except OSError:
        return ""


def _unescaped(text: str) -> str:
    r"""Undo the kernel's \040 for a blank, and the like."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _exclusive_open_fails(path: str) -> str | None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return "the kernel or another program has claimed it (exclusive open: device busy)"
    return None
