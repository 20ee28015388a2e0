"""All archives of one place, and which of them needs which: read from their headers and directories alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from pybackup.core.archive.chain import parent_told
from pybackup.core.archive.encrypted_file import check_public_facts
from pybackup.core.archive.identity import ArchiveIdentity, Reference, identity_of_index, read_identity
from pybackup.core.archive.index import HEADER_STEP, ArchiveIndex, NoIndexError
from pybackup.core.archive.listing import Listed, archives_in
from pybackup.core.archive.open import RangeReader, range_reader, unsealed
from pybackup.core.archive.public_facts import public_identity, public_identity_in
from pybackup.core.errors import ArchiveError, NoKeyError
from pybackup.core.places.kinds import HistoryPlace, LocalPath
from pybackup.core.secrets.keys import given
from pybackup.core.sinks.archive_evidence import archive_format, is_archive_name
from pybackup.formats import vma
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.errors import FormatError, NotAnArchiveError
from pybackup.formats.vma_layout import MAX_HEADER_WRITTEN

READ_AT_ONCE = 8
"""Archives whose headers are read at the same time."""
TAIL = 32 << 10
"""Bytes from an archive's end that are fetched in one request: a directory mostly is among them."""
_TOLD = ("parent", "chain", "replaces", "consistency", "unreadable_bytes")
_TOLD_OF_DRIVES = ("name", "size", "stored_bytes", "way", "why")
MOST_DRIVES = 256
LONGEST_TOLD = 4096
"""Characters of a text in a directory that are kept in mind."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An archive of the place, or what looks like one.

    ``identity``: None where it cannot be read, and ``problem`` says why. ``is_foreign``: it is no archive that could be
    anybody's delta or parent. ``is_cut_off``: one of ours that ends too early. ``is_sealed``: a key for it
    is all that lacks.
    """

    listed: Listed
    identity: ArchiveIdentity | None
    problem: str = ""
    is_foreign: bool = False
    is_cut_off: bool = False
    is_sealed: bool = False

    @property
    def name(self) -> str:
        """In the folder: no two have the same."""
        return self.listed.name

    @property
    def created(self) -> int:
        """Seconds since 1970; 0 where it cannot be read."""
        return self.identity.created if self.identity else 0

    @property
    def backup(self) -> tuple[bytes, int]:
        """What tells one backup from others, in whatever files it is."""
        return (self.identity.uuid, self.identity.created) if self.identity else (b"", 0)

    @property
    def has_index(self) -> bool:
        """Whether its index says that it is whole."""
        return self.identity is not None and self.identity.digest is not None

    @property
    def is_delta(self) -> bool:
        """Whether it needs its parent."""
        return self.identity is not None and self.identity.is_delta


