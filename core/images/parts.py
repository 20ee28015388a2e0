"""All files that an image reads from: found by what the image says, locked, watched, and compared with what QEMU reads.

Through any depth of backing files, whatever their formats. Whose image it is has a word in it, too: an image that was
handed to us must not make us read what its owner could not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from shlex import quote
from typing import TypeAlias

from pybackup.core.devices.raw import Fingerprint, fingerprint_of
from pybackup.core.errors import Advice, SourceChangedError, SourceError, UnreadableError
from pybackup.core.system.device_in_use import users_of
from pybackup.core.system.image_lock import ImageLock, is_written
from pybackup.core.system.opened_files import identity_of, may_read, open_for_reading, opened_by
from pybackup.formats.errors import FormatError
from pybackup.formats.image_layout import End, ImageBytes, Layout, OtherFile, Role
from pybackup.formats.image_layouts import image_layout

from .names import PROTOCOLS, Named, Place, named_file

MOST_CHAIN = 200
"""Backing files below each other; a chain that is longer most likely never ends."""
MOST_PARTS = 4096
Lock: TypeAlias = Callable[[int, str], ImageLock]
"""Takes a lock on an open file with a name."""
_BUNDLE = "DiskDescriptor.xml"
_MOST_BUNDLE = 1 << 20


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A file of an image, or a window of one.

    ``depth``: how many backing files lie above it; ``needs``: bytes that another file says it must have. ``is_image``:
    a program can open it by itself.
    """

    place: Place
    image_format: str
    layout: Layout
    depth: int
    size: int
    needs: int = 0
    is_image: bool = True

    @property
    def path(self) -> str:
        """Of the file."""
        return self.place.path


