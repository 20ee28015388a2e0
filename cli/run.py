"""pybackup run: back up disks."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from pybackup.cli.command import Command
from pybackup.cli.consistency import reason
from pybackup.cli.elsewhere import refuse_new_archive, refuse_source
from pybackup.cli.failures import describe
from pybackup.cli.job_file import or_from_job_file
from pybackup.cli.numbers import duration, percent, short
from pybackup.cli.options import (
    agent_options,
    force_share_option,
    format_option,
    job_options,
    json_option,
    snapshot_option,
    threads_option,
)
from pybackup.cli.params import Named, NamedPath, PlainPath, Size, Whole
from pybackup.cli.progress import choose, shows_summary
from pybackup.cli.run_request import QMP, SERVE, RunRequest, check, name_archive
from pybackup.cli.running import make_trace, run_in_loop, run_job, tell_report, threads_or_default, warn
from pybackup.cli.unattended import RunFacts, unattended
from pybackup.cli.unreadable import unreadable_lines
from pybackup.cli.version import VERSION
from pybackup.core.archive.create import ArchiveOptions, make_writer, open_sink
from pybackup.core.archive.open import archive_reader
from pybackup.core.archive.stream import ArchiveStream
from pybackup.core.endpoints.drive_names import source_label, stored_name, unique_drive_names
from pybackup.core.endpoints.reflink import Snapshot
from pybackup.core.endpoints.sources import OpenSource, SourceOptions, open_source
from pybackup.core.errors import ExitCode, SourceError
from pybackup.core.guest.consistency import CRASH, consistency_of
from pybackup.core.jobs.backup import SCAN_THREADS, BackupJob, Drive
from pybackup.core.jobs.verify import VerifyJob
from pybackup.core.live.client import RemoteBackup, served_drives
from pybackup.core.qemu.fleecing import FleecingOptions
from pybackup.core.qemu.handover import default_folder
from pybackup.core.qemu.machine import CONFIG_NAME
from pybackup.core.qemu.running import RunningQemu
from pybackup.core.sinks import Sink
from pybackup.core.sinks.file import FileSink
from pybackup.core.stores import shown
from pybackup.core.trace import Trace
from pybackup.formats.archive import DEFAULT_FRAME_SIZE, DEFAULT_LEVEL, MAX_FRAME_SIZE, MIN_FRAME_SIZE

if TYPE_CHECKING:
    from pybackup.core.guest.filesystem_freeze import FilesystemFreeze


@click.command("run", cls=Command, short_help="Back up one or more disks into one archive.")
@click.argument(
    "sources", type=NamedPath(refuse_source), nargs=-1, metavar="[NAME=]SOURCE...", callback=or_from_job_file
)
@click.argument("archive", type=PlainPath(refuse_new_archive), metavar="ARCHIVE")
@click.option(
    "-c",
    "--config",
    "configs",
    type=NamedPath(),
    multiple=True,
    metavar="[NAME=]FILE",
    help="Store a configuration file too, under its own name or NAME. Proxmox looks for qemu-server.conf.",
)
@format_option
@click.option("--size", type=Size(1), default=None, metavar="SIZE", help="The exact size of the standard input.")
@click.option(
    "--drive",
    "chosen",
    multiple=True,
    metavar="NAME",
    help="With qmp: only this disk of the machine; may be given several times.",
)
@click.option(
    "--fleece",
    type=PlainPath(),
    default=None,
    show_default="$TMPDIR or /var/tmp",
    metavar="DIR",
    help="With qmp: a folder for the temporary images, which take what the guest overwrites.",
)
@click.option(
    "--max-fleece",
    type=Size(1 << 20),
    default=None,
    metavar="SIZE",
    help="With qmp: fail the backup when the temporary images take more than SIZE.",
)
@click.option(
    "--nbd-socket",
    type=PlainPath(),
    default=None,
    metavar="PATH",
    help="With qmp: QEMU's NBD server, of which it has only one, runs already and listens on this Unix socket.",
)
@agent_options("With qmp: ")
@click.option(
    "--compress",
    type=click.Choice(["zstd", "none"]),
    default="zstd",
    show_default=True,
    help="none writes a plain VMA, which has no index.",
)
@click.option(
    "--level",
    type=Whole(1, 22),
    default=DEFAULT_LEVEL,
    show_default=True,
    metavar="N",
    help="zstd's compression level: 1 is fast, 22 is small.",
)
@click.option(
    "--frame-size",
    type=Size(MIN_FRAME_SIZE, MAX_FRAME_SIZE),
    default=str(DEFAULT_FRAME_SIZE >> 20) + "M",
    show_default=True,
    metavar="SIZE",
    help="At most SIZE bytes in a zstd frame, 64K to 8M: small frames are faster to read at random, large ones"
    " make the archive smaller.",
)
@threads_option
@click.option("-f", "--force", is_flag=True, help="Replace ARCHIVE if it exists, and is an archive or empty.")
@click.option("--verify", is_flag=True, help="Read the archive back and check it before it gets its name.")
@click.option(
    "--skip-unreadable",
    is_flag=True,
    help="Save what can be read of a failing disk; the rest becomes zeros and is listed. The exit code is then 3.",
)
@click.option("--allow-changing", is_flag=True, help="Do not fail when the source changed while it was read.")
@force_share_option
@snapshot_option
@click.option(
    "--uuid", "archive_uuid", type=click.UUID, default=None, show_default="random", help="The archive's uuid."
)
@click.option(
    "--time",
    "created",
    type=Whole(0),
    default=None,
    show_default="now",
    metavar="SECONDS",
    help="The archive's creation time, in seconds since 1970.",
)
@json_option
@job_options
@unattended
def command(
    sources: tuple[Named, ...],
    archive: str,
    configs: tuple[Named, ...],
    image_format: str | None,
    size: int | None,
    compress: str,
    level: int,
    frame_size: int,
    threads: int | None,
    archive_uuid: uuid.UUID | None,
    created: int | None,
    allow_changing: bool,
    force_share: bool,
    snapshot: str,
    trace: str,
    facts: RunFacts,
    **request: Any,
) -> int:
    """Back up one or more disks into one archive.

    SOURCE is an image file (raw, qcow2, vmdk, vdi, vhdx, vhd...), a block device, nbd://HOST[:PORT]/EXPORT,
    nbd+unix:///EXPORT?socket=PATH, - for the standard input (with --size), serve:CONTROL for all disks of a running
    `pybackup serve`, or qmp:SOCKET for the disks of a running QEMU with that monitor. NAME is the drive's name in the
    archive; without it, the export's, or the file's up to its first dot. ARCHIVE is a file that does not exist yet, a
    URL such as s3://BUCKET/KEY, a FIFO, - for the standard output, or '|COMMAND' for the standard input of a command.
    In its name {host}, {name}, {job}, {uuid} and {now:%Y%m%d} are replaced; {{ is a brace. Folders with fields in their
    names, and those below them, are made. --force replaces archives and empty files, and nothing else.
    """
    options = ArchiveOptions(
        uuid=(archive_uuid or uuid.uuid4()).bytes,
        created=int(time.time()) if created is None else created,
        level=level if compress == "zstd" else None,
        frame_size=frame_size,
        threads=threads_or_default(threads),
    )
    source_options = SourceOptions(
        image_format, size, force_share, allow_changing, Snapshot(snapshot), request["skip_unreadable"]
    )
    asked = RunRequest(sources=sources, archive=archive, configs=configs, source_options=source_options, **request)
    check(asked)
    tracer = make_trace(trace)
    if sources[0].what.startswith(SERVE):
        # Before there is a loop, whose handler of SIGINT would wait for a server that does not answer.
        drives = served_drives(sources[0].what.removeprefix(SERVE))
        asked = name_archive(asked, [name for name, _ in drives], options, facts)
        return _carry_out(_run_live(asked, drives, options, tracer, facts), asked, facts)
    if sources[0].what.startswith(QMP):
        return _carry_out(_run_qemu(asked, options, tracer, facts), asked, facts)
    asked = name_archive(asked, unique_drive_names(sources), options, facts)
    return _carry_out(_run(asked, options, tracer, facts), asked, facts)


def _carry_out(work: Coroutine[Any, Any, None], request: RunRequest, facts: RunFacts) -> int:
    """Do the work and tell about it; the exit code.

    Once the archive has its name, whatever fails after it (a source that cannot be closed) is told, and no failure.
    """
    try:
        run_in_loop(work)
    except Exception as error:
        if facts.job is None or not facts.job.is_decided:
            raise
        warn([f"the archive is complete, but afterwards: {describe(error)[0]}"])
    assert facts.job is not None
    return report(replace(request, archive=facts.archive), facts.job, facts.told)


async def _run_live(
    request: RunRequest, drives: Sequence[tuple[str, int]], options: ArchiveOptions, trace: Trace, facts: RunFacts
) -> None:
    """Back up the disks of a running server: it sends the clusters, the archive is made here."""
    path = request.sources[0].what.removeprefix(SERVE)
    asked = {"speed": request.speed, "skip_unreadable": request.skip_unreadable}
    with (
        ThreadPoolExecutor(options.threads, thread_name_prefix="pybackup-compress") as pool,
        ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="pybackup-scan") as scanners,
    ):
        sink = open_sink(request.archive, replace=request.force, folders_from=request.folders_from)
        writer = make_writer(drives, [read_config(one) for one in request.configs], options, sink, pool, trace)
        verify = _verifier(request, sink, pool)
        job = RemoteBackup(path, asked, drives, writer, scanners, before_commit=verify, trace=trace)
        facts.job = job
        await run_job(job, "backup", choose(request.progress, request.quiet))


async def _run_qemu(request: RunRequest, options: ArchiveOptions, trace: Trace, facts: RunFacts) -> None:
    """Back up the disks of a running QEMU."""
    source = request.sources[0]
    configs = [read_config(config) for config in request.configs]
    async with AsyncExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(options.threads, thread_name_prefix="pybackup-compress"))
        scanners = stack.enter_context(ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="pybackup-scan"))
        path = source.what.removeprefix(QMP)
        qemu = await RunningQemu.connect(path, request.chosen, source.name)
        stack.push_async_callback(qemu.close)
        if shows_summary(request.progress, request.quiet, request.verbose):
            warn((f"{name} is not backed up: {reason}" for name, reason in qemu.left_out), "note")
        request = name_archive(request, [disk.name for disk in qemu.disks], options, facts)
        if all(name != CONFIG_NAME for name, _ in configs):
            configs.append((CONFIG_NAME, qemu.description))
        sink = open_sink(request.archive, replace=request.force, folders_from=request.folders_from)
        writer = make_writer([(disk.name, disk.size) for disk in qemu.disks], configs, options, sink, pool, trace)
        job = qemu.backup(
            writer,
            scanners,
            fleecing=FleecingOptions(request.fleece or default_folder(), request.max_fleece, request.nbd_socket),
            about={
                "tool": f"pybackup {VERSION}",
                "created": options.created,
                "sources": [{"name": disk.name, "kind": "qemu"} for disk in qemu.disks],
                **CRASH,
            },
            filesystems=_filesystems(request),
            skip_unreadable=request.skip_unreadable,
            before_commit=_verifier(request, sink, pool),
            speed=request.speed,
            trace=trace,
        )
        facts.job = job
        left_out = [{"name": name, "reason": reason} for name, reason in qemu.left_out]
        facts.told = {"left_out": left_out, "unplugged": job.unplugged}
        await run_job(job, "backup", choose(request.progress, request.quiet))
    for name in job.left:
        click.echo(f"pybackup: {name} stays behind in the machine, which does not give it up", err=True)
    warn(f"disk {name} was unplugged meanwhile; the archive holds it as it was before" for name in job.unplugged)


def _filesystems(request: RunRequest) -> FilesystemFreeze | None:
    """What freezes the guest's filesystems, where that was asked for."""
    if request.guest_agent is None:
        return None
    from pybackup.core.guest.filesystem_freeze import AgentOptions, FilesystemFreeze

    return FilesystemFreeze(AgentOptions(request.guest_agent, request.freeze_timeout), lambda told: warn([told]))


def _verifier(request: RunRequest, sink: Sink, pool: ThreadPoolExecutor) -> Callable[[], Awaitable[None]] | None:
    """What reads the archive back before it gets its name, where that was asked for."""
    if not request.verify or not isinstance(sink, FileSink):
        return None

    async def verify() -> None:
        await sink.flush()
        await verify_file(sink.partial_path, request.archive, pool)

    return verify


async def _run(request: RunRequest, options: ArchiveOptions, trace: Trace, facts: RunFacts) -> None:
    configs = [read_config(config) for config in request.configs]
    async with AsyncExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(options.threads, thread_name_prefix="pybackup-compress"))
        scanners = stack.enter_context(ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="pybackup-scan"))
        opened = []
        for source in request.sources:
            one = await open_source(source.what, request.source_options)
            stack.push_async_callback(one.close)
            opened.append(one)
            warn(one.warnings)
            if shows_summary(request.progress, request.quiet, request.verbose):
                warn(one.notes, "note")
        names = unique_drive_names(request.sources)
        sink = open_sink(request.archive, replace=request.force, folders_from=request.folders_from)
        sizes = [(name, one.device.size) for name, one in zip(names, opened, strict=True)]
        writer = make_writer(sizes, configs, options, sink, pool, trace)

        job = BackupJob(
            [
                Drive(number, name, one.device, one.check, one.allocated)
                for number, (name, one) in enumerate(zip(names, opened, strict=True), 1)
            ],
            writer,
            scanners,
            about=_about(request, opened, options),
            skip_unreadable=request.skip_unreadable,
            before_commit=_verifier(request, sink, pool),
            speed=request.speed,
            trace=trace,
        )
        facts.job = job
        await run_job(job, "backup", choose(request.progress, request.quiet))


