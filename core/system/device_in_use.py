"""Does anybody use this disk? Asked before a restore overwrites it, or guests write to it: the worst accident.

The kernel is asked in five places: /proc/self/mountinfo, /proc/swaps, the holders in /sys (LVM, dm-crypt, RAID), the
loop devices, which show a file or device under another name and claim nothing, and an exclusive open, which fails while
anybody has claimed the device, also in another mount namespace. What is asked of a disk is asked of all that shows
bytes of it, through any number of layers: its partitions, its whole disk, loop devices over any of them, and what is
behind a loop device. Of a file behind one, the image lock is asked too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from .image_lock import is_written

DeviceNumber = Callable[[str], str | None]
Disk: TypeAlias = str | tuple[int, int]
"""The number of a block device ("8:16"), the device and inode of a file, or the path of what cannot be looked at."""


def device_in_use(path: str | os.PathLike[str]) -> str | None:
    """Why the block device at ``path`` must not be overwritten, as the end of a sentence; None when nothing is known.

    Raises OSError when the device cannot be looked at. Anything but a block device gives None.
    """
    return disk_in_use(path) if stat.S_ISBLK(os.stat(path).st_mode) else None


def disk_in_use(path: str | os.PathLike[str]) -> str | None:
    """As device_in_use(), also of a regular file: it may be swap, or behind a loop device that is in use."""
    path = os.fspath(path)
    info = os.stat(path)
    disk = _number(info) or (info.st_dev, info.st_ino)
    users = DeviceUsers()
    if (reason := users.of(disk)) is not None:
        return reason
    if stat.S_ISBLK(info.st_mode) and _exclusive_open_fails(path):
        return "the kernel or another program has claimed it (exclusive open: device busy)"
    return users.claimed(disk)


def loop_over(path: str) -> str | None:
    """The path of a loop device that shows the regular file at ``path``, used or not (OSError); None for none."""
    info = os.stat(path)
    return DeviceUsers().loop_over((info.st_dev, info.st_ino))


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


class _Loop(NamedTuple):
    """A loop device: its number, its name, the path of what is behind it, and which disk that is."""

    number: str
    name: str
    path: str
    behind: Disk


class _Layer(NamedTuple):
    """Something that shows bytes of a disk: which, how it is called in a sentence and what comes before in that.

    ``path``: where it can be asked whether another program has claimed it, if that does not go without saying.
    """

    disk: Disk
    what: str = "it"
    before: str = ""
    path: str | None = None

    @property
    def subject(self) -> str:
        """The beginning of a sentence about it."""
        return self.before + self.what


class DeviceUsers:
    """What the kernel says of the users of disks. Fixed: all, as it was at construction."""

    def __init__(
        self, proc: Path = Path("/proc"), sys: Path = Path("/sys"), number_of: DeviceNumber = device_number
    ) -> None:
        """``number_of`` gives the number of the block device at a path, as device_number() does."""
        self._proc = proc
        self._sys = sys
        self._number_of = number_of
        self._loops = list(self._find_loops())
        self._mounts = dict(self._find_mounts())
        self._swaps = set(self._find_swaps())

    def of(self, disk: Disk) -> str | None:
        """Why a disk, or whatever shows bytes of it, is in use; None when it is not."""
        return next(filter(None, (self._use(layer) for layer in self._layers(disk))), None)

    def claimed(self, disk: Disk) -> str | None:
        """Which loop device over a disk, or what behind it, another program has claimed; None for none."""
        for layer in self._layers(disk):
            if layer.path is not None and _is_claimed(layer.path):
                return f"{layer.subject} is claimed, or locked to be written to, by another program"
        return None

    def loop_over(self, disk: Disk) -> str | None:
        """The path of a loop device that shows a disk, used or not; None for none."""
        return next((f"/dev/{loop.name}" for loop in self._loops if loop.behind == disk), None)

    def _use(self, layer: _Layer) -> str | None:
        if layer.disk in self._mounts:
            return f"{layer.subject} is mounted on {self._mounts[layer.disk]}"
        if layer.disk in self._swaps:
            return f"{layer.subject} is used as swap"
        if isinstance(layer.disk, str) and (held := _holders(self._folder(layer.disk))):
            return f"{layer.subject} is part of {', '.join(held)}"
        return None

    # -- what shows bytes of what --

    def _layers(self, disk: Disk) -> Iterator[_Layer]:
        """All that shows bytes of a disk, itself first."""
        seen: set[Disk] = set()
        yield from self._above(_Layer(disk), seen)
        yield from self._below("", disk, seen)

    def _above(self, layer: _Layer, seen: set[Disk]) -> Iterator[_Layer]:
        """It, its partitions, and the loop devices over them."""
        if layer.disk in seen:
            return
        seen.add(layer.disk)
        yield layer
        for name, number in self._partitions(layer.disk):
            yield from self._above(_Layer(number, f"its partition {name}", layer.before), seen)
        yield from self._loops_over(layer, seen)

    def _loops_over(self, layer: _Layer, seen: set[Disk]) -> Iterator[_Layer]:
        for loop in self._loops:
            if loop.behind == layer.disk:
                before = f"{layer.subject} is behind {loop.name}, of which is known: "
                yield from self._above(_Layer(loop.number, before=before, path=f"/dev/{loop.name}"), seen)

    def _below(self, before: str, disk: Disk, seen: set[Disk]) -> Iterator[_Layer]:
        """The whole disk, but not other partitions of it; what is behind a loop device, and what else shows that."""
        for name, number in self._whole_disk(disk):
            whole = _Layer(number, f"its whole disk {name}", before)
            yield whole
            yield from self._loops_over(whole, seen)
            yield from self._below(before, number, seen)
        for loop in self._loops:
            if loop.number == disk and loop.behind not in seen:
                below = f"{before}it shows {loop.path}, of which is known: "
                yield from self._above(_Layer(loop.behind, before=below, path=loop.path), seen)
                yield from self._below(below, loop.behind, seen)

    def _folder(self, disk: Disk) -> Path:
        return (self._sys / "dev" / "block" / str(disk)).resolve()

    def _partitions(self, disk: Disk) -> Iterator[tuple[str, str]]:
        """Yield (name, number)."""
        if isinstance(disk, str):
            for partition in sorted(self._folder(disk).glob("*/partition")):
                yield partition.parent.name, _read(partition.parent / "dev")

    def _whole_disk(self, disk: Disk) -> Iterator[tuple[str, str]]:
        folder = self._folder(disk)
        if isinstance(disk, str) and (folder / "partition").exists():
            yield folder.parent.name, _read(folder.parent / "dev")

    # -- what the kernel tells --

    def _disk_at(self, path: str) -> Disk:
        if number := self._number_of(path):
            return number
        try:
            info = os.stat(path)
        except OSError:
            return path
        return info.st_dev, info.st_ino

    def _find_loops(self) -> Iterator[_Loop]:
        for backing in sorted((self._sys / "block").glob("loop*/loop/backing_file")):
            folder, path = backing.parent.parent, _read(backing)
            yield _Loop(_read(folder / "dev"), folder.name, path, self._disk_at(path))

    def _find_mounts(self) -> Iterator[tuple[Disk, str]]:
        """Yield (number, mount point); the source as well, for btrfs shows a number that no device has (proc(5))."""
        for line in _read(self._proc / "self" / "mountinfo").splitlines():
            left, _, right = line.partition(" - ")
            fields, source = left.split(), right.split()
            mount_point = _unescaped(fields[4])
            yield fields[2], mount_point
            if len(source) > 1 and (number := self._number_of(_unescaped(source[1]))):
                yield number, mount_point

    def _find_swaps(self) -> Iterator[Disk]:
        for line in _read(self._proc / "swaps").splitlines()[1:]:
            yield self._disk_at(_unescaped(line.split()[0]))


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


def _is_claimed(path: str) -> bool:
    """Whether another program has claimed the device at ``path``, or locked the image there to write to it."""
    try:
        if stat.S_ISBLK(os.stat(path).st_mode):
            return _exclusive_open_fails(path)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_written(fd)
    finally:
        os.close(fd)


def _exclusive_open_fails(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False
