"""pybackup verify: prove that archives are sound."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from pybackup.cli.advice import with_advice
from pybackup.cli.command import Command
from pybackup.cli.elsewhere import archive_place
from pybackup.cli.numbers import counted, duration, short
from pybackup.cli.options import job_options, json_option, key_options, parents_option, threads_option
from pybackup.cli.params import Duration, Percent, PlainPath
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.request import JobRequest, takes
from pybackup.cli.running import run_in_loop, run_job, threads_or_default
from pybackup.cli.unreadable import archive_lines
from pybackup.core.archive.ancestors import check_whole
from pybackup.core.archive.chain import Link, ParentSearch
from pybackup.core.archive.damage import Damage
from pybackup.core.archive.open import open_archive
from pybackup.core.archive.stream import ArchiveStream
from pybackup.core.errors import ArchiveError, ExitCode, NoKeyError, RequestError
from pybackup.core.jobs.verify import VerifyJob
from pybackup.core.places.kinds import BUCKET_SCHEMES, ArchivePlace, HistoryPlace, LocalPath, StoreUrl
from pybackup.core.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest(JobRequest):
    """What was asked of `verify`."""

    archives: Sequence[ArchivePlace]
    with_chain: bool
    sample: float | None
    older_than: float | None
    parents: Sequence[HistoryPlace]
    threads: int | None
    as_json: bool


@click.command("verify", cls=Command, short_help="Read everything of an archive and prove that it is sound.")
@click.argument("archives", type=PlainPath(archive_place), nargs=-1, required=True, metavar="ARCHIVE...")
@key_options
@click.option(
    "--chain", "with_chain", is_flag=True, help="Of a delta verify all archives too that it needs, each once."
)
@click.option(
    "--sample",
    type=Percent(),
    default=None,
    metavar="PERCENT",
    help="Read only so much of what each archive stores, at random: it proves that much, and no more.",
)
@click.option(
    "--older-than",
    type=Duration(),
    default=None,
    metavar="DURATION",
    help="Of the archives of a folder only those of which not all was read, and found sound, within DURATION.",
)
@parents_option
@threads_option
@json_option
@job_options
@takes(VerifyRequest)
def command(request: VerifyRequest) -> int:
    """Read everything of one or more archives and prove that they are sound.

    Checked are the zstd checksums, the MD5s, the digests of extents and clusters, the index and the seek table, and
    that every cluster of every drive is there exactly once. Damage is listed with drive, clusters and bytes.
    ARCHIVE may be - for the standard input, or a URL. Of a delta, which holds only what changed since its parent,
    the indexes of the archives that it needs must have every cluster that it lacks: it is sound in itself. Whether it
    can be restored, --chain proves, which reads these archives too; "needs" lists them in JSON.

    Of a folder, or a URL that ends in a slash, all archives are verified, those first that were not for the longest
    time. When that was is remembered there, in .pybackup-verified, so that --older-than, or --sample, goes round.

    Of an archive of another program, which carries no checksum of its data (a plain VMA, or zstd without checksums),
    only the structure can be sound: what flipped in the data, nobody can see. That is told, and "protected" is then
    false in JSON. What could not be read of a disk when it was backed up is told too: the archive is sound, and holds
    zeros there. Extents of one plain archive in another of the same uuid and time go unnoticed too, for only an index
    knows which belong together.
    """
    tracer = request.tracer()
    code = 0
    waiting, seen = list(request.archives), set(request.archives)
    if request.older_than is not None and not any(map(is_shelf, waiting)):
        raise RequestError("--older-than goes with a folder of archives, where it is remembered what was verified when")
    while waiting:
        archive = waiting.pop(0)
        if is_shelf(archive) or request.sample is not None:
            from pybackup.cli.verify_shelf import verify_sample, verify_shelf

            verify = verify_shelf if is_shelf(archive) else verify_sample
            code = worst(code, verify(archive, request, tracer))
            continue
        of_one, needed = verify_one(archive, request, tracer)
        code = worst(code, of_one)
        if request.with_chain:
            waiting[:0] = [place for place in needed if place not in seen]
            seen.update(needed)
    return code


_WORST = (int(ExitCode.ARCHIVE), int(ExitCode.NO_KEY), int(ExitCode.DONE))
"""Of several archives the worst counts: one that is damaged, then one of which nothing could be proved."""


def worst(*codes: int) -> int:
    """The exit code that counts."""
    return min(codes, key=_WORST.index)


def is_shelf(place: ArchivePlace) -> bool:
    """Whether it is where archives lie: a folder, or a URL that ends in a slash, or is a bucket alone."""
    if isinstance(place, LocalPath):
        return os.path.isdir(place.path)
    if not isinstance(place, StoreUrl):
        return False
    rest = place.url.partition("://")[2]
    return place.url.endswith("/") or (place.scheme in BUCKET_SCHEMES and not rest.partition("/")[2])


def verify_one(archive: ArchivePlace, request: VerifyRequest, trace: Trace) -> tuple[int, list[HistoryPlace]]:
    """The exit code, and the archives that it needs."""
    as_json = request.as_json
    needed: list[Link] = []
    try:
        with open_archive(
            archive, threads=threads_or_default(request.threads), tolerant=True, allow_delta=True
        ) as stream:
            job = VerifyJob(stream, speed=request.speed, trace=trace)
            run_in_loop(run_job(job, "verify", request.display()))
        if stream.header.is_delta:
            needed = _ancestors(archive, request)
    except NoKeyError as error:
        if as_json:
            print(json_text({"archive": str(archive), "sound": None, "not_proved": with_advice(error)}))
        say(f"pybackup: {with_advice(error)}: nothing is proved", err=True)
        return int(ExitCode.NO_KEY), []
    except ArchiveError as error:
        report(str(archive), [Damage(with_advice(error))], as_json)
        return int(ExitCode.ARCHIVE), []
    report(str(archive), job.damage, as_json, stream, needed)
    if not job.damage and not as_json and not request.quiet:
        index = "" if stream.has_seek_table else ", without an index"
        verdict = "sound" if stream.protects_data else "structure sound, data not protected"
        with_it = ""
        if needed:
            verdict = f"{verdict} in itself"
            read = "read too" if request.with_chain else "of which the indexes alone were read: --chain reads all"
            with_it = f"; it needs {counted(len(needed), 'archive')}, {read}"
        say(
            f"{stream.name}: {verdict}: {counted(len(job.drives), 'drive')}, {short(job.progress.size)},"
            f" {short(job.progress.stored)} of data read in {duration(job.elapsed)}{index}{with_it}"
        )
        for name, size in stream.ends_early():
            say(f"{stream.name}: drive {name} ends after {short(size)}, as memory may: if more was cut off, it is lost")
        for line in archive_lines(_unreadable(stream)):
            say(f"{stream.name}: {line}")
    return int(ExitCode.ARCHIVE) if job.damage else 0, [link.place for link in needed]


def _ancestors(archive: ArchivePlace, request: VerifyRequest) -> list[Link]:
    """What a delta needs, which has every cluster that it lacks (ArchiveError)."""
    if not isinstance(archive, LocalPath | StoreUrl):
        raise ArchiveError(
            f"{archive} holds only what changed since its parent, and of an archive that comes through a pipe nobody"
            " can tell whether that has the rest"
        )
    return check_whole(archive, ParentSearch(request.parents))


def _unreadable(stream: ArchiveStream) -> Any:
    """What the archive lists as unreadable when it was made: it is sound, and not all of the disk."""
    return (stream.about or {}).get("unreadable")


def report(
    name: str, damage: list[Damage], as_json: bool, stream: ArchiveStream | None = None, needed: Sequence[Link] = ()
) -> None:
    not_listed = stream.not_listed if stream else 0
    if as_json:
        report: dict[str, Any] = {
            "archive": name,
            "sound": not damage,
            "protected": stream.protects_data if stream else None,
            "damage": [one.as_dict() for one in damage],
        }
        if stream and stream.header.is_delta:
            report["needs"] = [str(link.place) for link in needed]
        if not_listed:
            report["damage_not_listed"] = not_listed
        if stream and (ends := [{"drive": drive, "bytes": size} for drive, size in stream.ends_early()]):
            report["ends_early"] = ends
        if stream and (unreadable := _unreadable(stream)):
            report["unreadable"] = unreadable
        print(json_text(report))
    for one in damage:
        say(f"pybackup: {name}: {one}" if name not in one.what else f"pybackup: {one}", err=True)
    if not_listed:
        say(f"pybackup: {name}: and {not_listed:,} more", err=True)
