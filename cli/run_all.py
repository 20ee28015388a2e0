"""pybackup run --all: every domain of libvirt, one archive each."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, NamedTuple

from pybackup.cli.failures import describe
from pybackup.cli.params import Named
from pybackup.cli.printable import say, speaking_of
from pybackup.cli.run import conclude, run_one, way_of
from pybackup.cli.run_machine import tell_of_the_end
from pybackup.cli.run_request import RunRequest
from pybackup.cli.running import run_in_loop, tell_report, warn
from pybackup.cli.unattended import RunFacts
from pybackup.core.errors import CancelledError, ExitCode, PybackupError, SourceError
from pybackup.core.libvirt.domain import all_domains
from pybackup.core.libvirt.virsh import Virsh
from pybackup.core.places.kinds import LibvirtDomain
from pybackup.core.runs.course import Way
from pybackup.core.trace import Trace

_WORST_FIRST = (ExitCode.FAILED, ExitCode.TARGET, ExitCode.ARCHIVE, ExitCode.SOURCE, ExitCode.BUSY, ExitCode.USAGE)


class Outcome(NamedTuple):
    """How the backup of one domain ended: its exit code, and the report as JSON."""

    domain: str
    code: int
    report: dict[str, Any]


class SomeFailedError(PybackupError):
    """Some domains have no archive of this run, or one with holes."""

    def __init__(self, failed: list[Outcome], count: int) -> None:
        names = ", ".join(one.domain for one in failed)
        super().__init__(f"{len(failed)} of {count} domains failed: {names}")
        codes = {one.code for one in failed}
        self.exit_code = next((code for code in _WORST_FIRST if code in codes), ExitCode.FAILED)


def run_all(request: RunRequest, facts: RunFacts) -> int:
    """Back up one domain after the other; the exit code (PybackupError)."""
    outcomes: list[Outcome] = []
    run_in_loop(_run_all(request, request.tracer(), facts, outcomes))
    failed = [one for one in outcomes if one.code]
    if request.as_json:
        told = [{"domain": one.domain, "exit_code": one.code, **one.report} for one in outcomes]
        tell_report(json.dumps({"domains": told, "failed": len(failed)}))
    if failed:
        raise SomeFailedError(failed, len(outcomes))
    return 0


async def _run_all(request: RunRequest, trace: Trace, facts: RunFacts, outcomes: list[Outcome]) -> None:
    names = await all_domains(await Virsh.connect(request.connect))
    if not names:
        raise SourceError("libvirt has no domain")
    facts.names = names
    for name in names:
        one = replace(request, sources=[Named(None, LibvirtDomain(name))])
        with speaking_of(f"domain {name}"):
            outcomes.append(await _outcome(one, name, trace, facts))


async def _outcome(request: RunRequest, name: str, trace: Trace, whole: RunFacts) -> Outcome:
    """Of one domain, whose failure is told at once; nothing is raised but what ends the whole (CancelledError)."""
    way, facts = way_of(request), RunFacts(request.archive, whole.job_name)
    try:
        await _finished(request, way, facts, trace)
        _count(facts, whole)
        code, report = conclude(replace(request, as_json=False), way, facts)
    except (asyncio.CancelledError, CancelledError):
        raise
    except Exception as error:
        sentence, code = describe(error)
        say(f"pybackup: {sentence}", err=True)
        return Outcome(name, code, {"error": sentence})
    return Outcome(name, code, report)


def _count(facts: RunFacts, whole: RunFacts) -> None:
    """What one has done is part of what all have."""
    whole.of_all.drives += facts.progress.drives
    whole.of_all.written += facts.progress.written


async def _finished(request: RunRequest, way: Way, facts: RunFacts, trace: Trace) -> None:
    """One whole backup; what fails when the archive has its name is told, and no failure (PybackupError)."""
    try:
        await run_one(request, way, request.archive_options(), trace, facts)
    except Exception as error:
        if facts.job is None or not facts.job.is_decided:
            raise
        warn([f"the archive is complete, but afterwards: {describe(error)[0]}"])
    else:
        tell_of_the_end(request, way)
