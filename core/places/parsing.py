"""Makes a place of what the user wrote, or says which kinds of places there are.

What looks like another program's name of a place is refused, for as a path it would be a surprise: read, it is not
found; written, a disk lies in a file called ``rbd:pool`` and nobody finds it. A path can always be written with a slash
before the colon. So the rules are:

- What has ``://`` is never a path.
- What lies here under the very name is meant.
- ``WORD:`` and ``HOST:PATH``, as scp(1) has it, are no paths of what must be there already. Of what is to be made they
  may be, unless the word is one that other programs know, or the folder is not there.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Generic, TypeVar

from pybackup.core.errors import RequestError

from .kinds import (
    WRITABLE_SCHEMES,
    ArchivePlace,
    DiskPlace,
    HistoryPlace,
    LibvirtDomain,
    LocalPath,
    NbdUri,
    NewArchivePlace,
    Place,
    RunningQemu,
    RunningServer,
    ServedPlace,
    ShellCommand,
    SourcePlace,
    StandardInput,
    StandardStream,
    StoreUrl,
    TargetPlace,
)

P = TypeVar("P", bound=Place)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WORD = re.compile(r"([A-Za-z][A-Za-z0-9_+-]+):")
_OF_SCP = re.compile(r"((?:[^\s/@:|]+@)?(?:[^][\s/@:|{}]+|\[[^\s/\]]+\])):(.+)", re.DOTALL)
_STORES = "abfs abfss adl az azure b2 dropbox gcs gs hdfs rclone rest s3 s3a swift"
_SERVERS = "cifs dav davs ftp ftps http https nfs rsync scp sftp smb ssh webdav"
_DISKS = "cephfs gluster host_device iscsi json lvm nbd nbd+unix nbds nvme rbd sheepdog tcp unix vitastor vsock zfs"
_KNOWN_WORDS = frozenset(f"libvirt qmp serve {_STORES} {_SERVERS} {_DISKS}".split())
"""By which QEMU, backup programs and stores name places of theirs."""


class UnknownPlaceError(RequestError):
    """The name of a place of no kind that will do here. ``text`` as given; ``scheme`` in small letters."""

    def __init__(self, message: str, text: str, scheme: str) -> None:
        super().__init__(message)
        self.text, self.scheme = text, scheme


class OtherMachineError(RequestError):
    """What scp(1) would take for a file on another machine. ``host`` may have a user before it."""

    def __init__(self, message: str, host: str, path: str) -> None:
        super().__init__(message)
        self.host, self.path = host, path


@dataclass(frozen=True, slots=True)
class Role(Generic[P]):
    """What places are for, and which kinds will do.

    LocalPath is the last kind. ``refusal``: what is said of others, with {} for them; ``forms``: how those that will do
    are written. ``is_new``: a file may be made. ``schemes``: those of URLs that will do; None for any.
    """

    kinds: tuple[type[P], ...]
    refusal: str
    forms: str
    is_new: bool = False
    schemes: frozenset[str] | None = None

    def parse(self, text: str) -> P:
        """The place (RequestError)."""
        for kind in self.kinds:
            if kind is LocalPath:
                self._check_path(text)
            place = kind.of(text)
            if place is not None:
                self._check_scheme(place)
                return place
        raise AssertionError(f"{self} takes no paths")

    def unknown(self, url: StoreUrl) -> UnknownPlaceError:
        """What there is to say of a URL of a kind that nobody knows."""
        return self._unknown_scheme(url.text, url.scheme)

    def _check_scheme(self, place: Place) -> None:
        if isinstance(place, StoreUrl) and self.schemes is not None and place.scheme not in self.schemes:
            raise self.unknown(place)

    def _check_path(self, text: str) -> None:
        """Raise for what is rather no path."""
        if found := _SCHEME.match(text):
            raise self._unknown_scheme(text, found[1])
        if os.path.lexists(text):
            return
        word = _WORD.match(text)
        if word and word[1].lower() in _KNOWN_WORDS:
            raise self._unknown_word(text, word[1])
        self._check_machine(text)
        if word and self._cannot_be(text):
            raise self._unknown_word(text, word[1], "there is no such file, and ")

    def _cannot_be(self, text: str) -> bool:
        """Whether nothing of that name, which is not there, can be opened or made."""
        folder, slash, _ = text.partition("/")
        return not self.is_new or bool(slash and "{" not in folder and not os.path.lexists(folder))

    def _check_machine(self, text: str) -> None:
        found = _OF_SCP.fullmatch(text)
        if found and ("@" in found[1] or found[2].startswith(("/", "~"))):
            raise OtherMachineError(self._sentence(text, "HOST:PATH (as in scp)", _hint(text)), found[1], found[2])

    def _unknown_word(self, text: str, word: str, before: str = "") -> UnknownPlaceError:
        return UnknownPlaceError(self._sentence(text, f"{word}:", _hint(text), before), text, word.lower())

    def _unknown_scheme(self, text: str, scheme: str) -> UnknownPlaceError:
        return UnknownPlaceError(self._sentence(str(StoreUrl.of(text) or text), f"{scheme}://"), text, scheme.lower())

    def _sentence(self, name: str, called: str, hint: str = "", before: str = "") -> str:
        return f"{name}: {before}{self.refusal.format(called)}; {self.forms}{hint}"


def _hint(text: str) -> str:
    return f"; a file that is really called so is ./{text}"


_NBD = "nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH"
_AT_URLS = "s3://BUCKET/KEY, gs://BUCKET/KEY or sftp://HOST/PATH"

DISK: Role[DiskPlace] = Role(
    kinds=(StandardInput, NbdUri, LocalPath),
    refusal="disks are not read from {}",
    forms=f"a disk is a path, - for the standard input, {_NBD}",
)
"""A disk that is read."""

SOURCE: Role[SourcePlace] = Role(
    kinds=(StandardInput, NbdUri, RunningServer, RunningQemu, LibvirtDomain, LocalPath),
    refusal=DISK.refusal,
    forms=f"{DISK.forms}; serve:CONTROL are the disks of a running server, qmp:SOCKET those of a running QEMU, and"
    " libvirt:DOMAIN those of a domain of libvirt",
)
"""What is backed up."""

SERVED: Role[ServedPlace] = Role(
    kinds=(StandardInput, NbdUri, StoreUrl, LocalPath),
    refusal="{} cannot be served",
    forms=f"what can be is a path, {_NBD}, or the URL of an archive: https://HOST/PATH, {_AT_URLS}",
)
"""What a server offers."""

ARCHIVE: Role[ArchivePlace] = Role(
    kinds=(StandardStream, StoreUrl, LocalPath),
    refusal="{} is no place for an archive",
    forms=f"an archive is a path, - for the standard input, https://HOST/PATH, {_AT_URLS}",
)
"""An archive that is read. Which other URLs there are the packages know that speak to stores."""

HISTORY: Role[HistoryPlace] = Role(
    kinds=(StoreUrl, LocalPath),
    refusal="archives do not lie at {}",
    forms="they lie in a folder, or below s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or sftp://HOST/FOLDER",
)
"""A folder of archives."""

NEW_ARCHIVE: Role[NewArchivePlace] = Role(
    kinds=(StandardStream, ShellCommand, StoreUrl, LocalPath),
    refusal=ARCHIVE.refusal + "",
    forms=f"archives are written to a path, - for the standard output, '|COMMAND', {_AT_URLS}",
    is_new=True,
    schemes=WRITABLE_SCHEMES,
)
"""An archive that is written."""

TARGET: Role[TargetPlace] = Role(
    kinds=(StandardStream, ShellCommand, NbdUri, LocalPath),
    refusal="drives are not restored to {}",
    forms=f"they are restored to a file, a folder, a block device, - for the standard output, '|COMMAND', {_NBD}",
    is_new=True,
)
"""What a drive is restored to."""
