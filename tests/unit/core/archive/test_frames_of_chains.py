"""How often a restore of a chain decodes its frames."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from chains import make_night

from pybackup.core.archive import by_index
from pybackup.core.archive.by_index import DrivesOfChain
from pybackup.core.archive.view import ArchiveView

CLUSTER, CLUSTERS = 65536, 256


@pytest.mark.parametrize("nights", [1, 3])
def test_each_frame_is_decoded_once_however_small_the_batches_are(nights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = Random(nights)
    disk = bytearray(dice.randbytes(CLUSTERS * CLUSTER))
    chain = [make_night({"disk": bytes(disk)}, frame_size=4 * CLUSTER)]
    for number in range(1, nights + 1):
        for cluster in dice.sample(range(CLUSTERS), 25):
            disk[cluster * CLUSTER] ^= 1
        chain.insert(0, make_night({"disk": bytes(disk)}, chain[0], seed=number, frame_size=4 * CLUSTER))
    decoded: Counter[bytes] = Counter()
    real = by_index.decompress_frame

    def counting(content: memoryview, *told: Any) -> bytes:
        decoded[bytes(content)] += 1
        return real(content, *told)

    monkeypatch.setattr(by_index, "decompress_frame", counting)
    monkeypatch.setattr(by_index, "BATCH", 64 * CLUSTER)
    view = ArchiveView([night.index() for night in chain])
    with ThreadPoolExecutor(1) as pool:
        extents = list(DrivesOfChain(view, pool, stop=lambda: None).extents([1]))
    assert len(extents) > 5
    assert set(decoded.values()) == {1}