def _about(request: RunRequest, opened: Sequence[OpenSource], options: ArchiveOptions) -> dict[str, Any]:
    return {
        "tool": f"pybackup {VERSION}",
        "created": options.created,
        "sources": [
            {"name": source_label(source.what), "kind": one.kind}
            for source, one in zip(request.sources, opened, strict=True)
        ],
    }


def read_config(config: Named) -> tuple[str, bytes]:
    """(name, content) of a configuration file."""
    try:
        with open(config.what, "rb") as file:
            content = file.read((1 << 16) + 1)
    except OSError as error:
        raise SourceError(f"cannot read the configuration {config.what}: {error.strerror}") from error
    return stored_name(config.name or os.path.basename(config.what)), content


async def verify_file(path: str, name: str, pool: ThreadPoolExecutor) -> None:
    """Read an archive file back; ArchiveError if anything is wrong with it."""
    with archive_reader(path) as reader:
        await VerifyJob(ArchiveStream(reader.read, name, pool)).run()


def report(request: RunRequest, job: BackupJob | RemoteBackup, told: dict[str, Any]) -> int:
    """The closing summary, and the exit code of a backup that is complete; ``told`` goes into the report as JSON."""
    progress = job.progress
    if request.as_json:
        tell_report(json.dumps(_summary(request, job) | told))
    if shows_summary(request.progress, request.quiet, request.verbose):
        click.echo(
            f"{shown(request.archive)}: {short(progress.size)} in {duration(job.elapsed)},"
            f" {percent(progress.zero, progress.size)} zeros,"
            f" {short(progress.stored)} stored in {short(progress.written)}"
            f" ({percent(progress.written, progress.stored)})"
            + (", verified" if request.verify else "")
            + (", filesystem-consistent" if job.consistency.get("consistency") == "filesystem" else ""),
            err=True,
        )
    listed = f"pybackup info --json {shown(request.archive)}"
    for line in unreadable_lines(job.lost, "could not be read and are zeros in the archive", listed):
        click.echo(f"pybackup: {line}", err=True)
    if (why := reason(job.consistency)) is not None:
        warn([f"the archive is only crash-consistent: {why}"])
    return int(ExitCode.SOURCE) if job.lost else 0


def _summary(request: RunRequest, job: BackupJob | RemoteBackup) -> dict[str, Any]:
    progress = job.progress
    return {
        "archive": shown(request.archive),
        "seconds": round(job.elapsed, 3),
        "size": progress.size,
        "zero": progress.zero,
        "stored": progress.stored,
        "written": progress.written,
        "verified": request.verify,
        **consistency_of(job.consistency),
        "drives": [{"name": one.name, "size": one.size, "zero": one.zero} for one in progress.drives],
        "unreadable": job.lost.as_json(),
        "unreadable_bytes": job.lost.lost,
    }
