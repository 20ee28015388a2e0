"""The NBD client's reading of replies: in any pieces and any order they mean the same, and no bytes at all break it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import virtual_time
from device_contract import pattern
from hypothesis import given
from hypothesis import strategies as st
from nbd_double import CONTEXT, data, done, error, hole, simple, status

from pybackup.core.nbd.negotiation import Agreed
from pybackup.core.nbd.session import Batch, ConnectionLost, NbdSession
from pybackup.formats import nbd_wire as wire

SIZE = 20_000
DISK = pattern(SIZE)


class Transport(asyncio.Transport):
    """Takes what is sent; tells the protocol when it is aborted, as a real one does, but at once."""

    def __init__(self, protocol: NbdSession) -> None:
        super().__init__()
        self.protocol, self.aborted = protocol, False

    def write(self, data: Any) -> None:
        """It goes nowhere."""

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.protocol.connection_lost(None)


def session(structured: bool = True) -> tuple[NbdSession, Transport]:
    made = NbdSession(Agreed(size=SIZE, structured=structured, context=CONTEXT if structured else None))
    transport = Transport(made)
    made.connection_made(transport)
    return made, transport


def feed(one: NbdSession, transport: Transport, stream: bytes, cuts: Sequence[int]) -> None:
    """Give it these bytes as a transport does, in pieces that end at ``cuts``, or earlier where it wants fewer."""
    at = 0
    for end in [*sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]:
        while at < end and not transport.aborted:
            buffer = one.get_buffer(-1)
            assert len(buffer) > 0
            count = min(len(buffer), end - at)
            buffer[:count] = stream[at : at + count]
            one.buffer_updated(count)
            at += count


ranges = st.lists(
    st.integers(0, SIZE - 1).flatmap(
        lambda offset: st.tuples(st.just(offset), st.integers(1, min(SIZE - offset, 9000)))
    ),
    min_size=1,
    max_size=6,
)
cuts = st.lists(st.integers(0, 1 << 16), max_size=60)


@given(ranges, cuts, st.randoms(use_true_random=False))
def test_chunks_in_any_order_and_any_pieces(asked: list[tuple[int, int]], pieces: list[int], source: Any) -> None:
    async def test() -> None:
        one, transport = session()
        batch = Batch()
        targets = [memoryview(bytearray(length)) for _, length in asked]
        expected = [bytearray(DISK[offset : offset + length]) for offset, length in asked]
        chunks: list[tuple[int, bytes]] = []
        for (offset, length), target, content in zip(asked, targets, expected, strict=True):
            request = await one.read(offset, target, batch)
            edges = sorted({0, length, *(source.randrange(length) for _ in range(source.randrange(5)))})
            for start, end in pairwise(edges):
                if source.random() < 0.3:
                    content[start:end] = bytes(end - start)
                    chunks.append((request.cookie, hole(request.cookie, offset + start, end - start)))
                else:
                    chunks.append((request.cookie, data(request.cookie, offset + start, bytes(content[start:end]))))
        source.shuffle(chunks)
        stream = b"".join(made for _, made in chunks)
        for cookie in source.sample(range(1, len(asked) + 1), len(asked)):
            stream += done(cookie)
        feed(one, transport, stream, pieces)
        await batch.wait()
        assert [bytes(target) for target in targets] == [bytes(content) for content in expected]
        assert not transport.aborted

    virtual_time.run(test())


@given(ranges, cuts, st.randoms(use_true_random=False))
def test_simple_replies_in_any_order_and_any_pieces(
    asked: list[tuple[int, int]], pieces: list[int], source: Any
) -> None:
    async def test() -> None:
        one, transport = session(structured=False)
        targets = [memoryview(bytearray(length)) for _, length in asked]
        batches = [Batch() for _ in asked]
        replies = []
        for (offset, length), target, batch in zip(asked, targets, batches, strict=True):
            request = await one.read(offset, target, batch)
            fails = source.random() < 0.2
            content = b"" if fails else DISK[offset : offset + length]
            replies.append(simple(request.cookie, wire.NBD_EIO if fails else 0, content))
        stream = b"".join(source.sample(replies, len(replies)))
        feed(one, transport, stream, pieces)
        found = await asyncio.gather(*(batch.wait() for batch in batches), return_exceptions=True)
        for (offset, length), target, failure, reply in zip(asked, targets, found, replies, strict=True):
            if len(reply) == wire.SIMPLE_REPLY.size:
                assert isinstance(failure, OSError)
            else:
                assert failure is None and target == DISK[offset : offset + length]
        assert not transport.aborted

    virtual_time.run(test())


def replies_to(cookie: int) -> st.SearchStrategy[bytes]:
    """Whole replies and chunks that look right, or nearly so."""
    number = st.integers(0, 9000)
    return st.one_of(
        st.builds(data, st.just(cookie), number, st.binary(max_size=50), st.booleans()),
        st.builds(hole, st.just(cookie), number, number, st.booleans()),
        st.builds(error, st.just(cookie), st.sampled_from([0, 1, 5, 108, 9999]), st.binary(max_size=9), st.booleans()),
        st.builds(status, st.just(cookie), st.lists(st.tuples(number, st.integers(0, 3)), max_size=3)),
        st.just(done(cookie)),
        st.builds(simple, st.just(cookie), st.sampled_from([0, 5])),
        st.binary(max_size=40),
    )


@given(
    st.lists(st.integers(0, 5).flatmap(replies_to), max_size=12),
    cuts,
    st.booleans(),
    st.lists(st.integers(), max_size=2),
)
def test_no_bytes_make_it_fail_otherwise_than_it_should(
    replies: list[bytes], pieces: list[int], structured: bool, flips: list[int]
) -> None:
    """After them the connection is lost, or what was asked has an answer, or it still waits for one: nothing else."""

    async def test() -> None:
        stream = bytearray(b"".join(replies))
        for flip in flips if stream else []:
            stream[flip % len(stream)] ^= 1 << flip % 8
        one, transport = session(structured)
        room = bytearray(b"\xaa" * 3000)
        reads, status, flush = Batch(), Batch(), Batch()
        await one.read(0, memoryview(room)[1000:1050], reads)
        await one.read(50, memoryview(room)[1050:2000], reads)
        asked = await one.ask(wire.CMD_BLOCK_STATUS, 0, 9000, status)
        await one.ask(wire.CMD_FLUSH, 0, 0, flush)
        feed(one, transport, bytes(stream), pieces)
        assert room[:1000] == room[2000:] == b"\xaa" * 1000
        if not transport.aborted:
            transport.abort()
        found = await asyncio.gather(reads.wait(), status.wait(), flush.wait(), return_exceptions=True)
        assert all(one is None or isinstance(one, OSError | ConnectionLost) for one in found)
        assert found[1] is not None or all(length for length, _ in asked.extents)

    virtual_time.run(test())
