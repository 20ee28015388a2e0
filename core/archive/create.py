"""Puts a backup together: header, encoder, sink and job, from what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pybackup.core.errors import Advice, RequestError
from pybackup.core.places.kinds import (
    S3_SCHEMES,
    WRITABLE_SCHEMES,
    LocalPath,
    NewArchivePlace,
    ShellCommand,
    StandardStream,
    StoreUrl,
)
from pybackup.core.places.parsing import NEW_ARCHIVE
from pybackup.core.secrets.encrypting_sink import EncryptingSink, Encryption
from pybackup.core.sinks import Sink
from pybackup.core.sinks.command import CommandSink
from pybackup.core.sinks.file import FileSink
from pybackup.core.sinks.stream import StreamSink, is_stream
from pybackup.core.trace import Trace
from pybackup.formats.archive import DEFAULT_FRAME_SIZE, DEFAULT_LEVEL, ArchiveEncoder
from pybackup.formats.errors import FormatError
from pybackup.formats.public_facts import PublicFacts
from pybackup.formats.vma import DriveInfo, Header

from .delta import DeltaWriter
from .identity import Reference
from .index_memory import IndexMemory
from .view import ArchiveView
from .writer import ArchiveWriter


@dataclass(frozen=True, slots=True)
class ArchiveOptions:
    """How an archive is written.

    ``level`` None: not compressed. ``uuid`` 16 bytes, ``created`` seconds since 1970. ``encryption`` None: everybody
    can read it. ``remembered``: where the archive goes, where its index is to be kept here for the next one.
    """

    uuid: bytes
    created: int
    level: int | None = DEFAULT_LEVEL
    frame_size: int = DEFAULT_FRAME_SIZE
    threads: int = 1
    encryption: Encryption | None = None
    remembered: LocalPath | StoreUrl | None = None


@dataclass(frozen=True, slots=True)
class ParentOf:
    """The parent of a delta: what it holds, how the delta names it, and what it tells of it."""

    view: ArchiveView
    reference: Reference
    about: dict[str, Any]


def open_sink(archive: NewArchivePlace, *, replace: bool, folders_from: str | None = None) -> Sink:
    """The sink for an archive (RequestError). ``folders_from``: a folder; those below it that a file needs are made."""
    match archive:
        case StoreUrl():
            return _remote_sink(archive, replace)
        case ShellCommand(command):
            return CommandSink(command)
        case StandardStream():
            return StreamSink(archive)
        case LocalPath(path):
            if is_stream(archive):
                return StreamSink(archive)
            return FileSink(path, replace=replace, folders_from=folders_from)


def _remote_sink(url: StoreUrl, replace: bool) -> Sink:
    if url.scheme not in WRITABLE_SCHEMES:
        raise NEW_ARCHIVE.unknown(url)
    if url.scheme in S3_SCHEMES:
        from pybackup.core.stores.s3_upload import S3Upload

        return S3Upload(url, replace=replace)
    from pybackup.core.stores.file_upload import RemoteFileSink

    return RemoteFileSink(url, replace=replace)


def make_writer(
    drives: Sequence[tuple[str, int]],
    configs: Sequence[tuple[str, bytes]],
    options: ArchiveOptions,
    sink: Sink,
    pool: ThreadPoolExecutor,
    trace: Trace | None = None,
    parent: ParentOf | None = None,
) -> ArchiveWriter:
    """A writer for drives given as (name, size in bytes); RequestError where VMA cannot hold what is asked.

    With a parent the archive becomes a delta.
    """
    infos = [DriveInfo(number, name, size) for number, (name, size) in enumerate(drives, 1)]
    return writer_for(infos, configs, options, sink, pool, trace, parent)


def writer_for(
    drives: Sequence[DriveInfo],
    configs: Sequence[tuple[str, bytes]],
    options: ArchiveOptions,
    sink: Sink,
    pool: ThreadPoolExecutor,
    trace: Trace | None = None,
    parent: ParentOf | None = None,
) -> ArchiveWriter:
    """The same for drives that have their ids already."""
    header = Header(
        uuid=options.uuid,
        created=options.created,
        drives=tuple(drives),
        configs=tuple(configs),
        parent_uuid=bytes(16) if parent is None else parent.reference.uuid,
        parent_index_digest=bytes(16) if parent is None else parent.reference.digest,
        is_delta=parent is not None,
    )
    try:
        encoder = ArchiveEncoder(header, level=options.level, frame_size=options.frame_size)
    except FormatError as error:
        raise RequestError(error.what) from None
    seal = memory = None
    if options.encryption is not None:
        sink = _encrypting(sink, options.encryption, header, pool)
        seal = sink.seal
        if options.remembered is not None:
            is_local = isinstance(options.remembered, LocalPath)
            # A URL may have a password in it, and is shown without.
            memory = IndexMemory(sink, options.remembered.text if is_local else str(options.remembered), is_local)
    if parent is not None:
        return DeltaWriter(
            encoder,
            sink,
            pool,
            parent.view,
            parent.about,
            threads=options.threads,
            trace=trace,
            seal=seal,
            memory=memory,
        )
    return ArchiveWriter(encoder, sink, pool, threads=options.threads, trace=trace, seal=seal, memory=memory)


def _encrypting(sink: Sink, encryption: Encryption, header: Header, pool: ThreadPoolExecutor) -> EncryptingSink:
    """A sink that encrypts for another (RequestError)."""
    try:
        told = [PublicFacts.of_header(header).stanza()] if encryption.tells_facts else []
    except FormatError as error:
        raise RequestError(error.what, advice=Advice.NO_FACTS) from None
    encryption.check()
    return EncryptingSink(sink, encryption, told, pool)
