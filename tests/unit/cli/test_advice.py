"""What the command line adds to what `core` says."""

import pytest

from pybackup.cli.advice import WORDS, with_advice
from pybackup.cli.failures import describe
from pybackup.core.errors import Advice, BusyError, TargetError


def test_an_error_without_advice_is_told_as_it_is() -> None:
    assert with_advice(TargetError("the disk is full")) == "the disk is full"


def test_advice_ends_the_sentence() -> None:
    error = TargetError("disk.raw exists already", advice=Advice.REPLACE)
    assert str(error) == "disk.raw exists already"
    assert describe(error) == ("disk.raw exists already; --force replaces it", 5)


@pytest.mark.parametrize("advice", list(Advice))
def test_there_are_words_for_every_advice(advice: Advice) -> None:
    error = BusyError("no", advice=advice, about="qcow2")
    assert with_advice(error) == f"no; {WORDS[advice].format(about='qcow2')}"
    assert "{" not in with_advice(error)
