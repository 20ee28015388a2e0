"""pybackup restore: write drives out."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import click

from pybackup.cli.command import Command, later
from pybackup.cli.elsewhere import refuse_archive, refuse_target
from pybackup.cli.numbers import duration, short
from pybackup.cli.options import job_options, json_option, threads_option
from pybackup.cli.params import Named, NamedPath, PlainPath, same_file
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.progress import choose, shows_summary
from pybackup.cli.running import make_trace, run_in_loop, run_job, tell_report, threads_or_default, warn
from pybackup.core.archive.by_index import DrivesByIndex
from pybackup.core.archive.open import open_archive, open_drives
from pybackup.core.archive.stream import ArchiveStream, Digests
from pybackup.core.devices.raw import RawDevice
from pybackup.core.endpoints.drive_names import file_name
from pybackup.core.endpoints.image_targets import NbdExport, NewImage
from pybackup.core.endpoints.small_files import SmallFile
from pybackup.core.endpoints.targets import ExistingDisk, NewFile, RestoreTarget, Stream
from pybackup.core.errors import ArchiveError, ExitCode, RequestError, TargetError
from pybackup.core.images.formats import ALIASES, FORMATS
from pybackup.core.images.probe import suffix_format
from pybackup.core.jobs.restore import RestoreJob
from pybackup.core.places.nbd_uri import is_nbd_uri
from pybackup.core.sinks.command import open_stream
from pybackup.core.sinks.output_place import LONGEST_NAME
from pybackup.core.sinks.stream import COMMAND, is_stream, own_descriptor
from pybackup.core.sinks.target_failure import target_failure
from pybackup.core.stores import is_url, shown
from pybackup.core.system.device_in_use import disk_in_use
from pybackup.core.system.image_lock import ImageLock
from pybackup.formats.vma import DriveInfo, Header


@click.command("restore", cls=Command, short_help="Write an archive's drives to files, a folder, a disk or a stream.")
@click.argument("archive", type=PlainPath(refuse_archive))
@click.argument("targets", type=NamedPath(refuse_target), nargs=-1, metavar="[TARGET | NAME=TARGET...]")
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
    type=NamedPath(refuse_target),
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
    help="Save what can be saved of a damaged archive and list what is lost; the exit code is 4.",
)
@threads_option
@json_option
@job_options
def command(
    archive: str,
    targets: tuple[Named, ...],
    names: tuple[str, ...],
    places: tuple[Named, ...],
    image_format: str | None,
    trace: str,
    **options: Any,
) -> int:
    """Write an archive's drives to files, a folder, a disk or a stream.

    TARGET is a folder (every drive becomes a file NAME.raw in it), or, for one drive, a new file, a block device (with
    --force), nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH, - for the standard output, or '|COMMAND' for the
    standard input of a command. NAME=TARGET says where drive NAME goes, and may be given several times; a file called
    NAME=TARGET is ./NAME=TARGET. A file that is called .qcow2, .vmdk, .vdi, .vhdx, .vhd, .qed or .hdd becomes such an
    image, any other is raw. Files are sparse and have the drive's exact size. A restore that fails leaves its file as
    TARGET.partial. ARCHIVE may be - for the standard input, or a URL. Of an archive with an index only the wanted
    drives are read.
    """
    tracer = make_trace(trace)
    image_format = ALIASES.get(image_format or "", image_format)
    target, places = _whole_and_places(targets, places)
    with (
        _open(archive, lambda header: _plan(header, target, names, places, _ending(image_format)), options) as stream,
        ExitStack() as stack,
    ):
        plan = _plan(stream.header, target, names, places, _ending(image_format))
        if options["as_json"] and any(own_descriptor(path) == 1 for path in plan.values()):
            raise RequestError("--json and a drive cannot both go to the standard output")
        configs = _plan_configs(stream.header, target, plan, options)
        if any(same_file(path, archive) for path in plan.values()):
            raise RequestError(f"{shown(archive)} would be replaced by what is restored from it")
        opened = {drive: _open_target(path, image_format, options["force"], stack) for drive, path in plan.items()}
        files = [SmallFile(path, content, replace=options["force"]) for path, content in configs]
        job = RestoreJob(stream, opened, files=files, speed=options["speed"], trace=tracer)
        run_in_loop(run_job(job, "restore", choose(options["progress"], options["quiet"])))
    return _report(job, plan, options)


def _open(
    archive: str, wanted: Callable[[Header], Iterable[DriveInfo]], options: dict[str, Any]
) -> AbstractContextManager[ArchiveStream | DrivesByIndex]:
    """Only what is wanted is read, but of a damaged archive all: what its index says may be lost too."""
    threads = threads_or_default(options["threads"])
    if options["skip_damaged"]:
        return open_archive(archive, threads=threads, tolerant=True, digests=Digests.UNPROVEN)
    return open_drives(archive, wanted, threads=threads, digests=Digests.UNPROVEN)


# -- what goes where --


def _whole_and_places(targets: Sequence[Named], places: Sequence[Named]) -> tuple[str | None, tuple[Named, ...]]:
    """(TARGET, where it has no name; all of NAME=TARGET)."""
    whole = [one.what for one in targets if one.name is None]
    if len(whole) > 1 or (whole and len(targets) > 1):
        raise RequestError("name one TARGET, or NAME=TARGET for each drive that is wanted")
    return whole[0] if whole else None, (*(one for one in targets if one.name is not None), *places)


def _plan(
    header: Header, target: str | None, names: Sequence[str], places: Sequence[Named], ending: str
) -> dict[DriveInfo, str]:
    drives = [_drive(header, name) for name in names] or list(header.drives)
    if places:
        if target is not None or names:
            raise RequestError("NAME=TARGET says where everything goes: neither a TARGET alone nor --drive go with it")
        return _plan_places(header, places, ending)
    if target is None:
        raise RequestError("where to? name a TARGET, or NAME=TARGET for a drive")
    _refuse_url(target)
    if _is_folder(target):
        return {drive: _path_in(target, drive, ending) for drive in drives}
    if len(drives) > 1:
        known = ", ".join(drive.name for drive in drives)
        raise RequestError(f"the archive has {len(drives)} drives ({known}): name a folder, or NAME=TARGET")
    return {drives[0]: target}


def _plan_places(header: Header, places: Sequence[Named], ending: str) -> dict[DriveInfo, str]:
    plan: dict[DriveInfo, str] = {}
    for place in places:
        if place.name is None:
            raise RequestError(f"--to {place.what}: write NAME=TARGET")
        _refuse_url(place.what)
        drive = _drive(header, place.name)
        if drive in plan:
            raise RequestError(f"drive {place.name} is named twice")
        path = _path_in(place.what, drive, ending) if _is_folder(place.what) else place.what
        if path in plan.values():
            raise RequestError(f"the target {path} is named twice")
        plan[drive] = path
    return plan


def _path_in(folder: str, drive: DriveInfo, ending: str) -> str:
    """The path of a drive's file in a folder (TargetError)."""
    name = f"{file_name(drive.name)}{ending}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise TargetError(
            f"cannot create a file for drive {drive.name} in {folder}: its name is longer than this filesystem allows;"
            " --to NAME=TARGET chooses another"
        )
    return os.path.join(folder, name)


