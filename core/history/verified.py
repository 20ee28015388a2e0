"""Which archives of a place were verified, and when: a small file beside them, so that scrubbing goes round.

A line of JSON for each verification, appended in one write: two writers do not disturb each other, and what a killed
one has left, or somebody else has written, is passed over. Where the file cannot be written nothing is remembered, and
archives are verified again. In a store the whole file is written again; of two writers the last one wins.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from pybackup.core.archive.listing import OWN
from pybackup.core.errors import PybackupError
from pybackup.core.places.kinds import HistoryPlace, StoreUrl
from pybackup.core.system.locked_file import open_locked

from .catalog import Entry

RECORD = f"{OWN}-verified"
MOST_BYTES = 8 << 20
"""Of a longer file the end counts."""
LONGEST_LINE = 1024
LINES_FOR_EACH = 4
"""With more lines for an archive the file is written anew."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What is known of one archive. ``whole``: when all of it was read; ``sampled``: when a part; None for never.

    Seconds since 1970. ``sound``: what came of the last time that all was read.
    """

    whole: float | None = None
    sound: bool = False
    sampled: float | None = None


def key_of(entry: Entry) -> str:
    """What tells a file from all others, whatever it is called; without an index its name, size and time have to do."""
    if entry.identity is not None and entry.identity.digest is not None:
        return f"{entry.identity.uuid.hex()}-{entry.identity.digest.hex()}-{entry.listed.size}"
    return f"{entry.name[:255]}-{entry.listed.size}-{int(entry.listed.modified or 0)}"


class VerifiedRecord(Protocol):
    """What was verified in one place."""

    def load(self) -> None:
        """Read what is there; garbage in it is nothing. Never fails."""
        ...

    def of(self, entry: Entry) -> Verified:
        """What is known of an archive."""
        ...

    def is_sound(self, entry: Entry) -> bool:
        """Whether all of it was read once, the last time it was found sound."""
        ...

    def note(self, entry: Entry, *, sound: bool, now: float, is_sample: bool = False) -> bool:
        """Remember it; whether that could be done."""
        ...


def open_record(place: HistoryPlace) -> VerifiedRecord:
    """The record of a place, not loaded yet."""
    return _RemoteRecord(place) if isinstance(place, StoreUrl) else _LocalRecord(place.path)


class _Lines:
    """The record as it was read. Changing: ``lines``, the number of lines; and what they say, by key."""

    def __init__(self) -> None:
        self.lines = 0
        self._known: dict[str, Verified] = {}

    def of(self, entry: Entry) -> Verified:
        return self._known.get(key_of(entry), Verified())

    def is_sound(self, entry: Entry) -> bool:
        found = self.of(entry)
        return found.whole is not None and found.sound

    def take(self, content: bytes) -> None:
        self.lines, self._known = 0, {}
        for line in content.split(b"\n"):
            if line.strip():
                self.lines += 1
                self.add(line)

    def add(self, line: bytes) -> None:
        if len(line) > LONGEST_LINE:
            return
        with contextlib.suppress(ValueError, RecursionError):
            told = json.loads(line)
            if isinstance(told, dict):
                self._add(told)

    def _add(self, told: dict[str, object]) -> None:
        key, sound = told.get("archive"), told.get("sound")
        whole, sampled = _time(told.get("whole")), _time(told.get("sampled"))
        if not isinstance(key, str) or not isinstance(sound, bool) or (whole is None and sampled is None):
            return
        before = self._known.get(key, Verified())
        if whole is None:
            self._known[key] = Verified(before.whole, before.sound and sound, sampled)
        elif before.whole is None or whole >= before.whole:
            self._known[key] = Verified(whole, sound, before.sampled if sampled is None else sampled)

    def shortened(self) -> bytes | None:
        """The same in few lines, where there are many."""
        if self.lines <= LINES_FOR_EACH * len(self._known) + 64:
            return None
        return b"".join(_lines_of(key, one) for key, one in self._known.items())


def _time(told: object) -> float | None:
    """Seconds since 1970, of what is a number in reason."""
    if isinstance(told, bool) or not isinstance(told, int | float) or not math.isfinite(told):
        return None
    return float(told) if 0 <= told < 1 << 40 else None


def _line(key: str, sound: bool, when: str, time: float) -> bytes:
    return json.dumps({"archive": key, "sound": sound, when: round(time)}).encode() + b"\n"


def _lines_of(key: str, one: Verified) -> bytes:
    whole = _line(key, one.sound, "whole", one.whole) if one.whole is not None else b""
    return whole + (_line(key, one.whole is None or one.sound, "sampled", one.sampled) if one.sampled else b"")


class _LocalRecord(_Lines):
    """In a folder. Fixed: the path."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder
        self._path = os.path.join(folder, RECORD)

    def load(self) -> None:
        self.take(self._read())

    def _read(self) -> bytes:
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
                if stat.S_ISREG(found.st_mode):
                    return os.pread(fd, MOST_BYTES, max(0, found.st_size - MOST_BYTES))
            finally:
                os.close(fd)
        return b""

    def note(self, entry: Entry, *, sound: bool, now: float, is_sample: bool = False) -> bool:
        line = _line(key_of(entry), sound, "sampled" if is_sample else "whole", now)
        self.lines += 1
        self.add(line)
        try:
            # Before it a line's end: a killed writer may have left a part of a line.
            self._append(b"\n" + line)
        except OSError:
            return False
        with contextlib.suppress(OSError):  # another may be at it
            self._shorten()
        return True

    def _append(self, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o644)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise OSError("it is no file, or somebody's by another name")
            os.write(fd, content)
        finally:
            os.close(fd)

    def _shorten(self) -> None:
        """Write it anew; what another writer adds at this moment is lost, and verified again."""
        if self.shortened() is None:
            return
        self.load()
        content = self.shortened()
        if content is None:
            return
        partial = f"{self._path}.partial"
        # Of a killed writer the next one takes what is left over; of two at once one gives up.
        fd = open_locked(partial, 0o644)
        with open(fd, "wb") as file:
            try:
                file.truncate()
                file.write(content)
                file.flush()
                os.rename(partial, self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(partial)
                raise


class _RemoteRecord(_Lines):
    """At a store. Fixed: the URL."""

    def __init__(self, url: StoreUrl) -> None:
        super().__init__()
        self._url = url

    def load(self) -> None:
        with contextlib.suppress(PybackupError):
            self.take(self._read())

    def _read(self) -> bytes:
        from pybackup.core.stores.remote_folder import open_remote_folder

        with open_remote_folder(self._url) as folder:
            return folder.read(RECORD) or b""

    def note(self, entry: Entry, *, sound: bool, now: float, is_sample: bool = False) -> bool:
        from pybackup.core.stores.remote_folder import open_remote_folder

        line = _line(key_of(entry), sound, "sampled" if is_sample else "whole", now)
        try:
            with open_remote_folder(self._url) as folder:
                content = folder.read(RECORD) or b""
                self.take(content)
                self.lines += 1
                self.add(line)
                folder.write(RECORD, self.shortened() or _joined((content, line)))
        except PybackupError:
            return False
        return True


def _joined(parts: Iterable[bytes]) -> bytes:
    return b"\n".join(part.rstrip(b"\n") for part in parts if part) + b"\n"
