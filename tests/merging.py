"""What a merge reads, put together to disks, without writing an archive."""

from __future__ import annotations

import zstandard

from pybackup.core.jobs.merge import Clusters
from pybackup.formats.archive import CopiedFrame, ZeroRun
from pybackup.formats.clusters import expand
from pybackup.formats.vma_layout import BLOCK_SIZE, CLUSTER_SIZE


def drives_of(clusters: Clusters) -> dict[str, bytes]:
    """The drives by their names, whole clusters; each cluster must come once (ArchiveError)."""
    disks = {drive.drive_id: bytearray(drive.clusters * CLUSTER_SIZE) for drive in clusters.header.drives}
    seen: set[tuple[int, int]] = set()
    for part in clusters:
        content = b""
        if isinstance(part, ZeroRun):
            places = [(part.drive_id, part.first + step, 0) for step in range(part.clusters)]
        elif isinstance(part, CopiedFrame):
            content = zstandard.ZstdDecompressor().decompress(bytes(part.frame.pieces[0]))
            places = [(slot.drive_id, slot.first + step, slot.mask) for slot in part.slots for step in range(slot[2])]
        else:
            content = b"".join(bytes(one.buffer[one.start : one.end]) for run in part.runs for one in run.parts)
            masks = [run.mask for run in part.runs for _ in range(run.clusters)]
            places = [(part.drive_id, part.first + step, mask) for step, mask in enumerate(masks)]
        for drive_id, cluster, mask in places:
            assert (drive_id, cluster) not in seen
            seen.add((drive_id, cluster))
            size = mask.bit_count() * BLOCK_SIZE
            disks[drive_id][cluster * CLUSTER_SIZE : (cluster + 1) * CLUSTER_SIZE] = expand(mask, content[:size])
            content = content[size:]
        assert not content
    assert len(seen) == sum(drive.clusters for drive in clusters.header.drives)
    return {drive.name: bytes(disks[drive.drive_id]) for drive in clusters.header.drives}
