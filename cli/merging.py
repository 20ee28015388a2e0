"""What `prune` merges chains with, and reads what came of it."""

from __future__ import annotations

from pybackup.cli.progress import Display
from pybackup.cli.running import run_in_loop, run_job
from pybackup.core.archive.open import open_archive
from pybackup.core.errors import ArchiveError, RequestError
from pybackup.core.history.prune import MergeTools
from pybackup.core.jobs.verify import VerifyJob
from pybackup.core.places.kinds import HistoryPlace
from pybackup.core.runs.merge import MergeRequest, merge


def merge_tools(threads: int, display: Display) -> MergeTools:
    """With a display of what they do."""

    def merge_chain(newest: HistoryPlace, out: HistoryPlace) -> None:
        try:
            with merge(MergeRequest(newest, out, threads=threads)) as made:
                run_in_loop(run_job(made.job, "merge", display))
        except RequestError as error:
            error.advice = None  # for whom an archive is encrypted can be said to `pybackup merge` alone
            raise

    def verify(place: HistoryPlace) -> bool:
        try:
            with open_archive(place, threads=threads, tolerant=True) as stream:
                job = VerifyJob(stream)
                run_in_loop(run_job(job, "verify", display))
        except ArchiveError:
            return False
        return not job.damage and stream.protects_data

    return MergeTools(merge_chain, verify)
