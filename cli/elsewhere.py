"""Places as they stand on the command line; of those on other machines it is told what there is instead."""

from __future__ import annotations

from shlex import quote

from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import (
    ArchivePlace,
    DiskPlace,
    HistoryPlace,
    NewArchivePlace,
    RunningServer,
    ServedPlace,
    SourcePlace,
    StoreUrl,
    TargetPlace,
)
from pybackup.core.places.parsing import (
    ARCHIVE,
    DISK,
    HISTORY,
    NEW_ARCHIVE,
    SERVED,
    SOURCE,
    TARGET,
    OtherMachineError,
    P,
    Role,
    UnknownPlaceError,
)

_FETCHED = ("http", "https", "ftp")


def source_place(text: str) -> SourcePlace:
    """What is backed up (RequestError)."""
    return _disk(SOURCE, text)


def disk_place(text: str) -> DiskPlace:
    """A disk (RequestError)."""
    return _disk(DISK, text)


def _disk(role: Role[P], text: str) -> P:
    into = "| pybackup run NAME=- --size SIZE ARCHIVE"
    try:
        return role.parse(text)
    except OtherMachineError as error:
        raise RequestError(f"{error}; or try: ssh {quote(error.host)} cat {quote(error.path)} {into}") from None
    except UnknownPlaceError as error:
        if error.scheme in _FETCHED and "://" in text:
            raise RequestError(f"{error}; or try: curl -sf {quote(str(StoreUrl(text)))} {into}") from None
        raise


def archive_place(text: str) -> ArchivePlace:
    """An archive that is read (RequestError)."""
    try:
        return ARCHIVE.parse(text)
    except OtherMachineError as error:
        advice = f"ssh {quote(error.host)} cat {quote(error.path)} | pybackup ... -"
        raise RequestError(f"{error}; write {_by_sftp(error)}, or: {advice}") from None


def new_archive_place(text: str) -> NewArchivePlace:
    """An archive that is to be written (RequestError)."""
    try:
        return NEW_ARCHIVE.parse(text)
    except OtherMachineError as error:
        command = quote(f"|ssh {quote(error.host)} {quote(f'cat > {quote(error.path)}')}")
        raise RequestError(f"{error}; write {_by_sftp(error)}, or: {command}") from None


def history_place(text: str) -> HistoryPlace:
    """A folder of archives (RequestError)."""
    if not text:
        raise RequestError("the name of a place is empty")
    try:
        return HISTORY.parse(text)
    except OtherMachineError as error:
        raise RequestError(f"{error}; write {_by_sftp(error)}") from None


def _by_sftp(of: OtherMachineError) -> str:
    """The URL of a file, whose path begins at the root."""
    path = of.path if of.path.startswith("/") else f"/PATH/{of.path.removeprefix('~/')}"
    return f"sftp://{of.host}{path}"


def target_place(text: str) -> TargetPlace:
    """What a drive is restored to (RequestError)."""
    try:
        return TARGET.parse(text)
    except OtherMachineError as error:
        command = quote(f"|ssh {quote(error.host)} {quote(f'dd of={quote(error.path)} bs=1M conv=fsync')}")
        raise RequestError(f"{error}; try: {command}") from None


def control_place(text: str) -> RunningServer:
    """A server, by the path of its control socket, or as `serve` prints it (RequestError)."""
    return RunningServer.of(text) or RunningServer(text)


def served_place(text: str) -> ServedPlace:
    """What a server offers (RequestError)."""
    return _disk(SERVED, text)