class Catalog:
    """Archives, and which need which; for one thread. Nothing changes, but what was found out is remembered.

    ``entries``: newest first, and what cannot be read at the end.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = sorted(entries, key=lambda one: (one.identity is None, -one.created, one.name))
        self.by_name = {entry.name: entry for entry in self.entries}
        self._by_uuid: dict[bytes, list[Entry]] = {}
        for entry in self.entries:
            if entry.identity is not None:
                self._by_uuid.setdefault(entry.identity.uuid, []).append(entry)
        self._broken: dict[str, str | None] = {}
        self._parents: dict[str, Entry | None] = {}

    def candidates(self, entry: Entry) -> Sequence[Entry]:
        """All archives that are what a delta was made from, or stand for it: full ones first."""
        parent = entry.identity.parent if entry.identity is not None else None
        if parent is None:
            return ()
        return sorted(
            (one for one in self._by_uuid.get(parent.uuid, ()) if one is not entry and _answers(one, parent)),
            key=lambda one: (one.is_cut_off, one.is_delta, one.listed.is_link),
        )

    def parent_of(self, entry: Entry) -> Entry | None:
        """The archive that a delta is read with; None where it is not here, and for a full archive."""
        if entry.name not in self._parents:
            found = self.candidates(entry)
            sound = next((one for one in found if self.broken(one) is None), None) if len(found) > 1 else None
            self._parents[entry.name] = sound or (found[0] if found else None)
        return self._parents[entry.name]

    def chain_of(self, entry: Entry) -> Sequence[Entry]:
        """All that it is read with, as far as that is here: itself, its parent, and so on."""
        chain, seen = [entry], {entry.name}
        while (parent := self.parent_of(chain[-1])) is not None and parent.name not in seen:
            chain.append(parent)
            seen.add(parent.name)
        return chain

    def broken(self, entry: Entry) -> str | None:
        """Why nothing can be restored of an archive that could be read, as a clause; None if it looks sound."""
        path: list[Entry] = []
        at: Entry | None = entry
        while at is not None and at.name not in self._broken:
            if any(one is at for one in path):
                self._broken[at.name] = "it is its own ancestor"
                break
            path.append(at)
            at = self._next(at)
        for one in reversed(path):
            self._broken.setdefault(one.name, self._why_broken(one))
        return self._broken[entry.name]

    def _next(self, entry: Entry) -> Entry | None:
        """The first candidate whose state is not known yet."""
        return next((one for one in self.candidates(entry) if one.name not in self._broken), None)

    def _why_broken(self, entry: Entry) -> str | None:
        if entry.identity is None:
            return entry.problem
        if entry.is_cut_off:
            return "it ends too early"
        if not entry.is_delta:
            return None
        found = self.candidates(entry)
        if any(self._broken.get(one.name, "") is None for one in found):
            return None
        if not found:
            return f"its parent is missing: {parent_told(entry.identity)}"
        return f"its parent {found[0].name} is broken"

    def needed_by(self) -> dict[str, int]:
        """By name, how many others are read with an archive."""
        count = dict.fromkeys(self.by_name, 0)
        children = dict.fromkeys(self.by_name, 0)
        for entry in self.entries:
            if (parent := self.parent_of(entry)) is not None:
                children[parent.name] += 1
        ready = [entry for entry in self.entries if not children[entry.name]]
        while ready:
            entry = ready.pop()
            if (parent := self.parent_of(entry)) is not None:
                count[parent.name] += count[entry.name] + 1
                children[parent.name] -= 1
                if not children[parent.name]:
                    ready.append(parent)
        return count

    def without(self, names: Iterable[str]) -> Catalog:
        """The same without some."""
        gone = frozenset(names)
        return Catalog(entry for entry in self.entries if entry.name not in gone)

    def with_also(self, entries: Iterable[Entry]) -> Catalog:
        """The same with more, or with others of the same names."""
        new = {entry.name: entry for entry in entries}
        return Catalog([*(one for one in self.entries if one.name not in new), *new.values()])


def _answers(entry: Entry, parent: Reference) -> bool:
    return entry.identity is not None and entry.identity.answers(parent)


# -- reading --


def read_catalog(place: HistoryPlace) -> Catalog:
    """All archives of a folder or prefix (ArchiveError where it cannot be listed, RequestError)."""
    with connected(place):
        return Catalog(read_entries(place, archives_in(place)))


@contextmanager
def connected(place: HistoryPlace) -> Iterator[None]:
    """Within the body the connection to a store is kept (ArchiveError, RequestError)."""
    if isinstance(place, LocalPath):
        yield
        return
    from pybackup.core.stores.remote_folder import open_remote_folder

    with open_remote_folder(place):
        yield


def read_entries(place: HistoryPlace, listed: Sequence[Listed]) -> Sequence[Entry]:
    """What these are; several are read at a time. What is no archive, and not called one, is left out."""
    if not listed:
        return []
    threads = min(READ_AT_ONCE, len(listed))
    with _reader(place) as read, ThreadPoolExecutor(threads, thread_name_prefix="pybackup-catalog") as pool:
        found = list(pool.map(read, listed))
    return [entry for entry in found if not entry.is_foreign or is_archive_name(entry.name)]


@contextmanager
def _reader(place: HistoryPlace) -> Iterator[Callable[[Listed], Entry]]:
    """What reads one, in any thread; each thread has a connection of its own."""
    if isinstance(place, LocalPath):
        yield lambda listed: _entry(listed, _local_identity)
        return
    from pybackup.core.stores.remote_folder import RemoteFolder, open_remote_folder

    own, lock = threading.local(), threading.Lock()
    with ExitStack() as stack:
        shared = stack.enter_context(open_remote_folder(place))

        def folder() -> RemoteFolder:
            """Where each thread can have a connection of its own, that one."""
            if not shared.is_serial:
                return shared
            if not hasattr(own, "folder"):
                opening = open_remote_folder(place, alone=True)
                own.folder = opening.__enter__()
                with lock:
                    stack.push(opening)
            found: RemoteFolder = own.folder
            return found

        def identity(listed: Listed) -> ArchiveIdentity:
            return _remote_identity(folder().pread(listed.name), listed)

        yield lambda listed: _entry(listed, identity)


def _local_identity(listed: Listed) -> ArchiveIdentity:
    try:
        return read_identity(listed.place)
    except NoKeyError:
        # A key that was given and cannot be read is a failure of its own.
        given().identities()
        if (found := public_identity(listed.place)) is None:
            raise
        return found


def _remote_identity(pread: Callable[[int, int], bytes], listed: Listed) -> ArchiveIdentity:
    tail_at = max(0, listed.size - TAIL)
    tail: list[bytes] = []

    def read(offset: int, length: int) -> bytes:
        if offset < tail_at or offset + length > listed.size:
            return pread(offset, length)
        if not tail:
            tail.append(pread(tail_at, listed.size - tail_at))
        return tail[0][offset - tail_at : offset - tail_at + length]

    name = str(listed.place)
    file = RangeReader(read, listed.size, _no_stop, listed.size)
    try:
        source = unsealed(file, name)
        index = ArchiveIndex(source.pread, source.size, name, allow_delta=True)
        check_public_facts(source.encryption, index.header, name)
        return identity_of_index(index)
    except NoKeyError:
        given().identities()
        if (found := public_identity_in(file, name)) is None:
            raise
        return found
    except NoIndexError:
        return read_identity(listed.place)


def _no_stop() -> None:
    """Who reads a few bytes does not wait long."""


def _entry(listed: Listed, identity_of: Callable[[Listed], ArchiveIdentity]) -> Entry:
    try:
        found = identity_of(listed)
        cut_off = found.digest is None and not found.is_public and _is_cut_off(listed.place)
    except NoKeyError as error:
        return Entry(listed, None, str(error), is_sealed=True)
    except ArchiveError as error:
        return Entry(listed, None, str(error), is_foreign=_is_foreign(listed, error))
    return Entry(listed, replace(found, about=_in_mind(found.about)), is_cut_off=cut_off)


def _in_mind(about: dict[str, Any]) -> dict[str, Any]:
    """Of what a directory tells, the little that thousands of archives may take in memory."""
    kept = {key: about[key] for key in _TOLD if key in about and _is_short(about[key])}
    drives = about.get("drives")
    if isinstance(drives, list):
        kept["drives"] = [
            {key: one[key] for key in _TOLD_OF_DRIVES if key in one and _is_short(one[key])}
            for one in drives[:MOST_DRIVES]
            if isinstance(one, dict)
        ]
    return kept


def _is_short(told: object) -> bool:
    if isinstance(told, dict):
        return len(told) < 16 and all(isinstance(one, str | int) and _is_short(one) for one in told.values())
    if isinstance(told, list):
        return len(told) <= LONGEST_TOLD and all(isinstance(one, str) and len(one) < 64 for one in told)
    return not isinstance(told, str) or len(told) <= LONGEST_TOLD


def _is_foreign(listed: Listed, error: ArchiveError) -> bool:
    """Whether what cannot be read is nothing of ours, and nobody needs it: no damaged archive, nor one out of reach."""
    if not isinstance(error.__cause__, NotAnArchiveError):
        return False
    if not is_archive_name(listed.name):
        return True
    with suppress(ArchiveError, FormatError, OSError), range_reader(listed.place) as source:
        return archive_format(source.pread(0, min(8, source.size))) in ("lzop", "xz", "bzip2", "lz4")
    return False


def _is_cut_off(place: HistoryPlace) -> bool:
    """Whether an archive without an index begins as ours do that have one: with a frame that is the header, whole."""
    with suppress(ArchiveError, FormatError, OSError), range_reader(place) as source:
        at = 0

        def read(size: int) -> bytes:
            nonlocal at
            length = min(size, source.size - at)
            at += length
            return source.pread(at - length, length)

        frame = zs.next_frame(zs.ByteFeed(read, chunk=HEADER_STEP), MAX_HEADER_WRITTEN)
        return isinstance(frame, zs.Frame) and frame.magic is None and _is_header(frame)
    return False


def _is_header(frame: zs.Frame) -> bool:
    from pybackup.core.archive.input import decompress_frame

    content = decompress_frame(frame.content, frame.content_size, 0)
    return vma.header_length(content) == len(content)
