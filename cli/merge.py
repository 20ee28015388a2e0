"""pybackup merge: one full archive of a chain of deltas, or of any archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import click

from pybackup.cli.command import Command
from pybackup.cli.elsewhere import archive_place, new_archive_place
from pybackup.cli.encryption import check_encryption, encryption_of
from pybackup.cli.numbers import counted, duration, percent, short
from pybackup.cli.options import encryption_options, job_options, json_option, parents_option, threads_option
from pybackup.cli.params import PlainPath, Size, Whole
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.request import JobRequest, takes
from pybackup.cli.running import run_in_loop, run_job, tell_report, threads_or_default, warn
from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import ArchivePlace, HistoryPlace, LocalPath, NewArchivePlace
from pybackup.core.runs.merge import LEVEL, Merge, MergeRequest, merge
from pybackup.core.sinks.stream import is_stream, own_descriptor
from pybackup.formats.archive import MAX_FRAME_SIZE, MIN_FRAME_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request(JobRequest):
    """What was asked of `merge`."""

    newest: ArchivePlace
    output: NewArchivePlace
    parents: Sequence[HistoryPlace]
    level: int
    frame_size: int | None
    threads: int | None
    force: bool
    recipients: Sequence[str]
    recipients_files: Sequence[str]
    passphrase_file: str | None
    no_public_facts: bool
    decrypt: bool
    verify: bool
    as_json: bool


@click.command("merge", cls=Command, short_help="Make one full archive of a chain of deltas, or of any archive.")
@click.argument("newest", type=PlainPath(archive_place), metavar="NEWEST")
@click.argument("output", type=PlainPath(new_archive_place), metavar="OUT")
@parents_option
@click.option(
    "--level",
    type=Whole(1, 22),
    default=LEVEL,
    show_default=True,
    metavar="N",
    help="zstd's compression level for what has to be compressed anew: 1 is fast, 22 is small.",
)
@click.option(
    "--frame-size",
    type=Size(MIN_FRAME_SIZE, MAX_FRAME_SIZE),
    default=None,
    show_default="as they are; 256K for new ones",
    metavar="SIZE",
    help="At most SIZE bytes in a zstd frame, 64K to 8M; larger ones are packed anew.",
)
@threads_option
@click.option("-f", "--force", is_flag=True, help="Replace OUT if it exists, and is an archive or empty.")
@encryption_options
@click.option("--decrypt", is_flag=True, help="Leave OUT in the clear, though what it is made of is encrypted.")
@click.option("--verify", is_flag=True, help="Read OUT back and check it before it gets its name.")
@json_option
@job_options
@takes(_Request)
def command(request: _Request) -> int:
    """Make one full archive of a chain of deltas, or of any archive, without the disks.

    NEWEST is the archive whose state is wanted; its parents are looked for beside it, and in --parents. OUT holds all
    of it by itself, and takes the place of NEWEST: deltas that were made of NEWEST find OUT as their parent. Nothing
    else is changed, and nothing is deleted. All is proved while it is read, and what is missing or damaged is refused.
    What did not change is copied as it is compressed.

    Of encrypted archives OUT is encrypted too: --recipient says for whom. Or --decrypt leaves it in the clear.

    Of an archive of another program OUT becomes one that is protected by digests and can be read at any place.
    NEWEST may then be - for the standard input. NEWEST and OUT may be URLs, and OUT may be - for the standard output,
    or '|COMMAND' for the standard input of a command.
    """
    tracer = request.tracer()
    _check(request)
    asked = MergeRequest(
        request.newest,
        request.output,
        request.parents,
        request.level,
        request.frame_size,
        replace=request.force,
        verify=request.verify,
        threads=threads_or_default(request.threads),
        speed=request.speed,
        encryption=None if request.decrypt else encryption_of(request),
        decrypt=request.decrypt,
    )
    with merge(asked, trace=tracer) as made:
        run_in_loop(run_job(made.job, "merge", request.display()))
    _report(made, request)
    return 0


def _check(request: _Request) -> None:
    """RequestError where the arguments do not go together."""
    check_encryption(request)
    if request.decrypt and (request.recipients or request.recipients_files):
        raise RequestError("--decrypt leaves the archive in the clear: no --recipient goes with it")
    if not request.output.text or not request.newest.text:
        raise RequestError("the name of an archive is empty")
    if request.as_json and own_descriptor(request.output) == 1:
        raise RequestError("--json and the archive cannot both go to the standard output")
    is_file = isinstance(request.output, LocalPath) and not is_stream(request.output)
    if request.verify and not is_file:
        raise RequestError("--verify needs an archive that is a file, to read it back")


def _report(made: Merge, request: _Request) -> None:
    job, progress = made.job, made.job.progress
    warn(job.notes, "note")
    if request.as_json:
        told = {
            "archive": str(request.output),
            "merged": [str(place) for place in made.merged],
            "seconds": round(job.elapsed, 3),
            "size": progress.size,
            "zero": progress.zero,
            "stored": progress.stored,
            "written": progress.written,
            "copied": job.copied,
            "verified": request.verify,
            "drives": [{"name": one.name, "size": one.size, "zero": one.zero} for one in progress.drives],
            "notes": job.notes,
        }
        tell_report(json_text(told))
    if request.shows_summary():
        say(
            f"{request.output}: {short(progress.size)} of {counted(len(made.merged), 'archive')} in"
            f" {duration(job.elapsed)}, {short(progress.stored)} stored in {short(progress.written)},"
            f" {percent(job.copied, progress.written)} of it copied" + (", verified" if request.verify else ""),
            err=True,
        )
