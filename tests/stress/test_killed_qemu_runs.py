"""`run qmp:` killed at random instants: 100 times, or STRESS_KILLS, over every kind of machine and all that may follow.

``STRESS_SEED=N`` repeats the same draws; what happens at an instant is still the machine's own.
"""

from __future__ import annotations

import itertools
import os
import random
import secrets
from pathlib import Path

import pytest
from live.killed_runs import KINDS, Killed, Next, case


def test_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("STRESS_SEED") or secrets.randbits(32))
    draw = random.Random(seed)
    cases = list(itertools.product(KINDS, Killed, Next))
    draw.shuffle(cases)
    kills = int(os.environ.get("STRESS_KILLS") or 100)
    for number, (kind, who, after) in zip(range(1, kills + 1), itertools.cycle(cases), strict=False):
        incremental = draw.random() < 0.3
        seconds = draw.uniform(0, 1.2 if incremental else 3.2)
        with capsys.disabled():
            told = f"{kind.name}; {who.value}; {after.value}; {seconds:.2f} s" + ("; by bitmaps" if incremental else "")
            print(f"STRESS_SEED={seed} kill {number}: {told}", flush=True)
        case(tmp_path, kind, who, after, seconds, incremental=incremental)
