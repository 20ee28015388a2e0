"""What a delta keeps of the buffers in which it found its clusters."""

from __future__ import annotations

from random import Random

import pytest
from archives import encode, header_of, open_index
from virtual_time import InlineExecutor, run
from wild import Weather, WildSink

from pybackup.core.archive.delta import DeltaWriter
from pybackup.core.archive.intake import Piece
from pybackup.core.archive.view import ArchiveView
from pybackup.formats.archive import ArchiveEncoder

CLUSTER = 65536
DISK = bytes(16 * CLUSTER) + Random(1).randbytes(16 * CLUSTER)


@pytest.mark.parametrize("blocks", [[3], [0, 7, 8]], ids=["one", "several"])
@pytest.mark.parametrize("cluster", [5, 20], ids=["was zero", "was data"])
def test_few_changed_clusters_hold_no_large_buffer(cluster: int, blocks: list[int]) -> None:
    changed = bytearray(DISK)
    for block in blocks:
        at = cluster * CLUSTER + block * 4096
        changed[at : at + 4096] = b"\1" * 4096
    mask = sum(1 << block for block in blocks) if cluster < 16 else 0xFFFF

    async def main() -> None:
        pool = InlineExecutor(1)
        encoder = ArchiveEncoder(header_of({"disk": DISK}))
        parent = ArchiveView([open_index(encode({"disk": DISK}))])
        writer = DeltaWriter(encoder, WildSink(Weather(Random(1))), pool, parent, {}, threads=1)
        (prepared,) = await writer.prepare([Piece(1, 0, bytes(changed))], pool)
        assert prepared.runs is not None
        (run_found,) = prepared.runs
        assert (prepared.places, run_found.mask) == ([cluster], mask)
        assert sum(len(part.buffer) for part in run_found.parts) == mask.bit_count() * 4096
        stored = b"".join(bytes(part.buffer)[part.start : part.end] for part in run_found.parts)
        cluster_now = changed[cluster * CLUSTER : (cluster + 1) * CLUSTER]
        assert stored == b"".join(cluster_now[at * 4096 : at * 4096 + 4096] for at in range(16) if mask >> at & 1)

    run(main())