def _refuse_url(target: str) -> None:
    if is_url(target) and not is_nbd_uri(target):
        raise RequestError(f"{shown(target)}: drives are restored to files, folders, disks and NBD, not to other URLs")


def _ending(image_format: str | None) -> str:
    """Of the names of files in a folder: one by which suffix_format() knows the format again."""
    return {"vpc": ".vhd", "parallels": ".hdd"}.get(image_format or "", f".{image_format or 'raw'}")


def _is_folder(target: str) -> bool:
    if target == "-" or target.startswith(COMMAND) or is_nbd_uri(target):
        return False
    return os.path.isdir(target) or target.endswith("/")


def _drive(header: Header, name: str) -> DriveInfo:
    drive = header.drive(name)
    if drive is None:
        known = ", ".join(one.name for one in header.drives)
        raise RequestError(f"the archive has no drive {name}; it has {known}")
    return drive


def _open_target(path: str, image_format: str | None, force: bool, stack: ExitStack) -> RestoreTarget:
    is_disk = os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)
    if image_format not in (None, "raw") and (is_disk or is_nbd_uri(path) or is_stream(path)):
        raise RequestError(f"--format {image_format} makes new files, and {path} is none")
    if is_nbd_uri(path):
        return NbdExport(path, force=force)
    if is_stream(path):
        return Stream(open_stream(path))
    if is_disk:
        return _open_block_device(path, force, stack)
    if force and os.path.isfile(path):
        _lock_replaced(path, stack)
    image_format = image_format or suffix_format(path) or "raw"
    return NewFile(path, replace=force) if image_format == "raw" else NewImage(path, image_format, replace=force)


