from __future__ import annotations

import asyncio
import io
from concurrent.futures import Future
from random import Random
from typing import Any

import plain_vma
import pytest
import zstandard
from virtual_time import InlineExecutor, run
from wild import Weather, WildSink

from pybackup.core.archive.create import ArchiveOptions, make_writer
from pybackup.core.archive.intake import Piece
from pybackup.core.archive.writer import ArchiveWriter
from pybackup.core.errors import PybackupError
from pybackup.formats.clusters import scan
from pybackup.formats.vma_layout import CLUSTERS_PER_EXTENT

SIZE = 65536


class HeldExecutor(InlineExecutor):
    """Keeps what it is given, until it is told to do it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.held: list[tuple[Future[Any], Any, tuple[Any, ...]]] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.held.append((future, function, args))
        return future

    def do(self, number: int) -> None:
        future, function, args = self.held.pop(number)
        if future.set_running_or_notify_cancel():
            future.set_result(function(*args))


def writer_of(clusters: int, sink: WildSink, pool: InlineExecutor, level: int | None = 1) -> ArchiveWriter:
    options = ArchiveOptions(uuid=bytes(16), created=0, level=level, threads=2)
    return make_writer([("disk", clusters * SIZE)], [("conf", b"x")], options, sink, pool)


def drive_of(sink: WildSink, size: int, level: int | None = 1) -> bytes:
    """The only drive of the archive that the sink took."""
    content = bytes(sink.content)
    if level is not None:
        frames = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content), read_across_frames=True)
        content = frames.read()
    return plain_vma.drives_of(content, {1: size})[1]


def test_extents_are_written_in_order_however_they_are_compressed() -> None:
    async def main() -> None:
        draw = Random(7)
        clusters = 3 * CLUSTERS_PER_EXTENT + 5
        content = b"".join(bytes([number]) * SIZE for number in range(1, clusters + 1))
        sink, pool = WildSink(Weather(draw)), HeldExecutor()
        writer = writer_of(clusters, sink, pool)

        async def write() -> None:
            await writer.start()
            await writer.put(1, 0, scan(content))
            await writer.finish({})
            await writer.commit()

        task = asyncio.create_task(write())
        while not task.done():
            await asyncio.sleep(1)
            if pool.held:
                pool.do(draw.randrange(len(pool.held)))
        await task
        assert drive_of(sink, len(content)) == content
        assert writer.written == len(sink.content)

    run(main())


def test_a_slow_archive_holds_up_whoever_puts() -> None:
    async def main() -> None:
        sink, pool = WildSink(Weather(Random(1))), HeldExecutor()
        writer = writer_of(20 * CLUSTERS_PER_EXTENT, sink, pool)
        await writer.start()
        put = 0

        async def fill() -> None:
            nonlocal put
            for number in range(20):
                await writer.put(1, number * CLUSTERS_PER_EXTENT, scan(b"x" * CLUSTERS_PER_EXTENT * SIZE))
                put += 1

        task = asyncio.create_task(fill())
        await asyncio.sleep(1)
        most = put
        assert 2 <= most <= 5
        for done in range(1, 5):
            pool.do(0)
            await asyncio.sleep(1)
            assert put == most + done
        task.cancel()
        await asyncio.wait([task])
        await writer.abort()
        assert sink.outcome == "aborted"

    run(main())


@pytest.mark.parametrize("level", [None, 1])
def test_several_put_at_once(level: int | None) -> None:
    async def main() -> None:
        clusters = 4 * CLUSTERS_PER_EXTENT
        sink = WildSink(Weather(Random(2), slow=0.5))
        writer = writer_of(clusters, sink, InlineExecutor(1), level)
        await writer.start()
        pieces = [
            writer.put(1, first, scan(bytes([first % 255 + 1]) * SIZE * 4)) for first in range(0, clusters - 8, 4)
        ]
        await asyncio.gather(*pieces, writer.put_zeros(1, clusters - 8, 8))
        await writer.finish({})
        await writer.commit()
        content = drive_of(sink, clusters * SIZE, level)
        assert all(content[at * SIZE] == at - at % 4 + 1 or at >= clusters - 8 for at in range(200))

    run(main())


@pytest.mark.parametrize("level", [None, 1])
def test_a_sink_that_fails_is_told_to_who_puts(level: int | None) -> None:
    async def main() -> None:
        weather = Weather(Random(3))
        sink = WildSink(weather)
        writer = writer_of(200, sink, InlineExecutor(1), level)
        await writer.start()
        weather.sink_errors = 1.0
        with pytest.raises(PybackupError, match="the sink fails"):
            for first in range(0, 200, 4):
                await writer.put(1, first, scan(b"x" * 4 * SIZE))
            await writer.drain()
        await writer.abort()
        assert sink.outcome == "aborted"

    run(main())


@pytest.mark.parametrize("level", [None, 1])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_is_prepared_is_what_a_scan_finds(level: int | None, kind: type) -> None:
    content = Random(4).randbytes(11 * SIZE) + bytes(9 * SIZE) + b"x" * 5000

    async def main() -> None:
        writer = writer_of(100, WildSink(Weather(Random(3))), InlineExecutor(1), level)
        (prepared,) = await writer.prepare([Piece(1, 0, kind(content))], InlineExecutor(1))
        assert prepared.content == content
        assert prepared.runs is not None
        found, whole = ([digest for run in runs for digest in run.digests] for runs in (prepared.runs, scan(content)))
        assert found == whole
        assert prepared.zero == 9 * SIZE

    run(main())
