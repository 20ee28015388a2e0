"""A cluster of 64 KiB: which of its blocks hold data, and its digest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from blake3 import blake3

from .vma_layout import (
    BLOCK_SIZE,
    BLOCKS_PER_CLUSTER,
    CLUSTER_DIGEST_SIZE,
    CLUSTER_SIZE,
    EXTENT_DIGEST_SIZE,
    FULL_MASK,
)

Buffer: TypeAlias = bytes | bytearray | memoryview

ZERO_BLOCK = bytes(BLOCK_SIZE)
ZERO_CLUSTER = bytes(CLUSTER_SIZE)


class Part(NamedTuple):
    """Bytes [start, end) of a buffer: a view that knows where it lies, so that neighbours can be joined for nothing."""

    buffer: Buffer
    start: int
    end: int


class Cluster(NamedTuple):
    """One cluster as an archive stores it.

    ``mask``: bit i is set where block i is stored. ``digest``: 16 bytes, empty for a zero cluster.
    ``parts``: the stored bytes, in order, as parts of the buffer they were scanned from.
    """

    mask: int
    digest: bytes
    parts: tuple[Part, ...]


ZERO = Cluster(0, b"", ())


def cluster_digest(content: Buffer) -> bytes:
    """The first 16 bytes of BLAKE3 over the 65536 bytes of a cluster, zeros included."""
    return blake3(content).digest(length=CLUSTER_DIGEST_SIZE)


def extent_digest(digests: Iterable[bytes]) -> bytes:
    """The first six bytes of BLAKE3 over the digests of an extent's non-zero clusters, in slot order."""
    return blake3(b"".join(digests)).digest(length=EXTENT_DIGEST_SIZE)


EMPTY_EXTENT_DIGEST = extent_digest(())


def scan(buffer: Buffer) -> list[Cluster]:
    """Cut a buffer into clusters; the last one is filled up with zeros where the buffer ends within it."""
    content = buffer if isinstance(buffer, bytes | bytearray) else bytes(buffer)
    missing = -len(content) % CLUSTER_SIZE
    if missing:
        content = b"".join((content, bytes(missing)))
    view = memoryview(content)
    return [_scan_cluster(content, view, at) for at in range(0, len(content), CLUSTER_SIZE)]


def _scan_cluster(content: bytes | bytearray, view: memoryview, at: int) -> Cluster:
    # startswith() with an offset is a memcmp without a copy, several times faster than slicing.
    if content.startswith(ZERO_CLUSTER, at):
        return ZERO
    end = at + CLUSTER_SIZE
    mask = FULL_MASK
    # Where each block's first byte is not zero, no block is: one look instead of sixteen.
    if 0 in content[at:end:BLOCK_SIZE]:
        starts = range(at, end, BLOCK_SIZE)
        mask = sum(1 << bit for bit, start in enumerate(starts) if not content.startswith(ZERO_BLOCK, start))
    digest = cluster_digest(view[at:end])
    if mask == FULL_MASK:
        return Cluster(mask, digest, (Part(content, at, end),))
    parts = tuple(Part(content, at + start, at + end) for start, end in stored_ranges(mask))
    return Cluster(mask, digest, parts)


def stored_ranges(mask: int) -> Iterator[tuple[int, int]]:
    """The byte ranges [start, end) within a cluster that a mask says are stored, neighbours joined."""
    block = 0
    while mask >> block:
        remaining = mask >> block
        block += (remaining & -remaining).bit_length() - 1
        remaining = mask >> block
        run = ((~remaining & (remaining + 1)).bit_length()) - 1
        yield block * BLOCK_SIZE, (block + run) * BLOCK_SIZE
        block += run


def expand(mask: int, stored: Buffer) -> bytes:
    """The 65536 bytes of a cluster from its stored blocks."""
    if mask == FULL_MASK:
        return bytes(stored)
    content = bytearray(CLUSTER_SIZE)
    at = 0
    for start, end in stored_ranges(mask):
        content[start:end] = stored[at : at + end - start]
        at += end - start
    return bytes(content)


def mask_within(size: int) -> int:
    """The bits that a cluster may use of which only the first ``size`` bytes lie on the drive."""
    blocks = min(BLOCKS_PER_CLUSTER, -(-size // BLOCK_SIZE))
    return (1 << blocks) - 1
