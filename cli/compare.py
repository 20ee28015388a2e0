"""pybackup compare: is this disk what the archive holds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import click

from pybackup.cli.command import Command, later
from pybackup.cli.elsewhere import archive_place, disk_place
from pybackup.cli.numbers import duration, short
from pybackup.cli.options import (
    force_share_option,
    format_option,
    job_options,
    json_option,
    key_options,
    parents_option,
    snapshot_option,
    threads_option,
)
from pybackup.cli.params import Named, NamedPath, PlainPath
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.request import JobRequest, takes
from pybackup.cli.running import run_in_loop, run_job, threads_or_default
from pybackup.core.archive.chain import ParentSearch
from pybackup.core.archive.drives import open_drives
from pybackup.core.archive.stream import Digests
from pybackup.core.device import BlockDevice
from pybackup.core.endpoints.drive_names import drive_name
from pybackup.core.endpoints.reflink import Snapshot
from pybackup.core.endpoints.sources import SourceOptions, open_source
from pybackup.core.errors import ExitCode, RequestError
from pybackup.core.jobs.compare import CompareJob
from pybackup.core.jobs.walk import Extents
from pybackup.core.places.kinds import ArchivePlace, DiskPlace, HistoryPlace
from pybackup.core.trace import Trace
from pybackup.formats.vma import DriveInfo, Header

SHOWN = 20
"""Differences listed for a person; --json has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request(JobRequest):
    """What was asked of `compare`."""

    archive: ArchivePlace
    sources: Sequence[Named[DiskPlace]]
    drive: str | None
    image_format: str | None
    force_share: bool
    snapshot: str
    parents: Sequence[HistoryPlace]
    threads: int | None
    as_json: bool


@click.command("compare", cls=Command, short_help="Tell whether a disk is what an archive holds.")
@click.argument("archive", type=PlainPath(archive_place))
@click.argument("sources", type=NamedPath(disk_place), nargs=-1, required=True, metavar="[NAME=]SOURCE...")
@click.option(
    "--drive",
    default=None,
    metavar="NAME",
    shell_complete=later("drive_names"),
    help="The same as NAME=, where there is one SOURCE.",
)
@format_option
@force_share_option
@snapshot_option
@key_options
@parents_option
@threads_option
@json_option
@job_options
@takes(_Request)
def command(request: _Request) -> int:
    """Tell whether disks are what an archive holds. The exit code is 0 if so, and 1 if they differ.

    A disk may be larger than the drive, as one that it was restored to may be: what lies behind is not compared.
    NAME is the drive that SOURCE is compared with. Without it, the archive must have just one drive, or one with the
    file's name up to its first dot. ARCHIVE may be - for the standard input, or a URL.
    """
    tracer = request.tracer()
    plan: dict[DriveInfo, DiskPlace] = {}

    def wanted(header: Header) -> list[DriveInfo]:
        return [_drive_for(header, source, request.drive, len(request.sources)) for source in request.sources]

    threads = threads_or_default(request.threads)
    search = ParentSearch(request.parents)
    with open_drives(request.archive, wanted, threads=threads, digests=Digests.UNPROVEN, search=search) as stream:
        for source, info in zip(request.sources, wanted(stream.header), strict=True):
            if info in plan:
                raise RequestError(f"drive {info.name} is compared twice")
            plan[info] = source.what
        job = run_in_loop(_compare(stream, plan, request, tracer))
    return _report(job, request)


def _drive_for(header: Header, source: Named[DiskPlace], drive: str | None, count: int) -> DriveInfo:
    name = source.name or drive
    if name is None and len(header.drives) == 1 and count == 1:
        return header.drives[0]
    name = name or drive_name(source)
    found = header.drive(name)
    if found is None:
        known = ", ".join(one.name for one in header.drives)
        raise RequestError(f"the archive has no drive {name}; it has {known}: write NAME=SOURCE")
    return found


async def _compare(stream: Extents, plan: dict[DriveInfo, DiskPlace], request: _Request, trace: Trace) -> CompareJob:
    options = SourceOptions(request.image_format, force_share=request.force_share, snapshot=Snapshot(request.snapshot))
    listener = request.listener()
    async with AsyncExitStack() as stack:
        disks: dict[DriveInfo, BlockDevice] = {}
        for drive, what in plan.items():
            one = await open_source(what, options)
            stack.push_async_callback(one.close)
            listener.tell(one.warnings, one.notes)
            disks[drive] = one.device
        job = CompareJob(stream, disks, speed=request.speed, trace=trace)
        await run_job(job, "compare", request.display())
    return job


def _report(job: CompareJob, request: _Request) -> int:
    equal = not job.different
    if request.as_json:
        ranges = [{"drive": name, "offset": at, "length": size} for name, at, size in job.differences]
        told = {"equal": equal, "different_bytes": job.different, "differences": ranges}
        print(json_text({**told, "larger": job.larger, "smaller": job.smaller}))
    elif not request.quiet:
        for name, size in job.smaller.items():
            say(f"drive {name}: the disk ends {size} bytes before the drive does")
        for name, offset, length in job.differences[:SHOWN]:
            say(f"drive {name}: {length} bytes at byte {offset} differ")
        if len(job.differences) > SHOWN:
            click.echo(f"and {len(job.differences) - SHOWN} more ranges")
        if equal:
            larger = "".join(f"; the disk of {name} is {short(size)} larger" for name, size in job.larger.items())
            names = ", ".join(one.name for one in job.progress.drives)
            say(f"equal: {names}, in {duration(job.elapsed)}{larger}")
    return 0 if equal else int(ExitCode.FAILED)
