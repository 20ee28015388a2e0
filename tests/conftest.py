"""What all tests share: the modules of this folder, and how a test asks for other programs."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("doubles", "device_contract", "live_model", "plain_vma", "wild")


def need(*programs: str) -> None:
    """Skip the test when one of these programs is not installed; with PYBACKUP_CI=1 fail instead."""
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    message = f"not installed: {', '.join(missing)}"
    if os.environ.get("PYBACKUP_CI") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(name="need")
def _need() -> object:
    """need() for tests that would rather ask for a fixture than import it."""
    return need


@pytest.fixture(scope="module", autouse=True)
def _leave_alone_what_is_there() -> Iterator[None]:
    """What other modules and thousands of tests have left is nothing that gc.collect() in a test needs to look at."""
    gc.collect()
    gc.freeze()
    yield
