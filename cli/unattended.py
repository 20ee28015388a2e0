"""What a run needs where nobody watches: patience, priorities, metrics, and commands that are told how it ended."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from pybackup.cli import signals
from pybackup.cli.advice import with_advice
from pybackup.cli.failures import describe
from pybackup.cli.hooks import HookError, run_hook
from pybackup.cli.job_file import read_job_file
from pybackup.cli.numbers import counted, duration
from pybackup.cli.options import all_of
from pybackup.cli.params import Duration, IoClass, Named, PlainPath, Whole
from pybackup.cli.printable import say
from pybackup.cli.priority import IoPriority, PriorityError, be_nice, set_io_priority
from pybackup.core.endpoints.drive_names import drive_name
from pybackup.core.errors import BusyError, CancelledError
from pybackup.core.jobs.job import Progress
from pybackup.core.places.kinds import LocalPath, NewArchivePlace, SourcePlace, StandardInput
from pybackup.core.runs.course import Backup

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between two tries for a lock: each pause is twice as long as the one before, up to this."""


@dataclass(slots=True)
class RunFacts:
    """What is known of a run so far; the run itself fills it in.

    ``archive`` is its name once the fields in it are replaced, ``names`` are the drives', ``job_name`` is the job
    file's. ``job``: the only one; ``of_all``: what several jobs have done so far.
    """

    archive: NewArchivePlace
    job_name: str | None
    names: Sequence[str] = ()
    job: Backup | None = None
    of_all: Progress = field(default_factory=Progress)

    @property
    def progress(self) -> Progress:
        """What was done: by the job, or by all of several."""
        return self.of_all if self.job is None else self.job.progress


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. ``sentence``: what went wrong, or nothing; ``seconds`` it took."""

    code: int
    sentence: str
    error: BaseException | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for, beside the run itself. ``lock_wait`` in seconds."""

    lock_wait: float
    metrics_file: str | None
    on_success: str | None
    on_failure: str | None


_options = all_of(
    click.option(
        "--job",
        type=PlainPath(),
        default=None,
        metavar="FILE",
        is_eager=True,
        callback=read_job_file,
        help='Take what the command line leaves out from a TOML file: `level = 5`, `archive = "..."`,'
        ' `sources = {scsi0 = "..."}`. The keys are the long names of the options.',
    ),
    click.option(
        "--lock-wait",
        type=Duration(),
        default="0",
        show_default=True,
        metavar="DURATION",
        help="Where something is busy, try again until DURATION has passed, for example 90s, 10m or 2h.",
    ),
    click.option(
        "--metrics-file",
        type=PlainPath(),
        default=None,
        metavar="FILE",
        help="Write metrics for Prometheus to FILE when the run has ended, in whatever way.",
    ),
    click.option(
        "--on-success", default=None, metavar="COMMAND", help="A shell command to run when the archive is complete."
    ),
    click.option(
        "--on-failure",
        default=None,
        metavar="COMMAND",
        help="A shell command to run when the run has failed or was cancelled; $PYBACKUP_ERROR says why.",
    ),
    click.option(
        "--nice", "niceness", type=Whole(0, 19), default=0, metavar="N", help="Run with niceness N, 19 is the nicest."
    ),
    click.option(
        "--ionice",
        "io_priority",
        type=IoClass(),
        default=None,
        metavar="CLASS[:LEVEL]",
        help="Read and write with this I/O priority: idle, or best-effort with a LEVEL from 0 to 7, the last.",
    ),
)


class Unattended(Protocol):
    """What is known of a request that is carried out unattended."""

    @property
    def sources(self) -> Sequence[Named[SourcePlace]]:
        """What is backed up."""
        ...

    @property
    def archive(self) -> NewArchivePlace:
        """Where to, with fields in its name."""
        ...

    @property
    def quiet(self) -> bool:
        """Whether nothing but failures is told."""
        ...


R = TypeVar("R", bound=Unattended)


def unattended(request: Callable[..., R]) -> Callable[[Callable[[R, RunFacts], int]], Callable[..., int]]:
    """A decorator for the function of the command `run`, which takes a ``request``, and facts that it fills in.

    It gives the command the options of this module. For all others see request.takes().
    """

    def decorate(run: Callable[[R, RunFacts], int]) -> Callable[..., int]:
        @functools.wraps(run)
        def whole_run(
            *,
            job: str | None,
            lock_wait: float,
            metrics_file: str | None,
            on_success: str | None,
            on_failure: str | None,
            niceness: int,
            io_priority: IoPriority | None,
            **given: Any,
        ) -> int:
            _set_priorities(niceness, io_priority)
            wishes = Wishes(lock_wait, metrics_file, on_success, on_failure)
            asked = request(**given)
            facts = RunFacts(asked.archive, None if job is None else Path(job).stem)
            return _carry_out(functools.partial(run, asked, facts), asked, facts, wishes)

        return _options(whole_run)

    return decorate


def _carry_out(attempt: Callable[[], int], asked: Unattended, facts: RunFacts, wishes: Wishes) -> int:
    """Do as was wished before and after the run, which may be tried several times; the exit code."""
    if wishes == Wishes(0, None, None, None):
        return attempt()
    if wishes.metrics_file is not None:
        # Now: at the end a file more may be one too many, and the metrics are to say what the exit code says.
        from pybackup.cli import metrics  # noqa: F401
    labels = {"archive": str(asked.archive), "job": facts.job_name or _label(asked.sources)}
    raising = _Raising()
    with signals.taken_by(raising.cancel):

        def try_it() -> int:
            try:
                return patiently(attempt, wishes.lock_wait, quiet=asked.quiet, tell=raising.tell)
            finally:
                raising.is_over = True

        outcome = _outcome(try_it, facts)
        outcome = _after(outcome, wishes, facts, labels)
    if outcome.error is not None:
        raise outcome.error
    return outcome.code


