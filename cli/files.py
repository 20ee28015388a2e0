"""pybackup files: files out of an archive's disks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from pybackup.cli.command import Command
from pybackup.cli.elsewhere import archive_place
from pybackup.cli.options import json_option, key_options, parents_option
from pybackup.cli.params import PlainPath
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.request import takes
from pybackup.cli.running import run_in_loop
from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import ArchivePlace, HistoryPlace

if TYPE_CHECKING:
    from pybackup.core.runs.files import FilesRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What was asked of `files`."""

    archive: ArchivePlace
    path: str | None
    folder: str | None
    device: str | None
    drives: Sequence[str]
    parents: Sequence[HistoryPlace]
    as_json: bool


@click.command("files", cls=Command, short_help="List and copy files out of an archive's disks.")
@click.argument("archive", type=PlainPath(archive_place))
@click.argument("path", required=False)
@click.option(
    "--to", "folder", type=PlainPath(), default=None, metavar="DIR", help="Copy PATH, with all that is in it, into DIR."
)
@click.option(
    "--device",
    default=None,
    metavar="DEVICE",
    show_default="all filesystems, as the guest mounts them",
    help="Look into this filesystem alone, such as /dev/sda1 or /dev/vg/root.",
)
@click.option(
    "--drive", "drives", multiple=True, metavar="NAME", help="Look only at this drive; may be given several times."
)
@key_options
@parents_option
@json_option
@takes(_Request)
def command(request: _Request) -> int:
    """List the files at PATH of the guest's filesystems, or copy them; without PATH, tell which filesystems there are.

    guestfish of libguestfs mounts them, read-only, in a small machine of its own, for what a guest has written is not
    to be trusted. That takes some seconds, and without KVM a minute or more. Nothing is restored for it: what is read
    comes from the archive. A copy replaces nothing. As root it gets the owners and modes that it has in the guest,
    setuid among them; do it as another user where that is not wanted.
    """
    if request.folder is not None and request.path is None:
        raise RequestError("--to DIR goes with the PATH of what is to be copied")
    if request.device is not None and request.path is None:
        raise RequestError("--device goes with a PATH")
    return run_in_loop(_files(request))


async def _files(request: _Request) -> int:
    from pybackup.core.runs import files

    wanted = files.FilesRequest(request.archive, request.device, request.drives, request.parents)
    if request.path is None:
        return _tell_filesystems(await files.filesystems(wanted), as_json=request.as_json)
    if request.folder is not None:
        target = await files.copy_out(wanted, request.path, request.folder)
        print(json_text({"copied": target})) if request.as_json else say(target)
        return 0
    return await _list(wanted, request.path, as_json=request.as_json)


def _tell_filesystems(found: dict[str, str], *, as_json: bool) -> int:
    if as_json:
        print(json_text({"filesystems": [{"device": device, "type": kind} for device, kind in found.items()]}))
        return 0
    for device, kind in found.items():
        say(f"{device}  {kind}")
    return 0


async def _list(wanted: FilesRequest, path: str, *, as_json: bool) -> int:
    from pybackup.core.runs import files

    if as_json:
        print(json_text({"path": path, "names": await files.names_in(wanted, path)}))
        return 0
    for line in await files.listing_of(wanted, path):
        say(line)
    return 0
