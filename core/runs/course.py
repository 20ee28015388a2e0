"""The course of every backup, wherever its disks come from: pools -> sink -> writer -> verifier -> job."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from pybackup.core.archive.create import ArchiveOptions, ParentOf, make_writer, open_sink
from pybackup.core.archive.open import archive_reader
from pybackup.core.archive.stream import ArchiveStream
from pybackup.core.archive.writer import ArchiveWriter
from pybackup.core.endpoints.drive_names import NamedPlace, stored_name
from pybackup.core.errors import ArchiveError, RequestError, SourceError
from pybackup.core.jobs.backup import SCAN_THREADS, BackupJob
from pybackup.core.jobs.verify import VerifyJob
from pybackup.core.live.client import RemoteBackup
from pybackup.core.places.kinds import LocalPath, NewArchivePlace, SourcePlace, StoreUrl
from pybackup.core.places.same_file import is_same_file
from pybackup.core.sinks import Sink
from pybackup.core.sinks.file import FileSink
from pybackup.core.trace import Trace

from .listener import Listener
from .parent import Choice, Made, ParentWish, chosen_parent

Backup = BackupJob | RemoteBackup
"""The job that makes an archive."""
MOST_CONFIG = (1 << 16) + 1
"""Bytes that are read of a configuration: one more than an archive can hold, which then says so."""


@dataclass(frozen=True, slots=True)
class BackupRequest:
    """What is asked of a backup, wherever its disks come from.

    ``archive``: where it goes; ``folders_from``: a folder below which its folders are made. ``replace``: an archive
    that is there. ``configs``: the names, where they got any, and paths of configurations. ``verify``: read the archive
    back before it gets its name, which only a file's can be.
    ``speed``: bytes a second, 0 for no limit. ``parent``: of what the archive shall be a delta; None: of nothing.
    ``tool``: what the archive says that it was made by.
    """

    archive: NewArchivePlace
    options: ArchiveOptions
    configs: Sequence[NamedPlace[LocalPath]] = ()
    replace: bool = False
    folders_from: str | None = None
    verify: bool = False
    skip_unreadable: bool = False
    speed: int = 0
    parent: ParentWish | None = None
    tool: str = "pybackup"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a job is made of, beside its disks."""

    request: BackupRequest
    choice: Choice
    writer: ArchiveWriter
    scanners: ThreadPoolExecutor
    before_commit: Callable[[], Awaitable[None]] | None
    trace: Trace


