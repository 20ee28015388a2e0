"""The kinds of places. Nothing in them changes.

``of(text)`` gives the place that a text names, where it names one of that kind (RequestError where it is one that
cannot be); ``text`` is what was given, and names the same place again; ``str()`` is what may be printed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from pybackup.core.errors import RequestError

from .nbd_uri import NbdAddress, is_nbd_uri, parse_nbd_uri

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

S3_SCHEMES = frozenset({"s3", "s3a"})
HTTP_SCHEMES = frozenset({"http", "https"})
SFTP_SCHEMES = frozenset({"sftp", "ssh"})
BUCKET_SCHEMES = S3_SCHEMES | {"gs", "gcs"}
WRITABLE_SCHEMES = S3_SCHEMES | SFTP_SCHEMES | {"gs", "gcs", "memory"}
"""Of stores whose files become visible when they are whole, and which can give up a file that is not."""


class Place(Protocol):
    """What all kinds have in common."""

    @classmethod
    def of(cls, text: str) -> Self | None:
        """The place, where the text names one of this kind (RequestError)."""
        ...

    @property
    def text(self) -> str:
        """What names this place."""
        ...


@dataclass(frozen=True, slots=True)
class LocalPath:
    """A file, a folder, a device: what lies there is not looked at."""

    path: str

    @classmethod
    def of(cls, text: str) -> Self | None:
        """Every text can be a path."""
        return cls(text)

    @property
    def text(self) -> str:
        """The path."""
        return self.path

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class StandardInput:
    """A disk that comes through the standard input. ``size`` in bytes, which only its user knows; None: not told."""

    size: int | None = None
    TEXT: ClassVar[str] = "-"

    @classmethod
    def of(cls, text: str) -> Self | None:
        """A dash alone."""
        return cls() if text == cls.TEXT else None

    @property
    def text(self) -> str:
        """The dash."""
        return self.TEXT

    def __str__(self) -> str:
        return self.TEXT


@dataclass(frozen=True, slots=True)
class StandardStream:
    """An archive or a drive: in the standard input, where it is read, and the standard output, where it is written."""

    TEXT: ClassVar[str] = "-"

    @classmethod
    def of(cls, text: str) -> Self | None:
        """A dash alone."""
        return cls() if text == cls.TEXT else None

    @property
    def text(self) -> str:
        """The dash."""
        return self.TEXT

    def __str__(self) -> str:
        return self.TEXT


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """The standard input of a command, in a shell."""

    command: str
    BEGIN: ClassVar[str] = "|"

    @classmethod
    def of(cls, text: str) -> Self | None:
        """What stands behind a bar (RequestError where there is nothing)."""
        if not text.startswith(cls.BEGIN):
            return None
        command = text.removeprefix(cls.BEGIN)
        if not command.strip():
            raise RequestError(f"a command must follow the {cls.BEGIN}")
        return cls(command)

    @property
    def text(self) -> str:
        """The command behind a bar."""
        return self.BEGIN + self.command

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class NbdUri:
    """An export of an NBD server."""

    uri: str
    address: NbdAddress

    @classmethod
    def of(cls, text: str) -> Self | None:
        """A URI of NBD (RequestError where it is one that is not understood)."""
        return cls(text, parse_nbd_uri(text)) if is_nbd_uri(text) else None

    @property
    def text(self) -> str:
        """The URI."""
        return self.uri

    def __str__(self) -> str:
        return self.uri


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A file in object storage, on a server."""

    url: str

    @classmethod
    def of(cls, text: str) -> Self | None:
        """Any URL (RequestError for that of a local file)."""
        if not _URL.match(text) or is_nbd_uri(text):
            return None
        found = cls(text)
        if found.scheme in ("file", "local"):
            raise RequestError(f"{found}: name a local file by its path alone")
        return found

    @property
    def text(self) -> str:
        """The URL with all that is in it."""
        return self.url

    @property
    def scheme(self) -> str:
        """What stands before ``://``, in small letters."""
        return self.url.partition("://")[0].lower()

    def __str__(self) -> str:
        """The URL without its password and its query, which may be a signature."""
        scheme, _, rest = self.url.partition("://")
        place, slash, path = rest.partition("/")
        user, at, host = place.rpartition("@")
        if self.scheme not in S3_SCHEMES:
            # A key of S3 may hold a question mark, and its query can only name a version.
            path = path.partition("?")[0]
        return f"{scheme}://{user.partition(':')[0]}{at}{host}{slash}{path}"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """The disks of a running `pybackup serve`, by its control socket."""

    control: str
    BEGIN: ClassVar[str] = "serve:"

    @classmethod
    def of(cls, text: str) -> Self | None:
        """What stands behind ``serve:`` (RequestError where there is nothing)."""
        path = _behind(cls.BEGIN, text)
        return None if path is None else cls(path)

    @property
    def text(self) -> str:
        """The socket behind ``serve:``."""
        return self.BEGIN + self.control

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class RunningQemu:
    """The disks of a running QEMU, by the socket of its QMP monitor."""

    monitor: str
    BEGIN: ClassVar[str] = "qmp:"

    @classmethod
    def of(cls, text: str) -> Self | None:
        """What stands behind ``qmp:`` (RequestError where there is nothing)."""
        path = _behind(cls.BEGIN, text)
        return None if path is None else cls(path)

    @property
    def text(self) -> str:
        """The socket behind ``qmp:``."""
        return self.BEGIN + self.monitor

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class LibvirtDomain:
    """The disks of a domain of libvirt, by its name or uuid; every domain, where no name is there."""

    domain: str
    BEGIN: ClassVar[str] = "libvirt:"

    @classmethod
    def of(cls, text: str) -> Self | None:
        """What stands behind ``libvirt:``."""
        return cls(text.removeprefix(cls.BEGIN)) if text.startswith(cls.BEGIN) else None

    @property
    def text(self) -> str:
        """The domain's name behind ``libvirt:``."""
        return self.BEGIN + self.domain

    def __str__(self) -> str:
        return self.text


def _behind(begin: str, text: str) -> str | None:
    if not text.startswith(begin):
        return None
    if text == begin:
        raise RequestError(f"{text} names no socket: write {text}PATH")
    return text.removeprefix(begin)


DiskPlace = LocalPath | StandardInput | NbdUri
"""One disk that can be read."""
SourcePlace = DiskPlace | RunningServer | RunningQemu | LibvirtDomain
"""What is backed up: a disk, or all disks of one who uses them."""
ServedPlace = DiskPlace | StoreUrl
"""What a server offers: a disk, or the drives of an archive."""
HistoryPlace = LocalPath | StoreUrl
"""A folder, or a prefix of a store, that archives lie in."""
ArchivePlace = LocalPath | StandardStream | StoreUrl
"""Where an archive is read."""
NewArchivePlace = ArchivePlace | ShellCommand
"""Where an archive is written to."""
TargetPlace = LocalPath | NbdUri | StandardStream | ShellCommand
"""What a drive is restored to. Whether a path is a folder, a device or a file to be made is seen when it is opened."""
