"""What is kept of archives that are read at any place: segments of their indexes, and decoded frames."""

from __future__ import annotations

from pybackup.formats.buffer import Buffer
from pybackup.formats.cluster_lookup import Segment, StoredCluster
from pybackup.formats.clusters import cluster_digest, expand
from pybackup.formats.errors import FormatError
from pybackup.formats.vma_layout import BLOCK_SIZE

from .shared_cache import SharedCache

SEGMENTS_SIZE, FRAMES_SIZE = 24 << 20, 32 << 20
"""Bytes that the segments and the frames that are kept may take; the last used is always kept."""


class NotKeptError(Exception):
    """What was asked for is not in memory: it takes a read, which may take any time."""


class KeptFrame:
    """A decoded frame. Fixed: its content, which nobody changes. Changing, by any thread: what of it was proved.

    A proof is about this content alone: where in it the blocks of a cluster lie, which they are, and the digest they
    were found to have. So it holds for as long as the content is kept, whatever an index says of it.
    """

    __slots__ = ("_proved", "content")

    def __init__(self, content: bytes | memoryview) -> None:
        self.content = content
        self._proved: set[tuple[int, int, bytes]] = set()

    def __len__(self) -> int:
        return len(self.content)

    def holds(self, at: int, stored: StoredCluster) -> bool:
        """Whether all blocks of a cluster lie in it, and not in the next frame too."""
        return at + stored.mask.bit_count() * BLOCK_SIZE <= len(self.content)

    def read(self, at: int, stored: StoredCluster) -> bytes:
        """The 65536 bytes of a cluster that it holds, whose digest is compared if it was not before (FormatError)."""
        content = self.content[at : at + stored.mask.bit_count() * BLOCK_SIZE]
        proof = at, stored.mask, stored.digest
        if proof in self._proved:
            return expand(stored.mask, content)
        cluster = prove(stored, content)
        # No more than a sound frame can hold: what an index claims must not fill the memory.
        if len(self._proved) < len(self.content) // BLOCK_SIZE:
            self._proved.add(proof)
        return cluster


def prove(stored: StoredCluster, content: Buffer) -> bytes:
    """The 65536 bytes of a cluster of its stored blocks (FormatError where they do not match its digest)."""
    cluster = expand(stored.mask, content)
    if cluster_digest(cluster) != stored.digest:
        raise FormatError("a cluster does not match its digest", stored.vma_offset, "the VMA stream")
    return cluster


class Kept:
    """What is kept of segments and decoded frames, of one archive or of all archives of a chain."""

    def __init__(self, segments: int = SEGMENTS_SIZE, frames: int = FRAMES_SIZE) -> None:
        """Bytes that each may take."""
        self.segments: SharedCache[Segment] = SharedCache(segments, lambda segment: segment.size)
        self.frames: SharedCache[KeptFrame] = SharedCache(frames, len)
