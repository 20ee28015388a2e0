"""Frames that are kept, and what of them is proved."""

from __future__ import annotations

import random

import pytest

from pybackup.core.archive import kept
from pybackup.core.archive.kept import KeptFrame
from pybackup.formats.cluster_lookup import StoredCluster
from pybackup.formats.clusters import cluster_digest, expand
from pybackup.formats.errors import FormatError

BLOCK, FULL = 4096, 0xFFFF
CONTENT = random.Random(1).randbytes(40 * BLOCK)


def stored(at: int, mask: int) -> StoredCluster:
    return StoredCluster(1 << 20, mask, cluster_digest(expand(mask, CONTENT[at : at + mask.bit_count() * BLOCK])))


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The clusters whose digests were compared."""
    found: list[bytes] = []

    def digest(content: bytes) -> bytes:
        found.append(content)
        return cluster_digest(content)

    monkeypatch.setattr(kept, "cluster_digest", digest)
    return found


def test_a_cluster_is_proved_once(compared: list[bytes]) -> None:
    frame = KeptFrame(CONTENT)
    for _ in range(3):
        assert frame.read(512, stored(512, FULL)) == CONTENT[512 : 512 + 65536]
        assert frame.read(512, stored(512, 0b101)) == expand(0b101, CONTENT[512 : 512 + 2 * BLOCK])
    assert len(compared) == 2


@pytest.mark.parametrize("at, mask", [(512, 0x7FFF), (513, FULL), (0, FULL)])
def test_a_proof_is_of_no_other_place_and_no_other_blocks(at: int, mask: int) -> None:
    frame, proved = KeptFrame(CONTENT), stored(512, FULL)
    frame.read(512, proved)
    with pytest.raises(FormatError, match="digest"):
        frame.read(at, proved._replace(mask=mask))


def test_what_was_not_proved_is_compared_again(compared: list[bytes]) -> None:
    frame, forged = KeptFrame(CONTENT), stored(0, FULL)._replace(digest=bytes(16))
    for _ in range(2):
        with pytest.raises(FormatError, match="digest"):
            frame.read(0, forged)
    assert len(compared) == 2


def test_no_more_is_remembered_than_a_frame_has_blocks(compared: list[bytes]) -> None:
    frame = KeptFrame(CONTENT)
    places = [stored(at, 1) for at in range(100)]
    for _ in range(2):
        for at, one in enumerate(places):
            assert frame.read(at, one)[:BLOCK] == CONTENT[at : at + BLOCK]
    assert len(compared) == 100 + 100 - len(CONTENT) // BLOCK


def test_a_cluster_that_ends_in_the_next_frame_is_not_held() -> None:
    frame = KeptFrame(memoryview(CONTENT))
    assert frame.holds(24 * BLOCK, stored(0, FULL))
    assert not frame.holds(24 * BLOCK + 1, stored(0, FULL))
