"""What others call their things is not ours."""

from __future__ import annotations

import pytest

from pybackup.core.qemu.names import disk_name, folder_name, is_run, maker_of, new_run, run_of_folder


def test_our_own_names_are_known_again() -> None:
    run = new_run()
    assert is_run(run)
    assert run_of_folder(folder_name(run)) == run
    for shared in (False, True):
        for number in (0, 7, 99):
            name = disk_name(run, number, shared=shared)
            assert len(f"{name}-file") <= 31, "QEMU allows no longer names of nodes"
            for suffix in ("", "-file", "-cbw", "-create"):
                assert maker_of(name + suffix) == (run, shared)


def test_no_two_runs_have_the_same_number() -> None:
    assert len({new_run() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "name",
    ["pybackup-20261126", "pybackup-202611261530", "pybackup-old", "pybackup-", "pybackup-0123abcd", "backup"],
)
def test_names_of_others_are_not_ours(name: str) -> None:
    assert run_of_folder(name) is None
    for suffix in ("-0", "-s1", "-1-file", "-1-cbw", ""):
        assert maker_of(name + suffix) is None
