"""Clusters of 64 KiB: which of their blocks hold data, and their digests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from blake3 import blake3

from .buffer import Buffer
from .vma_layout import (
    BLOCK_SIZE,
    BLOCKS_PER_CLUSTER,
    CLUSTER_DIGEST_SIZE,
    CLUSTER_SIZE,
    EXTENT_DIGEST_SIZE,
    FULL_MASK,
)

ZERO_BLOCK = bytes(BLOCK_SIZE)
ZERO_CLUSTER = bytes(CLUSTER_SIZE)


class Part(NamedTuple):
    """Bytes [start, end) of a buffer: a view that knows where it lies, so that neighbours can be joined for nothing."""

    buffer: Buffer
    start: int
    end: int


class ClusterRun(NamedTuple):
    """Clusters in a row that an archive stores alike: all zero, all full, or a single one of which some blocks are.

    ``mask``: bit i is set where block i of each cluster is stored. ``digests``: 16 bytes for each cluster, none for
    zero clusters. ``parts``: the stored bytes, in order, as parts of the buffer they were scanned from: one part for
    all full clusters together.
    """

    clusters: int
    mask: int
    digests: Sequence[bytes]
    parts: tuple[Part, ...]

    def cut(self, clusters: int) -> tuple[ClusterRun, ClusterRun]:
        """The first clusters, and the rest: both at least one. Only for runs of several."""
        rest = self.clusters - clusters
        if not self.mask:
            return zero_run(clusters), zero_run(rest)
        (part,) = self.parts
        at = part.start + clusters * CLUSTER_SIZE
        return (
            ClusterRun(clusters, self.mask, self.digests[:clusters], (Part(part.buffer, part.start, at),)),
            ClusterRun(rest, self.mask, self.digests[clusters:], (Part(part.buffer, at, part.end),)),
        )


def zero_run(clusters: int) -> ClusterRun:
    """So many zero clusters in a row."""
    return ClusterRun(clusters, 0, (), ())


def cluster_digest(content: Buffer) -> bytes:
    """The first 16 bytes of BLAKE3 over the 65536 bytes of a cluster, zeros included."""
    return blake3(content).digest(length=CLUSTER_DIGEST_SIZE)


def frame_digest(frame: Buffer) -> bytes:
    """The first 16 bytes of BLAKE3 over a whole frame: of the directory's, it tells an archive from all others."""
    return blake3(frame).digest(length=CLUSTER_DIGEST_SIZE)


def extent_digest(digests: Iterable[bytes]) -> bytes:
    """The first six bytes of BLAKE3 over the digests of an extent's non-zero clusters, in slot order."""
    return blake3(b"".join(digests)).digest(length=EXTENT_DIGEST_SIZE)


EMPTY_EXTENT_DIGEST = extent_digest(())


def scan(buffer: Buffer, start: int = 0, end: int | None = None) -> list[ClusterRun]:
    """Cut a buffer, or its bytes [start, end), into clusters.

    The last one is filled up with zeros where the bytes end within it.
    """
    content, end = buffer, len(buffer) if end is None else end
    missing = -(end - start) % CLUSTER_SIZE
    if missing or isinstance(content, memoryview):
        content, start, end = b"".join((content[start:end], bytes(missing))), 0, end - start + missing
    masks = [_mask_of(content, at) for at in range(start, end, CLUSTER_SIZE)]
    runs: list[ClusterRun] = []
    first = 0
    while first < len(masks):
        mask, behind = masks[first], first + 1
        if mask in (0, FULL_MASK):
            while behind < len(masks) and masks[behind] == mask:
                behind += 1
        runs.append(_run(content, start + first * CLUSTER_SIZE, start + behind * CLUSTER_SIZE, mask))
        first = behind
    return runs


def _run(content: bytes | bytearray, start: int, end: int, mask: int) -> ClusterRun:
    """The clusters that lie in bytes [start, end) and have this mask."""
    count = (end - start) // CLUSTER_SIZE
    if not mask:
        return zero_run(count)
    view = memoryview(content)
    digests = [cluster_digest(view[at : at + CLUSTER_SIZE]) for at in range(start, end, CLUSTER_SIZE)]
    ranges = [(0, end - start)] if mask == FULL_MASK else stored_ranges(mask)
    return ClusterRun(count, mask, digests, tuple(Part(content, start + low, start + high) for low, high in ranges))


def _mask_of(content: bytes | bytearray, at: int) -> int:
    """Which blocks of the cluster at this offset are not zero."""
    # startswith() with an offset is a memcmp without a copy, several times faster than slicing.
    if content.startswith(ZERO_CLUSTER, at):
        return 0
    # Only a block whose first byte is zero can be zero: one look at all of them, which mostly is enough.
    firsts = content[at : at + CLUSTER_SIZE : BLOCK_SIZE]
    mask = FULL_MASK
    bit = firsts.find(0)
    while bit >= 0:
        if content.startswith(ZERO_BLOCK, at + bit * BLOCK_SIZE):
            mask -= 1 << bit
        bit = firsts.find(0, bit + 1)
    return mask


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


def stored_bytes(mask: int, size: int) -> int:
    """How many of the first ``size`` bytes of clusters that have this mask lie in stored blocks."""
    whole, rest = divmod(size, CLUSTER_SIZE)
    blocks, part = divmod(rest, BLOCK_SIZE)
    within = (mask & ((1 << blocks) - 1)).bit_count() * BLOCK_SIZE + (mask >> blocks & 1) * part
    return whole * mask.bit_count() * BLOCK_SIZE + within


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