class ImageParts:
    """The files of one image. Made by find(); release() gives everything back, a second time does nothing.

    Fixed after find(): all but ``stopped``, which ends check_lengths() in its thread.
    """

    def __init__(self, *, force_share: bool, writable: bool) -> None:
        """``force_share``: lock nothing, and warn of what others write to. ``writable``: QEMU will write, and lock."""
        self.parts: list[ImagePart] = []
        self.warnings: list[str] = []
        self.leaking: list[str] = []
        """Paths of images that hold clusters to which nothing refers."""
        self.stopped = False
        self._force_share, self._writable = force_share, writable
        self._fds: dict[tuple[int, int], int] = {}
        self._paths: dict[str, Fingerprint | None] = {}
        self._unlocked: list[str] = []
        self._undo = ExitStack()
        self._written: set[str] = set()

    @classmethod
    def find(cls, path: str, image_format: str, *, force_share: bool = False, writable: bool = False) -> ImageParts:
        """Find, open and lock all files of an image (SourceError, BusyError)."""
        found = cls(force_share=force_share, writable=writable)
        try:
            found._find(path, image_format)
        except BaseException:
            found.release()
            raise
        return found

    # -- what belongs to it --

    def _find(self, path: str, image_format: str) -> None:
        _refuse_bundle(path, image_format)
        waiting = [(Named(Place(path), image_format), 0, OtherFile(Role.BACKING, path, image_format))]
        while waiting:
            named, depth, told = waiting.pop()
            part = self._add(named, depth, told)
            if part.image_format == "raw":
                continue
            for number, other in enumerate(part.layout.files):
                below = depth + (other.role is Role.BACKING)
                found = _named(part, other)
                if self._writable and not below and found.image_format == "raw":
                    self._unlocked.append(_without_lock(found.place, other.role, number))
                waiting.append((found, below, other))
            if depth > MOST_CHAIN:
                raise SourceError(f"{path} has more than {MOST_CHAIN} backing files")
            if len(self.parts) + len(waiting) > MOST_PARTS:
                raise SourceError(f"{path} consists of more than {MOST_PARTS} files")

    def _add(self, named: Named, depth: int, told: OtherFile) -> ImagePart:
        path = named.place.path
        is_image = told.role is Role.BACKING
        assert named.image_format is not None
        image = _window(self._open(path, self._lock_for(named.image_format, depth)), named.place)
        try:
            layout = image_layout(image, named.image_format)
        except FormatError as error:
            raise SourceError(f"cannot use {path}: {error.what}") from error
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}") from error
        if told.disk_size and layout.size != told.disk_size:
            raise SourceError(
                f"cannot use {path}: it says a size of {layout.size:,} bytes, and the image to which it belongs one of"
                f" {told.disk_size:,}"
            )
        part = ImagePart(named.place, named.image_format, layout, depth, image.size, told.needs, is_image)
        self.parts.append(part)
        return part

    def _lock_for(self, image_format: str, depth: int) -> Lock | None:
        """Where QEMU writes, it locks images itself, and does not lock what holds nothing but data."""
        if not self._writable or depth:
            return ImageLock.for_reading
        return ImageLock.for_writing if image_format == "raw" else None

    def _open(self, path: str, lock: Lock | None) -> int:
        try:
            # What is no disk is not even opened: a character device can do anything then.
            self._refuse_foreign(path, os.stat(path))
            fd = open_for_reading(path)
        except OSError as error:
            raise SourceError(f"cannot open {path}: {error.strerror}") from error
        info = os.fstat(fd)
        if (known := self._fds.get(identity_of(info))) is not None:
            os.close(fd)
            return known
        self._undo.callback(os.close, fd)
        self._refuse_foreign(path, info)
        # Before anything is looked at: what changes from now on is seen.
        self._take_lock(fd, path, lock)
        self._paths[path] = fingerprint_of(os.fstat(fd))
        self._fds[identity_of(info)] = fd
        if stat.S_ISBLK(info.st_mode) and (user := users_of(path)):
            self.warnings.append(
                f"{path} is in use ({user}): the backup is of no one instant if it is written to meanwhile"
            )
        return fd

    def _refuse_foreign(self, path: str, info: os.stat_result) -> None:
        if not stat.S_ISREG(info.st_mode) and not stat.S_ISBLK(info.st_mode):
            raise SourceError(f"cannot use {path}: it is neither a file nor a block device")
        if not self.parts:
            return
        image = self.parts[0].path
        owner = os.stat(image)
        if not may_read(owner.st_uid, owner.st_gid, info):
            raise SourceError(
                f"{image} reads from {path}, which the owner of that image may not read; who trusts it, gives both the"
                " same owner"
            )

    def _take_lock(self, fd: int, path: str, take: Lock | None) -> None:
        if self._force_share:
            if is_written(fd):
                self._written.add(path)
                self.warnings.append(f"{path} is in use by another program; what is read may be of no one moment")
        elif take is not None:
            lock = take(fd, path)
            self._undo.callback(lock.release)
            if lock.note:
                self.warnings.append(lock.note)

    # -- what is checked --

    @property
    def _changing(self) -> set[int]:
        """The depths of the images of which another program writes to a file: all others can be checked."""
        return {part.depth for part in self.parts if part.path in self._written}

    @property
    def unclosed(self) -> str | None:
        """A sentence about what was not closed properly; None where all was."""
        changing = self._changing
        names = [part.path for part in self.parts if part.layout.unclosed and part.depth not in changing]
        if not names:
            return None
        return (
            f"{', '.join(names)}: not closed properly; the backup holds what had been flushed, as after a power failure"
        )

    @property
    def notes(self) -> list[str]:
        """Sentences about what is no damage, and may be good to know."""
        notes = [self.unclosed] if self.unclosed else []
        if self.leaking:
            names = ", ".join(self.leaking)
            notes.append(f"{names}: clusters to which nothing refers (qemu-img check: leaks), as after a crash")
        return notes

    @property
    def options(self) -> str:
        """What QEMU has to be told to read all of each part, each with a comma before it."""
        told = "".join(
            f",{'backing.' * part.depth}{key}={value}"
            for part in self.parts
            for key, value in part.layout.options.items()
        )
        return told + "".join(self._unlocked)

    @property
    def images(self) -> Sequence[ImagePart]:
        """Those that a program can check: none that another is changing, and none that reads from such a one."""
        settled = max(self._changing, default=-1) + 1
        return [part for part in self.parts if part.is_image and part.image_format != "raw" and part.depth >= settled]

    def options_to_check(self, part: ImagePart) -> str:
        """One of the images, in QEMU's words."""
        unlocked = "" if part.depth else "".join(self._unlocked)
        return f"driver={part.image_format},{part.place.options}{unlocked}"

    def check_lengths(self) -> None:
        """Read the tables of all parts, which can take seconds: SourceError where a file is too short.

        UnreadableError where a table cannot be read.
        """
        changing = self._changing
        for part in self.parts:
            _check_length(part, part.size, part.needs)
            if part.depth in changing:
                continue
            own = data = 0
            try:
                for end in self._ends(part):
                    if end.in_data_file:
                        data = max(data, end.end)
                    else:
                        own = max(own, end.end)
            except FormatError as error:
                raise _damaged(part, error.what) from error
            except OSError as error:
                raise UnreadableError(f"cannot read the tables of {part.path}: {error.strerror}") from error
            _check_length(part, part.size, own)
            if data:
                self._check_data_file(part, data)
            self._check_raw_backing(part)

    def _check_raw_backing(self, part: ImagePart) -> None:
        """Nothing tells how long a raw file was, but the disks over it, which mostly were made as long."""
        is_told = part.place.length is not None or not os.path.isfile(part.path)
        if part.image_format != "raw" or not part.is_image or not part.depth or is_told:
            return
        read = min(above.layout.size for above in self.parts if above.is_image and above.depth < part.depth)
        if part.size < read:
            longer = f"truncate -s {part.place.start + read} {quote(part.path)}"
            raise SourceError(
                f"{part.path} has {part.size:,} bytes, and the disk that reads from it {read:,}: whether its end was"
                f" cut off cannot be told; if it is whole, `{longer}` adds"
                " the zeros that the disk has there anyway"
            )

    def _ends(self, part: ImagePart) -> Iterator[End]:
        for end in part.layout.scan():
            if self.stopped:
                raise SourceError(f"{part.path}: the check was cancelled")
            yield end

    def _check_data_file(self, image: ImagePart, end: int) -> None:
        name = next(other for other in image.layout.files if other.role is Role.DATA)
        place = _named(image, name).place
        for part in self.parts:
            if part.place == place:
                _check_length(part, part.size, end)

    def check_opened(self, process: int) -> None:
        """See to it that a process reads from these files, and no others (SourceError)."""
        read = set(opened_by(process))
        if self.parts and read != set(self._fds):
            raise SourceError(
                f"{self.parts[0].path}: QEMU reads from other files for it than the image says; is it of a kind that is"
                " not known?"
            )

    def check_size(self, size: int) -> None:
        """See to it that QEMU reads as much as the image says, up to the end of a sector (SourceError)."""
        told = self.parts[0].layout.size
        if not told <= size < told + 512 and 0 not in self._changing:
            raise SourceError(
                f"cannot use {self.parts[0].path}: it says a size of {told:,} bytes, and QEMU reads {size:,} of it"
            )

    def check_unchanged(self) -> None:
        """SourceChangedError where a file was written to, or another one lies at its path now (SourceError)."""
        for path, before in self._paths.items():
            try:
                after = fingerprint_of(os.stat(path))
            except OSError as error:
                raise SourceError(f"cannot look at {path}: {error.strerror}") from error
            if before != after:
                raise SourceChangedError(
                    f"{path} changed while it was read, so what was read is not the disk of any one moment",
                    advice=Advice.SNAPSHOT,
                )

    def release(self) -> None:
        """Give the locks back, and close."""
        self.stopped = True
        self._undo.close()


