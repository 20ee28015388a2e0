"""Where each cluster of a chain lies: ArchiveView against a model that asks archive after archive."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.core.archive.delta import WINDOW, ParentDrives
from pybackup.core.archive.index import ArchiveIndex, Run
from pybackup.core.archive.view import ArchiveView
from pybackup.core.errors import ArchiveError
from pybackup.formats.clusters import ClusterRun, Part
from pybackup.formats.vma import DriveInfo, Header

MOST = 40
CLUSTER = 65536


class Told:
    """An archive of which only is known which clusters it lists: runs of (first, clusters, zero)."""

    def __init__(self, clusters: int, runs: list[tuple[int, int, bool]], *, is_delta: bool) -> None:
        drive = DriveInfo(1, "disk", clusters * CLUSTER)
        self.header = Header(bytes(16), 0, (drive,), (), is_delta=is_delta)
        self.name = "told"
        self.runs = [Run(first, count, None if zero else cast(Any, self), first * 10) for first, count, zero in runs]

    def runs_between(self, drive_id: int, first: int, end: int) -> list[Run]:
        return [run.within(first, end) for run in self.runs if run.first < end and run.end > first]


@st.composite
def layers(draw: st.DrawFn) -> list[Told]:
    """Newest first; the last lists all, each delta what is beyond its parent's end."""
    sizes = draw(st.lists(st.integers(1, MOST), min_size=1, max_size=6))
    told: list[Told] = []
    for clusters, parent in zip(sizes, [*sizes[1:], 0], strict=True):
        runs: list[tuple[int, int, bool]] = []
        at = 0
        while at < clusters:
            count = draw(st.integers(1, 6))
            if at + count > parent or draw(st.booleans()):
                runs.append((at, min(count, clusters - at), draw(st.booleans())))
            at += count
        told.append(Told(clusters, runs, is_delta=parent > 0))
    return told


def expected(told: list[Told], cluster: int) -> tuple[Told, bool, int]:
    for archive in told:
        for run in archive.runs:
            if run.first <= cluster < run.end:
                return archive, run.segment is None, run.number + cluster - run.first
    raise AssertionError("listed nowhere")


@given(told=layers(), data=st.data())
def test_a_view_is_what_the_first_archive_says_that_lists_a_cluster(told: list[Told], data: st.DataObject) -> None:
    view = ArchiveView(cast(list[ArchiveIndex], told))
    first = data.draw(st.integers(0, told[0].header.drives[0].clusters - 1))
    end = data.draw(st.integers(first + 1, told[0].header.drives[0].clusters))
    at = first
    for run in view.resolve(1, first, end):
        assert run.first == at
        for step in range(run.clusters):
            archive, zero, number = expected(told, at + step)
            assert (run.layer.archive, run.segment is None) == (archive, zero)
            assert zero or run.number + step == number
        at = run.end
    assert at == end


@given(told=layers(), data=st.data())
def test_what_no_archive_lists_is_missing(told: list[Told], data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, told[0].header.drives[0].clusters - 1))
    for archive in told:
        archive.runs = [run for run in archive.runs if not run.first <= lost < run.end]
    view = ArchiveView(cast(list[ArchiveIndex], told))
    with pytest.raises(ArchiveError, match="is missing"):
        view.resolve(1, 0, told[0].header.drives[0].clusters)


@pytest.mark.parametrize("first", [0, 3, WINDOW - 20, WINDOW - 3, WINDOW, WINDOW + 30, 2 * WINDOW - 1])
@pytest.mark.parametrize("count", [1, 3, 16, 40])
@pytest.mark.parametrize("warm", [False, True])
def test_a_delta_finds_the_same_in_its_parent_wherever_it_begins(first: int, count: int, warm: bool) -> None:
    size = 2 * WINDOW + 50
    count = min(count, size - first)
    segment = SimpleNamespace(
        digests=lambda number, count: b"".join(at.to_bytes(16) for at in range(number, number + count))
    )
    runs = [Run(at, 5, None if at % 3 else cast(Any, segment), at) for at in range(0, size, 5)]
    told = Told(size, [], is_delta=False)
    told.runs = [run.within(0, size) for run in runs]
    parent = ParentDrives(ArchiveView([cast(ArchiveIndex, told)]), told.header.drives)
    if warm:
        list(parent.changed(1, 0, _now(0, 64)))
    found = list(parent.changed(1, first, _now(first, count)))
    changed = {at + step for at, run in found for step in range(run.clusters)}
    assert changed == {at for at in range(first, first + count) if at // 5 * 5 % 3 or at % 7 == 0}


def _now(first: int, count: int) -> list[ClusterRun]:
    """Clusters that all hold something; those of which the number is a multiple of 7 something new."""
    digests = [(1 << 64 if at % 7 == 0 else at).to_bytes(16) for at in range(first, first + count)]
    return [ClusterRun(count, 0xFFFF, digests, (Part(b"", 0, count * CLUSTER),))]
