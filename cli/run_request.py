"""What was asked of `pybackup run`, and whether it makes sense, before anything is opened."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from pybackup.cli.archive_name import ArchiveName, fields_of
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
    LibvirtDomain,
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

if TYPE_CHECKING:
    from pybackup.core.libvirt.freeze import FreezeOptions


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
    connect: str | None
    all_domains: bool
    freeze: str | None
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

    def freeze_options(self) -> FreezeOptions:
        """How to freeze the filesystems of a domain of libvirt."""
        from pybackup.core.libvirt.freeze import FreezeOptions, Wish

        return FreezeOptions(Wish(self.freeze or "auto"), self.freeze_timeout)

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
    _check_machines(request)


def _check_machines(request: RunRequest) -> None:
    """What goes with the disks of a machine alone."""
    from_qemu = any(isinstance(source.what, RunningQemu) for source in request.sources)
    from_libvirt = any(isinstance(source.what, LibvirtDomain) for source in request.sources)
    if len(request.sources) > 1 and from_qemu:
        raise RequestError("a machine's disks are backed up together and alone: name one qmp:SOCKET and nothing else")
    if not from_qemu and request.nbd_socket is not None:
        raise RequestError("--nbd-socket goes with a source qmp:SOCKET")
    for_machines = (request.chosen, request.fleece, request.max_fleece)
    if not from_qemu and not from_libvirt and any(option not in (None, ()) for option in for_machines):
        raise RequestError("--drive, --fleece and --max-fleece go with a source qmp:SOCKET or libvirt:DOMAIN")
    if request.guest_agent is not None and not from_qemu:
        raise RequestError(
            "--guest-agent goes with a source qmp:SOCKET; libvirt: has --freeze; and for disks that are served, it goes"
            " with `pybackup serve`, which takes the instant"
        )
    if from_libvirt:
        _check_domains(request)
    elif request.all_domains or request.connect is not None or request.freeze is not None:
        raise RequestError("--all, --connect and --freeze go with a source libvirt:DOMAIN")


def _check_keeping(request: RunRequest) -> None:
    archive = request.archive
    is_beside = isinstance(archive, StoreUrl) or (isinstance(archive, LocalPath) and not is_stream(archive))
    if not is_beside and not rules_of(request).is_empty:
        raise RequestError(
            f"--keep-... removes archives that lie beside the new one, and nothing lies beside {archive}"
        )


def _check_series(request: RunRequest, options: ArchiveOptions) -> None:
    """Whether the rules can ever find another archive of its series."""
    archive = request.archive
    if rules_of(request).is_empty or not isinstance(archive, LocalPath | StoreUrl):
        return
    from pybackup.core.history.series import pattern_of

    name = os.path.basename(archive.text)
    if pattern_of(name, options.created, options.uuid) == name:
        raise RequestError(
            f"--keep-... removes archives whose names differ from {name} only by their time, and none is found in it;"
            " write for example disk-{now}.vma.zst"
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


def _check_domains(request: RunRequest) -> None:
    first = request.sources[0]
    if len(request.sources) > 1 or not isinstance(first.what, LibvirtDomain):
        raise RequestError("a domain's disks are backed up together and alone: name one libvirt:DOMAIN, nothing else")
    if first.name is not None:
        raise RequestError("a domain's drives are called as libvirt calls its disks: name libvirt:DOMAIN alone")
    if request.image_format is not None:
        raise RequestError("--format does not go with libvirt:DOMAIN: the domain's definition says it of each disk")
    if not request.all_domains:
        if not first.what.domain:
            raise RequestError("libvirt: names no domain: write libvirt:DOMAIN, or --all for every one")
        return
    if first.what.domain:
        raise RequestError(f"--all is every domain, and {first.what} is one; write libvirt: alone")
    if not {"name", "uuid"} & fields_of(request.archive):
        raise RequestError(f"each domain has an archive of its own: put {{name}} into {request.archive}")
    if request.archive_uuid is not None or request.chosen:
        raise RequestError("--uuid and --drive are for one domain, and --all is every one")


def name_archive(
    request: RunRequest,
    names: Sequence[str],
    options: ArchiveOptions,
    facts: RunFacts,
    machine: str | None = None,
) -> RunRequest:
    """The request with the archive's own name, which is checked. ``names`` of drives; ``machine``: that of all."""
    called = names if machine is None else [machine]
    name = ArchiveName(called, facts.job_name, options.created, options.uuid).expand(request.archive)
    facts.names, facts.archive = names, name
    named = replace(request, archive=name)
    _check_archive(named)
    _check_keeping(named)
    _check_series(named, options)
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
