"""pybackup run: back up disks."""

from __future__ import annotations

import json
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import click

from pybackup.cli import forget
from pybackup.cli.archive_name import fixed_folder
from pybackup.cli.command import Command
from pybackup.cli.consistency import reason
from pybackup.cli.elsewhere import history_place, new_archive_place, source_place
from pybackup.cli.failures import describe
from pybackup.cli.job_file import or_from_job_file
from pybackup.cli.keep import keep_options, rules_of
from pybackup.cli.numbers import duration, percent, short
from pybackup.cli.options import (
    agent_options,
    encryption_options,
    force_share_option,
    format_option,
    job_options,
    json_option,
    libvirt_options,
    parents_option,
    snapshot_option,
    threads_option,
)
from pybackup.cli.params import Named, NamedPath, PlainPath, Size, Whole
from pybackup.cli.printable import say
from pybackup.cli.run_machine import domain_name, tell_of_the_end, told_of
from pybackup.cli.run_request import RunRequest, check, name_archive
from pybackup.cli.running import run_in_loop, run_job, tell_report, warn
from pybackup.cli.unattended import RunFacts, unattended
from pybackup.cli.unreadable import unreadable_lines
from pybackup.cli.version import VERSION
from pybackup.cli.ways import ways_in_words
from pybackup.core.archive.chain import MOST_ARCHIVES
from pybackup.core.archive.create import ArchiveOptions
from pybackup.core.errors import ExitCode, PybackupError
from pybackup.core.guest.consistency import consistency_of
from pybackup.core.guest.filesystem_freeze import AgentOptions
from pybackup.core.jobs.changes import ways_told
from pybackup.core.places.kinds import (
    LibvirtDomain,
    LocalPath,
    NewArchivePlace,
    RunningQemu,
    RunningServer,
    StandardInput,
)
from pybackup.core.qemu.fleecing import FleecingOptions
from pybackup.core.qemu.handover import default_folder
from pybackup.core.runs.at_rest import DisksAtRest
from pybackup.core.runs.course import Backup, BackupRequest, Way, backup
from pybackup.core.runs.machine import MachinesDisks
from pybackup.core.runs.parent import MAX_CHAIN
from pybackup.core.runs.served import ServedDisks
from pybackup.core.trace import Trace
from pybackup.formats.archive import DEFAULT_FRAME_SIZE, DEFAULT_LEVEL, MAX_FRAME_SIZE, MIN_FRAME_SIZE


