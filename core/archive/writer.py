"""Writes an archive: takes clusters, compresses them in threads, passes the bytes on in order.

Memory is bounded by the items in flight: each holds one extent (at most 3.7 MiB) and its compressed frames.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pybackup.core.device import CLUSTER_SIZE, Buffer
from pybackup.core.sinks import Sink
from pybackup.core.tasks import end
from pybackup.core.trace import Trace
from pybackup.formats.archive import ArchiveEncoder, CopiedFrame, Encoded, Item
from pybackup.formats.cluster_index import DriveCounts
from pybackup.formats.clusters import ClusterRun, scan

from .index_memory import IndexMemory
from .intake import Piece, Prepared

ITEMS_AHEAD = 2
"""Items in flight beside those that are being compressed."""
SCANNED_AT_ONCE = 8 * CLUSTER_SIZE
"""Bytes that the event loop looks at before it does something else: 0.1 ms, in which a socket does not run full."""


class ArchiveWriter:
    """Fixed: encoder, sink, pool. Changing, in the event loop only: the items in flight.

    ``told``: what the archive tells of itself, beside what finish() is given; set before that.
    """

    def __init__(
        self,
        encoder: ArchiveEncoder,
        sink: Sink,
        pool: ThreadPoolExecutor,
        *,
        threads: int,
        trace: Trace | None = None,
        seal: Callable[[], Awaitable[None]] | None = None,
        memory: IndexMemory | None = None,
    ) -> None:
        """``seal``: what is to be done when the sink has been given all that there is.

        ``memory``: where the index is kept beside the archive.
        """
        self.told: dict[str, Any] = {}
        self._encoder, self._sink, self._pool = encoder, sink, pool
        self._most = threads + ITEMS_AHEAD
        self._queue: deque[asyncio.Future[Encoded]] = deque()
        self._turn = asyncio.Lock()
        self._local = threading.local()
        self._trace, self._seal, self._memory = trace or Trace(), seal, memory

    @property
    def written(self) -> int:
        """Bytes of the archive so far."""
        return self._encoder.written

    @property
    def stored(self) -> int | None:
        """Whoever gives the clusters knows."""
        return None

    @property
    def encoder(self) -> ArchiveEncoder:
        """What turns clusters into bytes; knows header and counts."""
        return self._encoder

    @property
    def digest(self) -> bytes | None:
        """Of the directory, once it is written; None of an archive that has none."""
        return self._encoder.digest

    async def start(self) -> None:
        """Open the sink and write the header."""
        await self._sink.begin()
        header = self._encoder.start()
        await self._sink.write([header])
        await self._remember(0, [header])

    async def _remember(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Keep bytes that are no data."""
        if self._memory is not None:
            await asyncio.to_thread(self._memory.note, offset, b"".join(buffers))

    @property
    def counts(self) -> dict[int, DriveCounts]:
        """What each drive was found to hold."""
        return self._encoder.index.counts

    async def prepare(self, pieces: Sequence[Piece], pool: ThreadPoolExecutor) -> Sequence[Prepared]:
        """Look for zeros and compute digests.

        In threads, beside those that compress. Where nothing is compressed they would mostly wait for each other, and
        for the thread that receives from a socket: then it is done here, piece by piece.
        """
        if self._encoder.compresses:
            return await asyncio.get_running_loop().run_in_executor(pool, self._prepare_all, pieces)
        return [Prepared(piece.content, await _scan_here(piece.content)) for piece in pieces]

    def _prepare_all(self, pieces: Sequence[Piece]) -> list[Prepared]:
        return [Prepared(piece.content, scan(piece.content)) for piece in pieces]

    async def take(self, drive_id: int, first: int, prepared: Prepared) -> None:
        """Take clusters in a row; waits while too much is in flight."""
        await self.put(drive_id, first, scan(prepared.content) if prepared.runs is None else prepared.runs)

    async def put(self, drive_id: int, first: int, runs: Sequence[ClusterRun]) -> None:
        """Take clusters in a row; waits while too much is in flight."""
        async with self._turn:
            self._encoder.add(drive_id, first, runs)
            await self._submit_ready()

    async def put_zeros(self, drive_id: int, first: int, count: int) -> int:
        """Take zero clusters in a row."""
        async with self._turn:
            self._encoder.add_zeros(drive_id, first, count)
            await self._submit_ready()
        return count

    async def put_unchanged(self, drive_id: int, first: int, count: int) -> None:
        """Never: a full archive has no parent."""
        raise AssertionError("a full archive lacks nothing")

    async def differs(self, piece: Piece) -> bool:
        """Always: a full archive has no parent."""
        return True

    async def put_frame(self, frame: CopiedFrame) -> None:
        """Take a frame of another archive, which is written as it is."""
        async with self._turn:
            self._encoder.add_frame(frame)
            await self._submit_ready()

    async def _submit_ready(self) -> None:
        ready = self._encoder.ready
        self._encoder.ready = []
        for item in ready:
            if not self._encoder.compresses:
                await self._write(self._encoder.encode(item, None))
                continue
            while len(self._queue) >= self._most:
                await self._write_oldest()
            self._queue.append(self._encode(item))

    def _encode(self, item: Item) -> asyncio.Future[Encoded]:
        return asyncio.wrap_future(self._pool.submit(self._encode_in_thread, item))

    def _encode_in_thread(self, item: Item) -> Encoded:
        local = self._local
        if not hasattr(local, "compressor"):
            local.compressor = self._encoder.compressor()
        return self._encoder.encode(item, local.compressor)

    async def _write_oldest(self) -> None:
        encoded = await self._queue[0]
        self._queue.popleft()
        await self._write(encoded)

    async def _write(self, encoded: Encoded) -> None:
        before = self._encoder.written
        buffers = self._encoder.commit(encoded)
        await self._sink.write(buffers)
        self._trace(
            "archive.extent", offset=before, frames=len(encoded.frames), compressed=self._encoder.written - before
        )
        if len(buffers) > sum(len(frame.pieces) for frame in encoded.frames):
            self._trace("archive.segment", length=len(buffers[-1]))
            await self._remember(self._encoder.written - len(buffers[-1]), buffers[-1:])

    async def drain(self) -> None:
        """Write out all that was put; the last extent may be a partial one."""
        async with self._turn:
            self._encoder.close_extent()
            await self._submit_ready()
            while self._queue:
                await self._write_oldest()

    async def finish(self, about: dict[str, Any]) -> None:
        """Write the rest, index and seek table included. The sink is left to be committed."""
        await self.drain()
        before, buffers = self._encoder.written, self._encoder.finish({**about, **self.told})
        await self._sink.write(buffers)
        await self._remember(before, buffers)
        if self._seal is not None:
            await self._seal()
        self._trace("archive.finish", size=self._encoder.written)

    async def abort(self) -> None:
        """Drop what is in flight, and everything written."""
        waiting, self._queue = list(self._queue), deque()
        await end(waiting)
        if self._memory is not None:
            self._memory.drop()
        await self._sink.abort()

    async def commit(self) -> None:
        """Make the archive durable under its final name."""
        await self._sink.commit()
        if self._memory is not None:
            self._memory.keep(self._encoder.written)

    @property
    def not_remembered(self) -> str | None:
        """Why the index could not be kept; None where it was, or was not to be."""
        return None if self._memory is None else self._memory.problem


async def _scan_here(content: Buffer) -> list[ClusterRun]:
    """What scan() finds; others have their turn meanwhile."""
    runs: list[ClusterRun] = []
    for start in range(0, len(content), SCANNED_AT_ONCE):
        runs += scan(content, start, min(start + SCANNED_AT_ONCE, len(content)))
        await asyncio.sleep(0)
    return runs