class Way(Protocol):
    """How the disks of a backup are come by. Its methods are called once each, in this order."""

    @property
    def paths(self) -> Sequence[SourcePlace]:
        """What is read, none of which an archive may replace."""
        ...

    async def find(self, stack: AsyncExitStack, listener: Listener) -> Sequence[str]:
        """The names of the drives; what is opened for that, the stack closes."""
        ...

    def origins(self) -> dict[str, str]:
        """By the name of each drive what tells its disk from others: see origin_of()."""
        ...

    async def open(self, stack: AsyncExitStack, listener: Listener) -> Sequence[tuple[str, int]]:
        """(name, size in bytes) of each drive, which can be read from now on."""
        ...

    def configs(self, given: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
        """The configurations to store, (name, content): those given, and what else is known of the machine."""
        ...

    def job(self, parts: Parts) -> Backup:
        """What copies them."""
        ...


@asynccontextmanager
async def backup(
    way: Way,
    request: BackupRequest,
    *,
    named: Callable[[Sequence[str]], NewArchivePlace] | None = None,
    listener: Listener | None = None,
    trace: Trace | None = None,
) -> AsyncIterator[Backup]:
    """Within the body, a backup that only needs to be run; nothing stays open after it.

    ``named``: the archive's own name by those of the drives, where it depends on them. Raises every PybackupError; a
    job that is made has to be run, or cancelled and then run.
    """
    listener, trace = listener or Listener(), trace or Trace()
    async with AsyncExitStack() as stack:
        configs: Sequence[tuple[str, bytes]] = [read_config(config) for config in request.configs]
        pool = stack.enter_context(_threads(request.options.threads, "compress"))
        scanners = stack.enter_context(_threads(SCAN_THREADS, "scan"))
        names = await way.find(stack, listener)
        archive = request.archive if named is None else named(names)
        _refuse_own_source(archive, [*way.paths, *(config.what for config in request.configs)])
        origins = way.origins()
        made = Made(request.options.created, request.options.uuid)
        choosing = chosen_parent(request.parent, archive, origins, made, listener)
        choice = await asyncio.to_thread(stack.enter_context, choosing)
        if request.options.encryption is None and choice.parent is not None and choice.parent.chain.encrypted:
            listener.warn(f"{choice.parent.chain.encrypted[0]} is encrypted, and what is stored of it now is not")
        drives = await way.open(stack, listener)
        sink = open_sink(archive, replace=request.replace, folders_from=request.folders_from)
        configs = way.configs(configs)
        options = _remembering(request, archive)
        writer = make_writer(drives, configs, options, sink, pool, trace, _parent_of(choice))
        writer.told["origins"] = origins
        verify = verifier(sink, pool) if request.verify else None
        yield way.job(Parts(request, choice, writer, scanners, _before_commit(choice, verify), trace))
        if (why := writer.not_remembered) is not None:
            listener.warn(f"the index cannot be kept here, so the next archive will be a full one: {why}")


def _remembering(request: BackupRequest, archive: NewArchivePlace) -> ArchiveOptions:
    """The options; of an archive that others read, and of which deltas are to be made here, the index is kept here."""
    encryption = request.options.encryption
    is_for_others = encryption is not None and not encryption.is_by_passphrase
    if request.parent is None or not is_for_others or not isinstance(archive, LocalPath | StoreUrl):
        return request.options
    return replace(request.options, remembered=archive)


def _parent_of(choice: Choice) -> ParentOf | None:
    if choice.parent is None:
        return None
    reference = choice.parent.identity.reference
    assert reference is not None
    return ParentOf(choice.parent.chain.view, reference, choice.parent.about())


def _before_commit(
    choice: Choice, verify: Callable[[], Awaitable[None]] | None
) -> Callable[[], Awaitable[None]] | None:
    """What is done when the archive is complete, and has no name yet: it may fail (ArchiveError)."""
    parent = choice.parent
    if parent is None:
        return verify

    async def check() -> None:
        if verify is not None:
            await verify()
        await asyncio.to_thread(parent.check_still_there)

    return check


def _threads(count: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix=f"pybackup-{name}")


def _refuse_own_source(archive: NewArchivePlace, read: Iterable[SourcePlace]) -> None:
    for what in read:
        if is_same_file(what, archive):
            raise RequestError(f"{what} would be replaced by the archive made of it")


def read_config(config: NamedPlace[LocalPath]) -> tuple[str, bytes]:
    """(name, content) of a configuration file (SourceError)."""
    try:
        with open(config.what.path, "rb") as file:
            content = file.read(MOST_CONFIG)
    except OSError as error:
        raise SourceError(f"cannot read the configuration {config.what}: {error.strerror}") from error
    return stored_name(config.name or os.path.basename(config.what.path)), content


def verifier(sink: Sink, pool: ThreadPoolExecutor) -> Callable[[], Awaitable[None]]:
    """What reads the archive back before it gets its name; ArchiveError if anything is wrong with it."""
    if not isinstance(sink, FileSink):
        raise RequestError(f"{sink.name} cannot be read back before it gets its name, as only a file can be")

    async def verify() -> None:
        await sink.flush()
        with archive_reader(LocalPath(sink.partial_path)) as reader:
            try:
                await VerifyJob(ArchiveStream(reader.read, sink.name, pool, allow_delta=True)).run()
            except ArchiveError as error:
                error.advice = None  # it goes away, and the disk is still there
                raise

    return verify
