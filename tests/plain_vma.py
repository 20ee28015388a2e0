"""A reader of plain VMA written from the format's description alone, to judge what the encoder writes."""

from __future__ import annotations

import struct

CLUSTER, BLOCK = 65536, 4096


def drives_of(archive: bytes, sizes: dict[int, int]) -> dict[int, bytes]:
    """The content of every drive; asserts that each cluster of each is there exactly once."""
    assert archive[:4] == b"VMA\0"
    drives = {number: bytearray(size) for number, size in sizes.items()}
    seen: set[tuple[int, int]] = set()
    at = struct.unpack_from(">I", archive, 56)[0]
    while at < len(archive):
        assert archive[at : at + 4] == b"VMAE"
        slots = [struct.unpack_from(">HBBI", archive, at + 40 + 8 * slot) for slot in range(59)]
        at += 512
        for mask, _, number, cluster in slots:
            if number:
                assert (number, cluster) not in seen, f"cluster {cluster} of drive {number} is there twice"
                seen.add((number, cluster))
                at = _read_cluster(archive, at, mask, drives[number], cluster * CLUSTER)
    missing = {(number, cluster) for number, size in sizes.items() for cluster in range(-(-size // CLUSTER))} - seen
    assert not missing, f"clusters {sorted(missing)} are missing"
    return {number: bytes(drive) for number, drive in drives.items()}


def _read_cluster(archive: bytes, at: int, mask: int, drive: bytearray, offset: int) -> int:
    for block in range(16):
        if mask >> block & 1:
            start = offset + block * BLOCK
            end = min(start + BLOCK, len(drive))
            drive[start:end] = archive[at : at + end - start]
            at += BLOCK
    return at
