"""What a server knows of changes since earlier archives, against a model, and which archives it forgets first."""

from __future__ import annotations

import tracemalloc
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.core.archive.identity import Reference
from pybackup.core.cow import changed_clusters
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.cow.drive_record import DriveRecord
from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.jobs.changes import BY_DIGEST
from pybackup.core.live import archive_records
from pybackup.core.live.archive_records import MOST_ARCHIVES, SHARED, UNKNOWN, ArchiveRecords, Base

CLUSTERS = 45


def reference(number: int) -> Reference:
    return Reference(number.to_bytes(16, "big"), bytes(16))


def base(number: int) -> Base:
    return Base(number.to_bytes(16, "big"), frozenset({bytes(16), b"x" * 16}))


class Game:
    """Drives, their records, and plain sets of what was changed since each archive. Nothing is copied here."""

    def __init__(self, seed: int, pieces: int) -> None:
        self.random = Random(seed)
        self.drives = {name: CopyBeforeWrite(MemoryDevice(CLUSTERS * CLUSTER_SIZE)) for name in ("a", "b")}
        self.records = ArchiveRecords(self.drives)
        self.records._room.left = pieces
        self.since: dict[int, dict[str, set[int]]] = {}
        self.number = 0

    def write(self) -> None:
        for _ in range(self.random.randrange(6)):
            name, device = self.random.choice(list(self.drives.items()))
            first = self.random.randrange(CLUSTERS)
            end = min(CLUSTERS, first + self.random.choice([1, 1, 2, 20, CLUSTERS]))
            assert device.record is not None
            device.record.mark(first * CLUSTER_SIZE + 7, (end - first) * CLUSTER_SIZE - 7)
            for changed in self.since.values():
                changed[name] |= set(range(first, end))

    def backup(self, *, becomes_archive: bool) -> None:
        known = [number for number in self.since if self.records._find(base(number)) is not None]
        parent = self.random.choice([None, *known])
        asked = None if parent is None else base(parent)
        maps = {name: self.records.changes(name, asked)[0] for name in self.drives}
        for device in self.drives.values():
            assert device.record is not None
            device.record.begin()
        frozen = {name: set(changed) for name, changed in self.since[parent].items()} if parent is not None else {}
        self.number += 1
        self.since[self.number] = {name: set() for name in self.drives}
        self.write()
        for name, changed in frozen.items():
            found = maps[name]
            assert found is not None and changed <= self.contents(found._changed)
        self.records.settle(reference(self.number) if becomes_archive else None, asked)
        if not becomes_archive:
            del self.since[self.number]

    @staticmethod
    def contents(union: changed_clusters.Union) -> set[int]:
        found, at = set(), 0
        while at < CLUSTERS:
            end, changed = union.run_at(at)
            found |= set(range(at, end)) if changed else set()
            at = end
        return found

    def check(self, *, exactly: bool) -> None:
        for number, drives in self.since.items():
            for name, changed in drives.items():
                found = self.records.changes(name, base(number))[0]
                if found is not None:
                    told = self.contents(found._changed)
                    assert told == changed if exactly else told >= changed
        assert len(self.records._known) <= MOST_ARCHIVES


@given(st.integers(0, 2**32), st.lists(st.booleans(), max_size=24), st.sampled_from([0, 1, 4, 1000]))
def test_what_was_changed_since_each_archive(seed: int, outcomes: list[bool], pieces: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changed_clusters, "PIECE_CLUSTERS", 16)
        game = Game(seed, pieces)
        for becomes_archive in outcomes:
            game.write()
            game.backup(becomes_archive=becomes_archive)
            game.check(exactly=pieces == 1000)
        spans = [device.record.spans for device in game.drives.values() if device.record is not None]
        known = [known.reference for known in game.records._known]
        assert all(set(one) == set(known) for one in spans)
        if outcomes and outcomes[-1]:
            assert known[-1] == reference(game.number), "the newest is always known"


def made(records: ArchiveRecords, drive: CopyBeforeWrite, number: int, of: int | None = None) -> bool:
    """Make an archive, perhaps as a delta; whether the server knew what has changed since its base."""
    asked = None if of is None else base(of)
    known = records.changes("d", asked)[0] is not None
    assert drive.record is not None
    drive.record.begin()
    records.settle(reference(number), asked)
    return known