def _lock_replaced(path: str, stack: ExitStack) -> None:
    """Refuse to replace an image that a program uses: it would go on with the old one, which has no name any more."""
    _refuse_used(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        stack.enter_context(ImageLock.for_writing(fd, path))
    except OSError as error:
        raise target_failure(path, error, "look at") from error


def _refuse_used(path: str) -> None:
    """Refuse a device, or the file behind a loop device, that is mounted or otherwise in use."""
    try:
        reason = disk_in_use(path)
    except OSError as error:
        raise target_failure(path, error, "look at") from error
    if reason is not None:
        raise TargetError(f"{path} is in use: {reason}")


def _open_block_device(path: str, force: bool, stack: ExitStack) -> RestoreTarget:
    _refuse_used(path)
    if not force:
        raise TargetError(f"{path} is a block device; --force overwrites everything on it")
    device = RawDevice.open(path, writable=True, failure=TargetError)
    lock = stack.enter_context(ImageLock.for_writing(device.fileno(), path))
    warn([lock.note] if lock.note else [])
    return ExistingDisk(device)


# -- configurations --


def _plan_configs(
    header: Header, target: str | None, plan: dict[DriveInfo, str], options: dict[str, Any]
) -> list[tuple[str, bytes]]:
    if not options["with_config"]:
        return []
    if target is None or not _is_folder(target):
        raise RequestError("--with-config needs a folder as TARGET")
    configs = [(os.path.join(target, file_name(name)), content) for name, content in header.configs]
    for path, _ in configs:
        if path in plan.values():
            raise ArchiveError(f"a drive and a configuration of the archive would both be {path}; restore them apart")
        if os.path.exists(path) and not options["force"]:
            raise TargetError(f"{path} exists already; --force replaces it")
    return configs


# -- the report --


def _report(job: RestoreJob, plan: dict[DriveInfo, str], options: dict[str, Any]) -> int:
    for damage in job.damage:
        say(f"pybackup: lost: {damage}", err=True)
    if options["as_json"]:
        drives = [{"name": drive.name, "size": drive.size, "target": path} for drive, path in plan.items()]
        tell_report(
            json_text(
                {
                    "drives": drives,
                    "damage": [damage.as_dict() for damage in job.damage],
                    "seconds": round(job.elapsed, 3),
                }
            )
        )
    if shows_summary(options["progress"], options["quiet"], options["verbose"]):
        say(
            f"restored {short(job.progress.size)} ({short(job.progress.stored)} of data) in"
            f" {duration(job.elapsed)}: " + ", ".join(plan.values()),
            err=True,
        )
    return int(ExitCode.ARCHIVE) if job.damage else 0