class _Run(Command):
    """`run --forget` has arguments of its own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """As Click does it, of what was asked."""
        if not forget.is_asked(args):
            return super().make_context(info_name, args, parent, **extra)
        return forget.command.make_context(info_name, args, parent, **extra)


@click.command("run", cls=_Run, short_help="Back up one or more disks into one archive.")
@click.argument(
    "sources", type=NamedPath(source_place), nargs=-1, metavar="[NAME=]SOURCE...", callback=or_from_job_file
)
@click.argument("archive", type=PlainPath(new_archive_place), metavar="ARCHIVE")
@click.option(
    "-c",
    "--config",
    "configs",
    type=NamedPath(LocalPath),
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
    help="With qmp: and libvirt: only this disk of the machine; may be given several times.",
)
@click.option(
    "--fleece",
    type=PlainPath(),
    default=None,
    show_default="$TMPDIR or /var/tmp",
    metavar="DIR",
    help="With qmp: and libvirt: a folder for the temporary images, which take what the guest overwrites.",
)
@click.option(
    "--max-fleece",
    type=Size(1 << 20),
    default=None,
    metavar="SIZE",
    help="With qmp: and libvirt: fail the backup when the temporary images take more than SIZE.",
)
@click.option(
    "--nbd-socket",
    type=PlainPath(),
    default=None,
    metavar="PATH",
    help="With qmp: QEMU's NBD server, of which it has only one, runs already and listens on this Unix socket.",
)
@click.option(
    forget.OPTION,
    is_flag=True,
    expose_value=False,
    help="Alone with qmp:SOCKET or libvirt:DOMAIN: make no backup, but remove from the machine the dirty bitmaps, or"
    " checkpoints, that backups have left there to know what changes. The next one reads all of the disks.",
)
@agent_options("With qmp: ")
@libvirt_options
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
    default=f"{DEFAULT_FRAME_SIZE >> 10}K",
    show_default=True,
    metavar="SIZE",
    help="At most SIZE bytes in a zstd frame, 64K to 8M: small frames are faster to read at random, large ones"
    " make the archive smaller.",
)
@click.option(
    "--incremental",
    is_flag=True,
    help="Store only what changed since the newest archive with these drives beside ARCHIVE; a full archive if there is"
    " none.",
)
@click.option(
    "--base",
    type=PlainPath(history_place),
    default=None,
    metavar="PARENT",
    help="Store only what changed since the archive PARENT.",
)
@click.option(
    "--max-chain",
    type=Whole(1, MOST_ARCHIVES - 1),
    default=MAX_CHAIN,
    show_default=True,
    metavar="N",
    help="With --incremental or --base: after N archives in a row that hold only changes, a full one.",
)
@parents_option
@threads_option
@keep_options("When the archive is complete, remove those of its series that no such rule keeps. ")
@click.option("-f", "--force", is_flag=True, help="Replace ARCHIVE if it exists, and is an archive or empty.")
@encryption_options
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
@unattended(RunRequest)
def command(request: RunRequest, facts: RunFacts) -> int:
    """Back up one or more disks into one archive.

    SOURCE is an image file (raw, qcow2, vmdk, vdi, vhdx, vhd...), a block device, nbd://HOST[:PORT]/EXPORT,
    nbd+unix:///EXPORT?socket=PATH, - for the standard input (with --size), serve:CONTROL for all disks of a running
    `pybackup serve`, qmp:SOCKET for the disks of a running QEMU with that monitor, or libvirt:DOMAIN for the machine
    that libvirt calls so, running or switched off. NAME is the drive's name in the
    archive, of letters, digits, dots, _, - and spaces within; without it, the export's, or the file's up to its first
    dot. ARCHIVE is a file that does not exist yet, a
    URL such as s3://BUCKET/KEY, a FIFO, - for the standard output, or '|COMMAND' for the standard input of a command.
    In its name {host}, {name}, {job}, {uuid} and {now:%Y%m%d} are replaced; {{ is a brace. Folders with fields in their
    names, and those below them, are made. --force replaces archives and empty files, and nothing else.
    """
    check(request)
    if request.all_domains:
        from pybackup.cli.run_all import run_all

        return run_all(request, facts)
    tracer, options = request.tracer(), request.archive_options()
    # Before there is a loop, whose handler of SIGINT would wait for a server that does not answer.
    way = way_of(request)
    return _carry_out(run_one(request, way, options, tracer, facts), request, way, facts)


def way_of(request: RunRequest) -> Way:
    """How the disks are come by."""
    first = request.sources[0]
    if isinstance(first.what, RunningServer):
        return ServedDisks(first.what)
    fleecing = FleecingOptions(request.fleece or default_folder(), request.max_fleece, request.nbd_socket)
    if isinstance(first.what, LibvirtDomain):
        from pybackup.core.runs.domain import DomainOptions, DomainsDisks

        opening = request.source_options()
        asked = DomainOptions(
            fleecing,
            opening,
            request.connect,
            request.chosen,
            records=request.parent_wish() is not None,
            freeze=request.freeze_options(),
        )
        return DomainsDisks(first.what, asked)
    if isinstance(first.what, RunningQemu):
        agent = None if request.guest_agent is None else AgentOptions(request.guest_agent, request.freeze_timeout)
        return MachinesDisks(first.what, fleecing, chosen=request.chosen, name=first.name, agent=agent)
    alone = RunningServer | RunningQemu | LibvirtDomain
    disks = [(one.name, one.what) for one in request.sources if not isinstance(one.what, alone)]
    sized = StandardInput(request.size)
    named = [Named(name, sized if isinstance(what, StandardInput) else what) for name, what in disks]
    return DisksAtRest(named, request.source_options())


def _carry_out(work: Coroutine[Any, Any, None], request: RunRequest, way: Way, facts: RunFacts) -> int:
    """Do the work and tell about it; the exit code.

    Once the archive has its name, whatever fails after it (a source that cannot be closed) is told, and no failure.
    """
    try:
        run_in_loop(work)
    except Exception as error:
        if facts.job is None or not facts.job.is_decided:
            raise
        warn([f"the archive is complete, but afterwards: {describe(error)[0]}"])
    else:
        tell_of_the_end(request, way)
    return conclude(request, way, facts)[0]


def conclude(request: RunRequest, way: Way, facts: RunFacts) -> tuple[int, dict[str, Any]]:
    """Prune if that was asked for, and report: the exit code, and the report as JSON (PybackupError)."""
    assert facts.job is not None
    told, sentence = told_of(request, way), ""
    if not rules_of(request).is_empty and not facts.job.lost:
        from pybackup.cli.keep_after import prune_after

        told["pruned"], sentence = prune_after(request, facts.archive, request.created)
    named = replace(request, archive=facts.archive)
    code = report(named, facts.job, told)
    if sentence:
        raise PybackupError(sentence)
    return code, summary(named, facts.job) | told


async def run_one(request: RunRequest, way: Way, options: ArchiveOptions, trace: Trace, facts: RunFacts) -> None:
    """One whole backup, of which the facts tell (PybackupError)."""

    def named(names: Sequence[str]) -> NewArchivePlace:
        machine = domain_name(request, way)
        return name_archive(request, names, options, facts, machine).archive

    asked = BackupRequest(
        request.archive,
        options,
        configs=request.configs,
        replace=request.force,
        folders_from=fixed_folder(request.archive),
        verify=request.verify,
        skip_unreadable=request.skip_unreadable,
        speed=request.speed,
        parent=request.parent_wish(),
        tool=f"pybackup {VERSION}",
    )
    async with backup(way, asked, named=named, listener=request.listener(), trace=trace) as job:
        facts.job = job
        await run_job(job, "backup", request.display())


def report(request: RunRequest, job: Backup, told: dict[str, Any]) -> int:
    """The closing summary, and the exit code of a backup that is complete; ``told`` goes into the report as JSON."""
    progress = job.progress
    if request.as_json:
        tell_report(json.dumps(summary(request, job) | told))
    if request.shows_summary():
        click.echo(
            f"{request.archive}: {short(progress.size)} in {duration(job.elapsed)},"
            f" {percent(progress.zero, progress.size)} zeros,"
            f" {short(progress.stored)} stored in {short(progress.written)}"
            f" ({percent(progress.written, progress.stored)})"
            + (", encrypted" if request.is_encrypted else "")
            + (", verified" if request.verify else "")
            + (f", {short(progress.unchanged)} as in the parent" if progress.unchanged else "")
            + (", filesystem-consistent" if job.consistency.get("consistency") == "filesystem" else ""),
            err=True,
        )
    # That not all went as wished is told in cron's mail too.
    is_news = any(way.why and not way.is_planned for way in job.ways.values())
    if request.shows_summary() or (is_news and not request.quiet):
        for line in ways_in_words(job.ways):
            say(f"pybackup: {line}", err=True)
    listed = f"pybackup info --json {request.archive}"
    for line in unreadable_lines(job.lost, "could not be read and are zeros in the archive", listed):
        say(f"pybackup: {line}", err=True)
    if (why := reason(job.consistency)) is not None:
        warn([f"the archive is only crash-consistent: {why}"])
    return int(ExitCode.SOURCE) if job.lost else 0


def summary(request: RunRequest, job: Backup) -> dict[str, Any]:
    """The report as JSON."""
    progress = job.progress
    return {
        "archive": str(request.archive),
        "seconds": round(job.elapsed, 3),
        "size": progress.size,
        "zero": progress.zero,
        "stored": progress.stored,
        "written": progress.written,
        "encrypted": request.is_encrypted,
        "verified": request.verify,
        **consistency_of(job.consistency),
        "drives": [{"name": one.name, "size": one.size, "zero": one.zero} for one in progress.drives],
        "unchanged": progress.unchanged,
        **ways_told(job.ways),
        "unreadable": job.lost.as_json(),
        "unreadable_bytes": job.lost.lost,
    }