def _set_priorities(niceness: int, io_priority: IoPriority | None) -> None:
    be_nice(niceness)
    if io_priority is not None:
        try:
            set_io_priority(io_priority)
        except PriorityError as error:
            _tell(f"{error}; going on without")


def _label(sources: Sequence[Named[SourcePlace]]) -> str:
    """What a job without a file is called: the same today and tomorrow, whether it succeeds or not."""
    here = LocalPath | StandardInput
    return "-".join(drive_name(one) if one.name or isinstance(one.what, here) else str(one.what) for one in sources)


def patiently(
    attempt: Callable[[], int],
    patience: float,
    *,
    quiet: bool = False,
    tell: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Try until nothing is busy any more, or ``patience`` seconds have passed (BusyError)."""
    deadline = clock() + patience
    pause, told = FIRST_PAUSE, quiet
    while True:
        try:
            return attempt()
        except BusyError as error:
            left = deadline - clock()
            if left <= 0:
                raise
            if not told:
                (tell or _tell)(f"{with_advice(error)}; waiting up to {duration(patience)}")
            told = True
        sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE)


class _Raising:
    """A signal becomes an exception, as Python has it of SIGINT, so that we still tell how it ended.

    But only the first one does, and none once it is over: they would keep us from telling.

    Changing: ``is_over``; and which signal waits while something is told, that is not to be told twice.
    """

    def __init__(self) -> None:
        self.is_over = self._is_telling = False
        self._waiting: int | None = None

    def tell(self, sentence: str) -> None:
        """Print a sentence as a whole."""
        self._is_telling = True
        _tell(sentence)
        self._is_telling = False
        if self._waiting is not None:
            self.cancel(self._waiting)

    def cancel(self, number: int, _frame: object = None) -> None:
        """The handler."""
        if self._is_telling:
            self._waiting = number
        elif not self.is_over and not signals.is_decided():
            self.is_over = True
            raise CancelledError("cancelled", number)


def _outcome(run: Callable[[], int], facts: RunFacts) -> Outcome:
    began = time.monotonic()
    try:
        code = run()
    except click.exceptions.Exit:
        raise
    except BaseException as error:
        sentence, code = describe(error)
        return Outcome(code, sentence, error, time.monotonic() - began)
    lost = facts.job.lost.lost if facts.job is not None and code else 0
    sentence = f"{counted(lost, 'byte')} could not be read and are zeros in the archive" if code else ""
    return Outcome(code, sentence, None, time.monotonic() - began)


# -- when it is over --


def _after(outcome: Outcome, wishes: Wishes, facts: RunFacts, labels: dict[str, str]) -> Outcome:
    """Run the commands, and write the metrics; what has become of the run."""
    if outcome.code == 0 and wishes.on_success is not None:
        outcome = _hook("--on-success", wishes.on_success, outcome, facts)
    if outcome.code != 0 and wishes.on_failure is not None:
        outcome = _hook("--on-failure", wishes.on_failure, outcome, facts)
    if wishes.metrics_file is not None:
        _write_metrics(wishes.metrics_file, outcome, facts, labels)
    return outcome


def _hook(option: str, command: str, outcome: Outcome, facts: RunFacts) -> Outcome:
    try:
        run_hook(option, command, _environment(outcome, facts))
    except (HookError, CancelledError) as error:
        if outcome.code:
            _tell(str(error))  # the failure that it was to tell about remains the one that counts
            return outcome
        # What is told by others too may not be what the archive says: it is there.
        error.args = (f"{error}; the archive is complete", *error.args[1:])
        sentence, code = describe(error)
        return Outcome(code, sentence, error, outcome.seconds)
    return outcome


def _environment(outcome: Outcome, facts: RunFacts) -> dict[str, str]:
    progress = facts.progress
    return {
        "PYBACKUP_ARCHIVE": facts.archive.text,
        "PYBACKUP_JOB": facts.job_name or "",
        "PYBACKUP_NAMES": " ".join(facts.names),
        "PYBACKUP_EXIT_CODE": str(outcome.code),
        "PYBACKUP_ERROR": outcome.sentence,
        "PYBACKUP_SIZE": str(progress.size),
        "PYBACKUP_READ": str(_read_bytes(progress)),
        "PYBACKUP_ZERO": str(progress.zero),
        "PYBACKUP_STORED": str(progress.stored),
        "PYBACKUP_WRITTEN": str(progress.written),
        "PYBACKUP_SECONDS": f"{outcome.seconds:.3f}",
    }


def _read_bytes(progress: Progress) -> int:
    return sum(drive.read for drive in progress.drives)


def _write_metrics(path: str, outcome: Outcome, facts: RunFacts, labels: dict[str, str]) -> None:
    from pybackup.cli import metrics

    progress = facts.progress
    now = time.time()
    values = {
        "pybackup_last_run_timestamp_seconds": now,
        metrics.LAST_SUCCESS: now if outcome.code == 0 else metrics.last_success(path, labels),
        "pybackup_duration_seconds": outcome.seconds,
        "pybackup_size_bytes": progress.size,
        "pybackup_read_bytes": _read_bytes(progress),
        "pybackup_zero_bytes": progress.zero,
        "pybackup_stored_bytes": progress.stored,
        "pybackup_written_bytes": progress.written,
        "pybackup_exit_code": outcome.code,
    }
    try:
        metrics.write(path, metrics.render(values, labels))
    except metrics.MetricsFileError as error:
        _tell(str(error))  # a good backup is not bad because of that


def _tell(sentence: str) -> None:
    say(f"pybackup: {sentence}", err=True)
