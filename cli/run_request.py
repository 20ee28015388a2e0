"""What was asked of `pybackup run`, and whether it makes sense, before anything is opened."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

import click

from pybackup.cli.archive_name import ArchiveName
from pybackup.cli.encryption import check_encryption, encryption_of, is_encrypted
from pybackup.cli.keep import rules_of
from pybackup.cli.params import Named
from pybackup.cli.request import JobRequest
from pybackup.cli.running import threads_or_default
from pybackup.cli.unattended import RunFacts
from pybackup.core.archive.create import ArchiveOptions
from pybackup.core.endpoints.drive_names import unique_drive_names
from pybackup.core.endpoints.reflink import Snapshot
from pybackup.core.endpoints.sources import SourceOptions
from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import (
    HistoryPlace,
    LocalPath,
    NewArchivePlace,
    RunningQemu,
    RunningServer,
    SourcePlace,
    StandardInput,
    StoreUrl,
)
from pybackup.core.runs.parent import ParentWish
from pybackup.core.sinks.stream import is_stream, own_descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest(JobRequest):
    """What was asked of `run`."""

    sources: Sequence[Named[SourcePlace]]
    archive: NewArchivePlace
    configs: Sequence[Named[LocalPath]]
    image_format: str | None
    size: int | None
    force_share: bool
    allow_changing: bool
    snapshot: str
    skip_unreadable: bool
    chosen: Sequence[str]
    fleece: str | None
    max_fleece: int | None
    nbd_socket: str | None
    guest_agent: str | None
    freeze_timeout: float
    compress: str
    level: int
    frame_size: int
    threads: int | None
    archive_uuid: uuid.UUID | None
    created: int | None
    force: bool
    recipients: Sequence[str]
    recipients_files: Sequence[str]
    passphrase_file: str | None
    no_public_facts: bool
    verify: bool
    base: HistoryPlace | None
    incremental: bool
    keep_within: float
    keep_last: int
    keep_hourly: int
    keep_daily: int
    keep_weekly: int
    keep_monthly: int
    keep_yearly: int
    max_chain: int
    parents: Sequence[HistoryPlace]
    as_json: bool

    def source_options(self) -> SourceOptions:
        """How to open disks at rest."""
        return SourceOptions(
            self.image_format,
            self.force_share,
            self.allow_changing,
            Snapshot(self.snapshot),
            self.skip_unreadable,
        )

    def archive_options(self) -> ArchiveOptions:
        """How to write the archive: each time another one, unless its uuid and time were given."""
        return ArchiveOptions(
            uuid=(self.archive_uuid or uuid.uuid4()).bytes,
            created=int(time.time()) if self.created is None else self.created,
            level=self.level if self.compress == "zstd" else None,
            frame_size=self.frame_size,
            threads=threads_or_default(self.threads),
            encryption=encryption_of(self),
        )

    @property
    def is_encrypted(self) -> bool:
        """Whether the archive is to be."""
        return is_encrypted(self)

    def parent_wish(self) -> ParentWish | None:
        """What the archive shall be a delta of."""
        if self.base is None and not self.incremental:
            return None
        return ParentWish(self.base, self.parents, self.max_chain)


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
    _check_keeping(request)
    _check_parent(request)
    streams = [source for source in request.sources if isinstance(source.what, StandardInput)]
    if request.size is not None and not streams:
        raise RequestError("--size tells the size of the standard input, and - is none of the sources")
    check_encryption(request)
    if len(streams) > 1:
        raise RequestError("the standard input can only be one of the sources")
    if Snapshot(request.snapshot) is Snapshot.REFLINK:
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


def _check_keeping(request: RunRequest) -> None:
    archive = request.archive
    is_beside = isinstance(archive, StoreUrl) or (isinstance(archive, LocalPath) and not is_stream(archive))
    if not is_beside and not rules_of(request).is_empty:
        raise RequestError(
            f"--keep-... removes archives that lie beside the new one, and nothing lies beside {archive}"
        )


def _check_parent(request: RunRequest) -> None:
    if request.base is not None and request.incremental:
        raise RequestError("--incremental looks for the parent itself: name none with --base")
    if request.parent_wish() is None:
        if request.parents:
            raise RequestError("--parents goes with --incremental or --base")
        return
    if request.compress == "none":
        raise RequestError("a plain VMA has no index, and cannot be a delta: --compress none goes with a full archive")
    if request.incremental and not isinstance(request.archive, LocalPath | StoreUrl):
        raise RequestError(
            f"--incremental looks for the parent beside the archive, and nothing lies beside {request.archive}; --base"
            " names one"
        )


def name_archive(request: RunRequest, names: Sequence[str], options: ArchiveOptions, facts: RunFacts) -> RunRequest:
    """The request with the archive's own name, which is checked."""
    name = ArchiveName(names, facts.job_name, options.created, options.uuid).expand(request.archive)
    facts.names, facts.archive = names, name
    named = replace(request, archive=name)
    _check_archive(named)
    _check_keeping(named)
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
