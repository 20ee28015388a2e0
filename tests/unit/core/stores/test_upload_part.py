from __future__ import annotations

import io
import random

import pytest

from pybackup.core.stores import upload_part
from pybackup.core.stores.upload_part import MEMORY, PLAN, READ_AT_ONCE, PartReader, UploadPart, steps_of


def test_the_plan_is_within_the_limits_of_s3() -> None:
    steps = list(steps_of(PLAN))
    assert len(steps) == 10_000
    assert sum(step.size for step in steps) > 5 << 40
    assert all(5 << 20 <= step.size <= 5 << 30 for step in steps)
    assert [step.size for step in steps] == sorted(step.size for step in steps)
    assert max(step.size * step.held for step in PLAN if step.size <= MEMORY) <= 32 << 20


@pytest.mark.parametrize("memory", [MEMORY, 0], ids=["memory", "disk"])
def test_a_part_can_be_read_again_and_again(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_part, "MEMORY", memory)
    content = random.Random(1).randbytes(3 * READ_AT_ONCE + 5)
    part = UploadPart(len(content) + 100)
    assert part.on_disk is (memory == 0)
    for at in range(0, len(content), 100_000):
        part.fill(memoryview(content)[at : at + 100_000])
    assert (part.filled, part.room) == (len(content), 100)
    dead = PartReader(part)
    dead.read(17)
    for _ in range(2):
        reader = PartReader(part)
        assert reader.seek(0, io.SEEK_END) == len(content)
        assert reader.seek(0) == reader.tell() == 0
        assert b"".join(iter(lambda reader=reader: reader.read(1 << 30), b"")) == content
        assert reader.reads >= 4
    assert len(PartReader(part).read()) == READ_AT_ONCE
    assert dead.read(3) == content[17:20]
    part.close()
