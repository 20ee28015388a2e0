"""`verify` of many archives: of a folder or prefix, as a whole or by samples, going round."""

from __future__ import annotations

import time
from typing import Any

from pybackup.cli.advice import with_advice
from pybackup.cli.numbers import counted, duration, percent
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.running import run_in_loop, run_job, warn
from pybackup.cli.verify import VerifyRequest, report, verify_one, worst
from pybackup.core.archive.damage import Damage
from pybackup.core.archive.index import ArchiveIndex, NoIndexError
from pybackup.core.archive.open import has_ranges, range_reader
from pybackup.core.errors import ArchiveError, ExitCode, NoKeyError, RequestError
from pybackup.core.history.catalog import Catalog, Entry, connected, read_catalog
from pybackup.core.history.verified import VerifiedRecord, open_record
from pybackup.core.jobs.sample import SampleJob
from pybackup.core.places.kinds import ArchivePlace, LocalPath, StoreUrl
from pybackup.core.trace import Trace


def verify_shelf(place: ArchivePlace, request: VerifyRequest, trace: Trace) -> int:
    """Verify all archives of a place, or those that it is time for; the exit code."""
    assert isinstance(place, LocalPath | StoreUrl)
    if request.with_chain:
        raise RequestError("--chain goes with archives; of a folder all are verified, and so are parents")
    with connected(place):
        catalog = read_catalog(place)
        record = open_record(place)
        record.load()
        code = 0
        due = _due(catalog, record, request.older_than)
        for entry in due:
            code = worst(code, _verify(entry, record, request, trace))
        if not catalog.entries:
            # It may be the folder that a disk should be mounted on: what is not there was not verified.
            raise ArchiveError(f"there is no archive in {place}")
        if not due and not request.quiet and not request.as_json:
            say(f"{place}: all was read, and found sound, as lately as was asked")
        return code


def _due(catalog: Catalog, record: VerifiedRecord, older_than: float | None) -> list[Entry]:
    """What it is time for, those first that were not verified, or not for the longest time."""
    now = time.time()
    entries = [entry for entry in catalog.entries if not entry.is_foreign]
    if older_than:
        entries = [entry for entry in entries if not _is_fresh(record, entry, now - older_than)]
    return sorted(entries, key=lambda entry: (_last(record, entry), entry.name))


def _is_fresh(record: VerifiedRecord, entry: Entry, since: float) -> bool:
    whole = record.of(entry).whole
    return whole is not None and record.is_sound(entry) and whole >= since


def _last(record: VerifiedRecord, entry: Entry) -> float:
    found = record.of(entry)
    return max(found.whole or 0.0, found.sampled or 0.0)


def _verify(entry: Entry, record: VerifiedRecord, request: VerifyRequest, trace: Trace) -> int:
    """Verify one, and remember it."""
    if entry.identity is None and not entry.is_sealed:
        report(str(entry.listed.place), [Damage(entry.problem)], request.as_json)
        return int(ExitCode.ARCHIVE)
    place = entry.listed.place
    is_sample = request.sample is not None
    code = verify_sample(place, request, trace) if is_sample else verify_one(place, request, trace)[0]
    is_proved = code in (0, int(ExitCode.ARCHIVE)) and (not is_sample or entry.has_index)
    if is_proved and not record.note(entry, sound=code == 0, now=time.time(), is_sample=is_sample):
        warn([f"that {place} was verified could not be written down beside it"])
    return code


def verify_sample(archive: ArchivePlace, request: VerifyRequest, trace: Trace) -> int:
    """Read a share of an archive; the exit code."""
    assert request.sample is not None
    if not has_ranges(archive):
        raise RequestError(f"--sample reads here and there in an archive, and {archive} can only be read to its end")
    try:
        with range_reader(archive) as source:
            index = ArchiveIndex(source.pread, source.size, str(archive), allow_delta=True)
            job = SampleJob(index, request.sample, stop=source.stop, speed=request.speed, trace=trace)
            run_in_loop(run_job(job, "verify", request.display()))
    except NoIndexError:
        _tell_unproved(archive, "it has no index, by which a part could be read", request)
        return 0
    except NoKeyError as error:
        _tell_unproved(archive, with_advice(error), request)
        return int(ExitCode.NO_KEY)
    except ArchiveError as error:
        report(str(archive), [Damage(with_advice(error))], request.as_json)
        return int(ExitCode.ARCHIVE)
    _tell_sample(archive, job, request)
    return int(ExitCode.ARCHIVE) if job.damage else 0


def _tell_unproved(archive: ArchivePlace, why: str, request: VerifyRequest) -> None:
    if request.as_json:
        print(json_text({"archive": str(archive), "sound": None, "not_proved": why}))
    say(f"pybackup: {archive}: nothing is proved: {why}", err=True)


def _tell_sample(archive: ArchivePlace, job: SampleJob, request: VerifyRequest) -> None:
    if request.as_json:
        told: dict[str, Any] = {
            "archive": str(archive),
            "sound": False if job.damage else None,
            "sampled_clusters": job.read,
            "stored_clusters": job.clusters,
            "damage": [one.as_dict() for one in job.damage],
        }
        print(json_text(told))
    for one in job.damage:
        say(f"pybackup: {archive}: {one}" if str(archive) not in one.what else f"pybackup: {one}", err=True)
    if not job.damage and not request.as_json and not request.quiet:
        say(
            f"{archive}: of {counted(job.clusters, 'stored cluster')} {job.read}"
            f" ({percent(job.read, job.clusters)}) were read at random in {duration(job.elapsed)}, and are what they"
            " were; nothing is known of the rest"
        )
