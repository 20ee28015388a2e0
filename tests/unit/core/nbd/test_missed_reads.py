from __future__ import annotations

import errno

from pybackup.core.device import Buffer
from pybackup.core.nbd.missed_reads import PATIENCE, PROBE_EVERY, MissedReads
from pybackup.formats import nbd_wire as wire
from pybackup.formats.nbd_transmission import Request


class Disk:
    """Answers once the page is there; tells the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.there: dict[int, Buffer | OSError] = {}
        self.reads = MissedReads(self.read_now, lambda: self.now)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        found = self.there.get(offset)
        if isinstance(found, OSError):
            raise found
        return found

    def come_to_an_end(self) -> dict[int, Buffer | Exception | None]:
        return {request[3]: outcome for request, outcome in self.reads.ask_again()}

    def miss_one(self) -> bool:
        """A read that never gets its data; False when it was not taken."""
        if not self.reads.add(read(9)):
            return False
        self.now += PATIENCE
        assert self.come_to_an_end() == {9: None}
        return True


def read(offset: int) -> Request:
    return wire.CMD_READ, 0, offset, offset, 4, memoryview(b""), 0


def test_a_read_is_asked_for_until_it_is_there() -> None:
    disk = Disk()
    assert disk.reads.add(read(1))
    assert disk.reads.add(read(2))
    assert disk.come_to_an_end() == {}
    disk.there[2] = b"here"
    assert disk.come_to_an_end() == {2: b"here"}
    assert len(disk.reads) == 1
    disk.there[1] = b"late"
    assert disk.come_to_an_end() == {1: b"late"}
    assert not disk.reads


def test_patience_has_an_end() -> None:
    disk = Disk()
    disk.reads.add(read(1))
    disk.now += PATIENCE * 0.9
    assert disk.come_to_an_end() == {}
    disk.now += PATIENCE * 0.2
    assert disk.come_to_an_end() == {1: None}
    assert not disk.reads


def test_a_failure_ends_one_read_only() -> None:
    disk = Disk()
    disk.reads.add(read(1))
    disk.reads.add(read(2))
    broken = OSError(errno.EIO, "broken")
    disk.there = {1: broken, 2: b"fine"}
    assert disk.come_to_an_end() == {1: broken, 2: b"fine"}


def test_a_device_that_never_answers_later_is_hardly_asked() -> None:
    disk = Disk()
    while disk.miss_one():
        pass
    taken = [disk.miss_one() for _ in range(4 * PROBE_EVERY)]
    assert 4 <= sum(taken) <= 20


def test_one_answer_brings_all_patience_back() -> None:
    disk = Disk()
    while disk.miss_one():
        pass
    while not disk.reads.add(read(1)):
        pass
    disk.there[1] = b"here"
    assert disk.come_to_an_end() == {1: b"here"}
    assert all(disk.reads.add(read(2)) for _ in range(PROBE_EVERY))
    disk.reads.clear()
    assert not disk.reads
