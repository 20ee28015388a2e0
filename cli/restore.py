"""pybackup restore: write drives out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import click

from pybackup.cli.command import Command, later
from pybackup.cli.elsewhere import archive_place, target_place
from pybackup.cli.numbers import duration, short
from pybackup.cli.options import (
    job_options,
    json_option,
    key_options,
    listening_options,
    parents_option,
    threads_option,
)
from pybackup.cli.params import Named, NamedPath, PlainPath, Size
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.request import JobRequest, takes
from pybackup.cli.running import run_in_loop, run_job, tell_report, threads_or_default
from pybackup.core.archive.damage import Damage
from pybackup.core.errors import ExitCode, RequestError
from pybackup.core.images.formats import ALIASES, FORMATS
from pybackup.core.jobs.job import Job
from pybackup.core.places.kinds import ArchivePlace, HistoryPlace, TargetPlace
from pybackup.core.runs.restore import RestoreRequest, restore
from pybackup.core.runs.restore_plan import RestorePlan, is_folder
from pybackup.core.sinks.stream import own_descriptor
from pybackup.core.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request(JobRequest):
    """What was asked of `restore`. ``places``: those of --to."""

    archive: ArchivePlace
    targets: Sequence[Named[TargetPlace]]
    names: Sequence[str]
    places: Sequence[Named[TargetPlace]]
    image_format: str | None
    force: bool
    with_config: bool
    skip_damaged: bool
    parents: Sequence[HistoryPlace]
    threads: int | None
    as_json: bool
    live: bool
    socket: str | None
    tcp: str | None
    control: str | None
    map_path: str | None
    offset: int | None
    length: int | None

    @property
    def is_part(self) -> bool:
        """Whether a part of a drive is wanted."""
        return self.offset is not None or self.length is not None


@click.command("restore", cls=Command, short_help="Write an archive's drives to files, a folder, a disk or a stream.")
@click.argument("archive", type=PlainPath(archive_place))
@click.argument("targets", type=NamedPath(target_place), nargs=-1, metavar="[TARGET | NAME=TARGET...]")
@click.option(
    "--drive",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=later("drive_names"),
    help="Restore only this drive; may be given several times.",
)
@click.option(
    "--to",
    "places",
    type=NamedPath(target_place),
    multiple=True,
    metavar="NAME=TARGET",
    shell_complete=later("places"),
    help="The same as NAME=TARGET without --to; may be given several times.",
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["raw", *FORMATS, *ALIASES]),
    default=None,
    show_default="by the file's name, or raw",
    help="Make files images of this format, whatever they are called.",
)
@click.option(
    "-f", "--force", is_flag=True, help="Replace files that exist; overwrite block devices and NBD exports with data."
)
@click.option("--with-config", is_flag=True, help="Write the stored configurations to the folder too.")
@click.option(
    "--skip-damaged",
    is_flag=True,
    help="Save what can be saved of a damaged archive, under the full name, and list what is lost: zeros in a file or a"
    " stream, on a disk what was there. The exit code is then 4.",
)
@click.option(
    "--offset",
    type=Size(),
    default=None,
    metavar="SIZE",
    help="Restore only a part of one drive, from this byte on, to a new file or a stream, which begins with that byte.",
)
@click.option(
    "--length",
    type=Size(1),
    default=None,
    show_default="up to the end",
    metavar="SIZE",
    help="The bytes of that part.",
)
@click.option(
    "--live",
    is_flag=True,
    help="Serve TARGET, a new raw file or a block device, over NBD from the first moment on, readable and writable,"
    " while it fills: pybackup-recover(7).",
)
@listening_options("With --live: ")
@click.option(
    "--map",
    "map_path",
    type=PlainPath(),
    default=None,
    metavar="FILE",
    show_default="TARGET.restoring",
    help="With --live: where to remember what of TARGET is there already. A block device needs it: it must survive a"
    " power failure.",
)
@key_options
@parents_option
@threads_option
@json_option
@job_options
@takes(_Request)
def command(request: _Request) -> int:
    """Write an archive's drives to files, a folder, a disk or a stream.

    TARGET is a folder (every drive becomes a file NAME.raw in it), or, for one drive, a new file, a block device
    (with --force), nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH, - for the standard output, or '|COMMAND' for
    the standard input of a command. NAME=TARGET says where drive NAME goes, and may be given several times; a file
    called NAME=TARGET is ./NAME=TARGET. A file that is called .qcow2, .vmdk, .vdi, .vhdx, .vhd, .qed, .qcow or .hdd
    becomes such an image, any other is raw. Files are sparse and have the drive's exact size. A restore that fails
    leaves what it has written of a file as TARGET.partial. ARCHIVE may be - for the standard input, or a URL. Of an
    archive with an index only the wanted drives are read.
    """
    tracer = request.tracer()
    if request.live:
        return _restore_live(request, tracer)
    _refuse_options_of_live(request)
    if request.is_part:
        return run_in_loop(_restore_part(request, tracer))
    with restore(_for_core(request), listener=request.listener(), trace=tracer) as (job, plan):
        run_in_loop(run_job(job, "restore", request.display()))
    return _report(job, job.damage, plan, request)


def _restore_live(request: _Request, tracer: Trace) -> int:
    for name, given in (
        ("--skip-damaged", request.skip_damaged),
        ("--with-config", request.with_config),
        ("--format", request.image_format not in (None, "raw")),
        ("--json", request.as_json),
        ("--offset", request.offset is not None),
        ("--length", request.length is not None),
    ):
        if given:
            raise RequestError(f"--live does not go with {name}")
    from pybackup.cli.restore_live import Serving, restore_live
    from pybackup.core.runs.recovery import RecoveryRequest

    plain = _for_core(request)
    wanted = RecoveryRequest(
        plain.archive,
        plain.target,
        plain.places,
        plain.drives,
        replace=plain.replace,
        map_path=request.map_path,
        speed=plain.speed,
        parents=plain.parents,
    )
    serving = Serving(request.socket, request.tcp, request.control, request.quiet)
    return run_in_loop(restore_live(wanted, serving, request.display(), tracer))


async def _restore_part(request: _Request, tracer: Trace) -> int:
    for name, given in (
        ("--skip-damaged", request.skip_damaged),
        ("--with-config", request.with_config),
        ("--format", request.image_format not in (None, "raw")),
    ):
        if given:
            raise RequestError(f"{name} does not go with --offset and --length")
    from pybackup.core.runs.restore_part import Part, restore_part

    part = Part(request.offset or 0, request.length)
    async with restore_part(_for_core(request), part, listener=request.listener(), trace=tracer) as (job, plan):
        await run_job(job, "restore", request.display())
    return _report(job, (), plan, request)


def _refuse_options_of_live(request: _Request) -> None:
    for name in ("socket", "tcp", "control", "map_path"):
        if getattr(request, name) is not None:
            raise RequestError(f"--{name.removesuffix('_path')} goes only with --live")


def _for_core(request: _Request) -> RestoreRequest:
    """What is asked of the library (RequestError where the arguments do not go together)."""
    target, places = _whole_and_places(request.targets, request.places)
    if places and (target is not None or request.names):
        raise RequestError("NAME=TARGET says where everything goes: neither a TARGET alone nor --drive go with it")
    if not places and target is None:
        raise RequestError("where to? name a TARGET, or NAME=TARGET for a drive")
    if request.with_config and (target is None or not is_folder(target)):
        raise RequestError("--with-config needs a folder as TARGET")
    every = [place for _, place in places] if target is None else [target]
    if request.as_json and any(own_descriptor(place) == 1 for place in every):
        raise RequestError("--json and a drive cannot both go to the standard output")
    return RestoreRequest(
        request.archive,
        target,
        places,
        request.names,
        ALIASES.get(request.image_format or "", request.image_format),
        replace=request.force,
        with_configs=request.with_config,
        skip_damaged=request.skip_damaged,
        parents=request.parents,
        threads=threads_or_default(request.threads),
        speed=request.speed,
    )


def _whole_and_places(
    targets: Sequence[Named[TargetPlace]], more: Sequence[Named[TargetPlace]]
) -> tuple[TargetPlace | None, list[tuple[str, TargetPlace]]]:
    """(TARGET, where it has no name; all of NAME=TARGET)."""
    whole = [one.what for one in targets if one.name is None]
    if len(whole) > 1 or (whole and len(targets) > 1):
        raise RequestError("name one TARGET, or NAME=TARGET for each drive that is wanted")
    places = []
    for one in (*(one for one in targets if one.name is not None), *more):
        if one.name is None:
            raise RequestError(f"--to {one.what}: write NAME=TARGET")
        places.append((one.name, one.what))
    return whole[0] if whole else None, places


# -- the report --


def _report(job: Job, damages: Sequence[Damage], plan: RestorePlan, request: _Request) -> int:
    for damage in damages:
        say(f"pybackup: lost: {damage}", err=True)
    if request.as_json:
        drives = [
            {"name": drive.name, "size": job.progress.size if request.is_part else drive.size, "target": str(place)}
            for drive, place in plan.drives.items()
        ]
        tell_report(
            json_text(
                {
                    "drives": drives,
                    "damage": [damage.as_dict() for damage in damages],
                    "seconds": round(job.elapsed, 3),
                }
            )
        )
    if request.shows_summary():
        say(
            f"restored {short(job.progress.size)} ({short(job.progress.stored)} of data) in"
            f" {duration(job.elapsed)}: " + ", ".join(map(str, plan.drives.values())),
            err=True,
        )
    return int(ExitCode.ARCHIVE) if damages else 0