@pytest.fixture(name="drive")
def _drive() -> CopyBeforeWrite:
    return CopyBeforeWrite(MemoryDevice(1 << 20))


def test_a_nightly_and_a_weekly_job_know_theirs_for_ever(drive: CopyBeforeWrite) -> None:
    records = ArchiveRecords({"d": drive})
    made(records, drive, 1)
    made(records, drive, 1000)
    for night in range(2, 100):
        assert made(records, drive, night, night - 1)
        if night % 20 == 0:
            assert made(records, drive, 1000 + night, 1000 + night - 20 if night > 20 else 1000)


def test_a_job_that_makes_all_its_deltas_of_one_archive_keeps_it(drive: CopyBeforeWrite) -> None:
    records = ArchiveRecords({"d": drive})
    made(records, drive, 1)
    assert all(made(records, drive, night, 1) for night in range(2, 100))


def test_an_archive_that_was_merged_is_known_by_what_it_replaces(drive: CopyBeforeWrite) -> None:
    records = ArchiveRecords({"d": drive})
    made(records, drive, 1)
    assert records.changes("d", Base(reference(1).uuid, frozenset({b"y" * 16, bytes(16)})))[0] is not None
    assert records.changes("d", Base(reference(1).uuid, frozenset({b"y" * 16})))[0] is None, "another with this uuid"


def test_why_not(drive: CopyBeforeWrite) -> None:
    shared = CopyBeforeWrite(MemoryDevice(1 << 20))
    records = ArchiveRecords({"d": drive, "s": shared}, shared=["s"])
    assert shared.record is None
    for name, why in (("d", UNKNOWN), ("s", SHARED)):
        changes, way = records.changes(name, base(1))
        assert (changes, way.way, way.why) == (None, BY_DIGEST, why)
    assert records.changes("d", None)[1].why is None


def test_the_status_tells_what_has_changed(drive: CopyBeforeWrite) -> None:
    records = ArchiveRecords({"d": drive})
    assert records.changed_bytes("d") is None and records.as_json() == []
    made(records, drive, 1)
    assert records.changed_bytes("d") == 0
    assert drive.write_now(CLUSTER_SIZE - 1, b"ab")
    assert records.changed_bytes("d") == 2 * CLUSTER_SIZE
    assert drive.record is not None
    drive.record.begin()
    assert drive.write_now(5 * CLUSTER_SIZE, b"c")
    assert records.changed_bytes("d") == 3 * CLUSTER_SIZE, "while a backup runs, too"
    records.settle(None, None)
    assert records.changed_bytes("d") == 3 * CLUSTER_SIZE
    assert records.as_json() == [{"uuid": "00000000-0000-0000-0000-000000000001"}]


def test_the_number_of_archives_has_a_bound(drive: CopyBeforeWrite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_records, "MOST_ARCHIVES", 3)
    records = ArchiveRecords({"d": drive})
    for number in range(1, 8):
        made(records, drive, number)
    assert [known.reference for known in records._known] == [reference(number) for number in (5, 6, 7)]
    assert drive.record is not None and len(drive.record.spans) == 3


def test_the_memory_has_a_bound(drive: CopyBeforeWrite) -> None:
    tracemalloc.start()
    try:
        drives = {name: CopyBeforeWrite(MemoryDevice(1 << 20)) for name in "ab"}
        records = ArchiveRecords(drives)
        for name, device in drives.items():
            device.record = records._records[name] = DriveRecord(256 << 40, records._room)
        for number in range(3):
            for device in drives.values():
                assert device.record is not None
                device.record.begin()
            records.settle(reference(number), None)
            for piece in range(4000):
                for device in drives.values():
                    assert device.record is not None
                    device.record.mark((piece << 31) + 5 * number, 1)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    assert [records.changes(name, base(2))[0] is not None for name in drives] == [True, True]
    # What is known since the oldest has become coarser, so that the newest is exact.
    assert records.changed_bytes("a") == 4000 * CLUSTER_SIZE
