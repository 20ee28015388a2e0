"""Random histories: whatever becomes of disks, every night can be read, from a chain as from a full archive."""

from __future__ import annotations

from random import Random

import pytest
from archives import open_layer
from histories import CLUSTER, Night, changed, night, read_all, view_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pybackup.core.archive.view import ArchiveView
from pybackup.core.errors import ArchiveError
from pybackup.formats.clusters import ZERO_CLUSTER


def history(chance: Random, nights: int, frame_size: int) -> list[Night]:
    """Some nights, most of them deltas, of disks that change in between."""
    disks = {"a": chance.randbytes(9 * CLUSTER) + bytes(5 * CLUSTER) + chance.randbytes(777), "b": bytes(3 * CLUSTER)}
    found: list[Night] = []
    for number in range(nights):
        parent = view_of(found) if found and chance.random() < 0.9 else None
        found.append(night(disks, parent, number, frame_size=frame_size))
        disks = changed(disks, chance)
    return found


@given(st.integers(0, 2**32), st.integers(1, 8), st.sampled_from([4096, 1 << 16, 1 << 18, 1 << 20]))
@settings(max_examples=150, deadline=None)
def test_every_night_can_be_read(seed: int, nights: int, frame_size: int) -> None:
    found = history(Random(seed), nights, frame_size)
    for last in range(len(found)):
        view = view_of(found[: last + 1])
        assert read_all(view) == found[last].disks


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_cluster_can_be_looked_up(seed: int) -> None:
    chance = Random(seed)
    found = history(chance, 5, 1 << 17)
    view = view_of(found)
    for drive in view.header.drives:
        disk = found[-1].disks[drive.name]
        for cluster in range(drive.clusters):
            expected = disk[cluster * CLUSTER : (cluster + 1) * CLUSTER].ljust(CLUSTER, b"\0")
            assert view.read_cluster(drive.drive_id, cluster) == expected
        first = chance.randrange(drive.clusters)
        end = chance.randrange(first, drive.clusters) + 1
        at = first
        for run in view.resolve(drive.drive_id, first, end):
            assert (run.first, run.clusters > 0, run.end <= end) == (at, True, True)
            at = run.end
            if run.segment is None:
                assert not any(disk[run.first * CLUSTER : run.end * CLUSTER])
            else:
                assert run.layer.archive in view.archives
        assert at == end


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_delta_holds_what_changed_and_nothing_else(seed: int) -> None:
    chance = Random(seed)
    found = history(chance, 3, 1 << 18)
    before, after = found[-1].disks, changed(found[-1].disks, chance)
    delta = open_layer(night(after, view_of(found), 99).archive, "delta.vma")
    for drive in delta.header.drives:
        old, new = before.get(drive.name), after[drive.name]
        old_clusters = 0 if old is None else -(-len(old) // CLUSTER)
        listed = {
            cluster
            for run in delta.runs_between(drive.drive_id, 0, drive.clusters)
            for cluster in range(run.first, run.end)
        }
        for cluster in range(drive.clusters):
            theirs = ZERO_CLUSTER
            if old is not None:
                theirs = old[cluster * CLUSTER : (cluster + 1) * CLUSTER].ljust(CLUSTER, b"\0")
            ours = new[cluster * CLUSTER : (cluster + 1) * CLUSTER].ljust(CLUSTER, b"\0")
            assert (cluster in listed) == (cluster >= old_clusters or ours != theirs)


def test_a_chain_that_lacks_an_archive_lacks_clusters() -> None:
    """Of another parent with the same drives nothing is taken: chain.py refuses it; and holes of a view are found."""
    found = [night({"a": b"x" * 4 * CLUSTER}, None, 0)]
    found.append(night({"a": b"x" * 3 * CLUSTER + b"y" * CLUSTER}, view_of(found), 1))
    alone = ArchiveView([open_layer(found[1].archive, "alone.vma")])
    with pytest.raises(ArchiveError, match=r"alone.vma is damaged: cluster 2 of drive a is missing"):
        read_all(alone)
    with pytest.raises(ArchiveError, match="missing"):
        alone.read_cluster(1, 0)
    assert alone.read_cluster(1, 3) == b"y" * CLUSTER


def test_what_was_cut_off_does_not_come_back() -> None:
    """A disk that shrank and grew again has zeros where it was cut, in whichever archive that is looked up."""
    disks = [b"1" * 6 * CLUSTER, b"1" * (2 * CLUSTER + 5), b"1" * (2 * CLUSTER + 5) + bytes(4 * CLUSTER - 5)]
    found: list[Night] = []
    for number, disk in enumerate(disks):
        found.append(night({"a": disk}, view_of(found) if found else None, number))
        assert read_all(view_of(found)) == {"a": disk}
