"""Random damages of every kind of archive: STRESS_DAMAGES of them (10,000), from STRESS_SEED on.

Each command either gives the right data or says damage, and memory does not grow. ``make stress`` prints the counts.
"""

from __future__ import annotations

import os
import resource
import secrets

import pytest
from damages import Tally, play

MOST = 300 << 10
"""KiB of resident memory."""


def test_damaged_archives(capsys: pytest.CaptureFixture[str]) -> None:
    begin = int(os.environ.get("STRESS_SEED") or secrets.randbits(32))
    count = int(os.environ.get("STRESS_DAMAGES") or 10_000)
    tally = Tally()
    for number in range(count):
        try:
            play(begin + number, tally)
        except BaseException:
            with capsys.disabled():
                print(f"\nSTRESS_SEED={begin + number} STRESS_DAMAGES=1 shows it again")
            raise
    with capsys.disabled():
        print(f"\n{count} damages from seed {begin}, the longest read took {tally.longest:.2f} s")
        for outcome, times in sorted(tally.outcomes.items()):
            print(f"  {outcome}: {times}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak < MOST, f"{peak >> 10} MiB"
