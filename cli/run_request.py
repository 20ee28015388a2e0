"""What was asked of `pybackup run`, and whether it makes sense, before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import click

from pybackup.cli.archive_name import ArchiveName
from pybackup.cli.params import Named
from pybackup.cli.unattended import RunFacts
from pybackup.core.archive.create import ArchiveOptions
from pybackup.core.endpoints.drive_names import unique_drive_names
from pybackup.core.endpoints.reflink import Snapshot
from pybackup.core.endpoints.sources import SourceOptions
from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import (
    LocalPath,
    NewArchivePlace,
    RunningQemu,
    RunningServer,
    SourcePlace,
    StandardStream,
    StoreUrl,
)
from pybackup.core.sinks.stream import is_stream, own_descriptor


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What was asked of `run`, beside the archive's own options."""

    sources: Sequence[Named[SourcePlace]]
    archive: NewArchivePlace
    configs: Sequence[Named[LocalPath]]
    source_options: SourceOptions
    chosen: Sequence[str]
    fleece: str | None
    max_fleece: int | None
    nbd_socket: str | None
    guest_agent: str | None
    freeze_timeout: float
    force: bool
    skip_unreadable: bool
    verify: bool
    speed: int
    progress: str
    quiet: bool
    verbose: bool
    as_json: bool


def check(request: RunRequest) -> None:
    """Raise click.UsageError or RequestError where it does not."""
    if not request.sources:
        raise click.UsageError(
            f"name the disks first, and then the archive: {request.archive} is the only name given; was the archive's"
            " name forgotten?"
        )
    if not request.archive.text or not all(source.what.text for source in request.sources):
        raise RequestError("the name of a disk or of the archive is empty")
    unique_drive_names(request.sources)
    streams = [source for source in request.sources if isinstance(source.what, StandardStream)]
    if request.source_options.size is not None and not streams:
        raise RequestError("--size tells the size of the standard input, and - is none of the sources")
    if len(streams) > 1:
        raise RequestError("the standard input can only be one of the sources")
    if request.source_options.snapshot is Snapshot.REFLINK:
        for source in request.sources:
            if not isinstance(source.what, LocalPath):
                raise RequestError(f"--snapshot reflink is for raw files, and {source.what} is none")
    if len(request.sources) > 1 and any(isinstance(source.what, RunningServer) for source in request.sources):
        raise RequestError("a server's disks are backed up together and alone: name one serve:CONTROL and nothing else")
    from_qemu = any(isinstance(source.what, RunningQemu) for source in request.sources)
    if len(request.sources) > 1 and from_qemu:
        raise RequestError("a machine's disks are backed up together and alone: name one qmp:SOCKET and nothing else")
    for_qemu = (request.chosen, request.fleece, request.max_fleece, request.nbd_socket)
    if not from_qemu and any(option not in (None, ()) for option in for_qemu):
        raise RequestError("--drive, --fleece, --max-fleece and --nbd-socket go with a source qmp:SOCKET")
    if request.guest_agent is not None and not from_qemu:
        raise RequestError(
            "--guest-agent goes with a source qmp:SOCKET; for disks that are served, with `pybackup serve`, which takes"
            " the instant"
        )


def name_archive(request: RunRequest, names: Sequence[str], options: ArchiveOptions, facts: RunFacts) -> RunRequest:
    """The request with the archive's own name, which is checked."""
    name = ArchiveName(names, facts.job_name, options.created, options.uuid).expand(request.archive)
    facts.names, facts.archive = names, name
    named = replace(request, archive=name)
    _check_archive(named)
    return named


def _check_archive(request: RunRequest) -> None:
    if request.as_json and own_descriptor(request.archive) == 1:
        raise RequestError("--json and the archive cannot both go to the standard output")
    if request.verify and isinstance(request.archive, StoreUrl):
        raise RequestError(
            "--verify reads an archive before it gets its name, which is possible for a file only; afterwards:"
            f" pybackup verify {request.archive}"
        )
    if request.verify and (not isinstance(request.archive, LocalPath) or is_stream(request.archive)):
        raise RequestError("--verify needs an archive that is a file, to read it back")