def _named(part: ImagePart, other: OtherFile) -> Named:
    # In old images, what QEMU calls the files and devices below any format stands for raw.
    image_format = "raw" if other.image_format in PROTOCOLS else other.image_format
    if other.role is Role.BACKING and image_format is None and not other.name.startswith("json:"):
        raise SourceError(
            f"{part.path} names the backing file {other.name} without its format, which a guest could have made up; if"
            f" it is raw: qemu-img rebase -u -f {part.image_format} -b {other.name} -F raw {part.path}"
        )
    if other.role is Role.EXTENT:
        # QEMU looks for no protocol in this name.
        return Named(Place(os.path.join(os.path.dirname(part.path), other.name)), image_format)
    found = named_file(other.name, image_format, os.path.dirname(part.path), of=part.path)
    if found.image_format is None:
        raise SourceError(f"{part.path} names the backing file {other.name} without its format")
    return found


def _without_lock(place: Place, role: Role, number: int) -> str:
    """QEMU's options for a file that is locked by us."""
    if role is Role.EXTENT:
        return f",extents.{number}.locking=off"
    return f",{place.options_of('data-file', 'locking=off')}"


def _window(fd: int, place: Place) -> ImageBytes:
    """The bytes of a place, by an open file (SourceError where it is not there)."""
    size = os.lseek(fd, 0, os.SEEK_END) - place.start
    if size < (place.length or 0):
        raise SourceError(
            f"{place.path} is too short: a part of it that goes on to byte"
            f" {place.start + (place.length or 0):,} belongs to the image"
        )
    size = size if place.length is None else place.length

    def read(offset: int, length: int) -> bytes:
        wanted = min(length, size - offset)
        parts = []
        while wanted > 0 and (part := os.pread(fd, wanted, place.start + offset)):
            parts.append(part)
            offset, wanted = offset + len(part), wanted - len(part)
        return b"".join(parts)

    return ImageBytes(read, size)


def _check_length(part: ImagePart, size: int, needs: int) -> None:
    if needs > size:
        raise _damaged(part, f"it has {size:,} bytes, and its data goes on to byte {needs:,}")


def _damaged(part: ImagePart, what: str) -> SourceError:
    advice = Advice.RAW_DAMAGE_AND_ALL if part.is_image and not part.depth else None
    return SourceError(f"{part.path} is damaged: {what}", advice=advice)


def _refuse_bundle(path: str, image_format: str) -> None:
    """A Parallels disk is a folder; one with several images has snapshots, and each image holds a part of the disk."""
    if image_format != "parallels":
        return
    beside = os.path.join(os.path.dirname(path), _BUNDLE)
    try:
        with open(beside, "rb") as file:
            images = file.read(_MOST_BUNDLE).count(b"<Image>")
    except OSError:
        return
    if images > 1:
        raise SourceError(
            f"{path} is one of {images} images of a Parallels disk ({beside}), and holds a part of it: remove its"
            " snapshots first"
        )
