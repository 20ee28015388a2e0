"""Names of what lies on another machine, in ways that other programs understand: told what there is instead."""

from __future__ import annotations

import os
import re
from shlex import quote

from pybackup.core.errors import RequestError
from pybackup.core.places.nbd_uri import is_nbd_uri
from pybackup.core.stores import is_url, scheme_of, shown

_OF_SCP = re.compile(r"(?P<host>(?:[^\s/@:|]+@)?[^\s/@:|]+|(?:[^\s/@:|]+@)?\[[^\s/\]]+\]):(?P<path>[^:]+)")
_OURS = ("serve:", "qmp:")
_FETCHED = ("http", "https", "ftp")


def _of_scp(what: str) -> tuple[str, str] | None:
    """(user@host, path) where scp(1) would take this for a file on another machine, and no file here is called so."""
    found = None if is_url(what) or what.startswith(_OURS) or os.path.lexists(what) else _OF_SCP.fullmatch(what)
    if found is None or ("@" not in found["host"] and not found["path"].startswith(("/", "~"))):
        return None
    return found["host"], found["path"]


def refuse_source(what: str) -> None:
    """RequestError for a disk on another machine that cannot be read there."""
    if is_url(what) and not is_nbd_uri(what):
        scheme = scheme_of(what)
        if scheme == "file":
            raise RequestError(f"{what}: name a local file by its path alone")
        advice = "the URL of a disk is nbd:// or nbd+unix://"
        if scheme in _FETCHED:
            advice = f"try: curl -sf {quote(shown(what))} | pybackup run NAME=- --size SIZE ARCHIVE"
        raise RequestError(f"{shown(what)}: disks are not read from {scheme}:// URLs; {advice}")
    if place := _of_scp(what):
        raise RequestError(
            f"{what}: disks are not read from other machines by ssh; try:"
            f" ssh {quote(place[0])} cat {quote(place[1])} | pybackup run NAME=- --size SIZE ARCHIVE"
        )


def _by_sftp(host: str, path: str) -> str:
    """The URL of a file, whose path begins at the root."""
    return f"sftp://{host}{path}" if path.startswith("/") else f"sftp://{host}/PATH/{path.removeprefix('~/')}"


def refuse_archive(what: str) -> None:
    """RequestError for an archive that is to be read on another machine, but not named by a URL."""
    if place := _of_scp(what):
        host, path = place
        advice = f"ssh {quote(host)} cat {quote(path)} | pybackup ... -"
        raise RequestError(f"{what}: write {_by_sftp(host, path)} for a file on another machine, or: {advice}")


def refuse_new_archive(what: str) -> None:
    """The same for one that is to be written."""
    if place := _of_scp(what):
        host, path = place
        command = quote(f"|ssh {quote(host)} {quote(f'cat > {quote(path)}')}")
        raise RequestError(f"{what}: write {_by_sftp(host, path)} for a file on another machine, or: {command}")


def refuse_target(what: str) -> None:
    """RequestError for a place on another machine where no drive can be restored to."""
    if place := _of_scp(what):
        host, path = place
        command = quote(f"|ssh {quote(host)} {quote(f'dd of={quote(path)} bs=1M conv=fsync')}")
        raise RequestError(f"{what}: drives are not written to other machines by themselves; try: {command}")
