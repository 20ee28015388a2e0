"""The NBD state machines against random bytes, and against random ways in which bytes arrive."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from pybackup.formats import nbd_client_wire as client
from pybackup.formats import nbd_transmission
from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError
from pybackup.formats.nbd_handshake import ExportInfo, ServerHandshake, export_flags
from pybackup.formats.nbd_transmission import (
    LONG_READ,
    WRITE_END,
    WRITE_PART,
    PayloadBuffers,
    Request,
    RequestReader,
    RequestRules,
)

SIZE = 1 << 20
MOST = 1 << 40
EXPORTS = {"a": ExportInfo(SIZE, export_flags(read_only=False), "first"), "b": ExportInfo(5, 3)}

names = st.sampled_from(["", "a", "b", "ä"])
queries = st.lists(st.sampled_from(["base:", "base:allocation", "qemu:", ""]), max_size=4)
options = st.one_of(
    st.builds(client.encode_option, st.integers(0, 12), st.binary(max_size=60)),
    st.builds(client.encode_go, names, st.lists(st.integers(0, 9), max_size=4), st.sampled_from([6, 7])),
    st.builds(client.encode_meta_context, names, queries, st.sampled_from([10, 11])),
    st.just(client.encode_option(wire.OPT_STRUCTURED_REPLY)),
)
lengths = st.one_of(st.integers(0, 5000), st.sampled_from([65535, 65536, 65537, 300_000, SIZE]))
offsets = st.one_of(st.just(0), st.integers(0, SIZE), st.integers(0, (1 << 64) - 1))


@dataclass(frozen=True)
class Sent:
    """A request of a client; a write has as many bytes as it says."""

    command: int
    cookie: int
    offset: int
    length: int
    flags: int

    def encode(self) -> bytes:
        data = bytes([self.length % 251]) * self.length if self.command == wire.CMD_WRITE else b""
        return client.encode_request(self.command, self.cookie, self.offset, self.length, self.flags) + data


requests = st.builds(
    Sent,
    command=st.sampled_from([0, 0, 0, 1, 1, 1, 1, 3, 4, 5, 6, 7, 8, 999]),
    cookie=st.integers(0, (1 << 64) - 1),
    offset=offsets,
    length=lengths,
    flags=st.one_of(st.just(0), st.integers(0, 0xFFFF)),
)
ends = st.sampled_from([b"", client.encode_request(wire.CMD_DISC, 5), b"no request at all, this is"])
cuts = st.lists(st.one_of(st.integers(1, 100), st.integers(1, 70_000)), min_size=1, max_size=30)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut pieces of these sizes from the front; what is left is one more."""
    ends = [0, *accumulate(sizes), len(data)]
    return [piece for start, end in pairwise(ends) if (piece := data[start : max(start, end)])]


def shake_hands(received: list[bytes]) -> tuple[bytes, object, bytes | str]:
    """What was sent, agreed on and left."""
    handshake = ServerHandshake(EXPORTS)
    sent, rest = b"", b""
    try:
        for piece in received:
            if handshake.over:
                rest += piece
            else:
                sent += handshake.receive(piece)
    except FormatError:
        return b"", None, "nonsense"
    return sent, handshake.agreement, handshake.rest + rest if handshake.over else b""


def transmit(received: list[bytes], most: int, first: bytes = b"") -> tuple[list[Request], str]:
    """All requests with their data, and how it ended."""
    reader = RequestReader(RequestRules(SIZE, 0, block_status=True), PayloadBuffers(), first)
    found: list[Request] = []
    try:
        for piece in received:
            left = memoryview(piece)
            while left:
                room = reader.buffer()
                assert room
                taken = min(len(room), len(left))
                room[:taken] = left[:taken]
                reader.received(taken)
                left = left[taken:]
                while not reader.starved and not reader.closed:
                    found += [(*r[:5], bytearray(r[5]), r[6]) for r in reader.requests(most, MOST)]
                if reader.closed:
                    return found, "closed"
    except FormatError as error:
        return found, str(error)
    return found, "starved"


@given(st.lists(st.binary(max_size=200)))
def test_random_bytes_end_a_handshake_with_its_own_error(received: list[bytes]) -> None:
    shake_hands(received)
    shake_hands([client.encode_client_flags(3), *received])


@given(st.lists(st.binary(max_size=200)), st.integers(1, 5))
def test_random_bytes_end_a_transmission_with_its_own_error(received: list[bytes], most: int) -> None:
    transmit(received, most)
    transmit([struct.pack(">I", wire.REQUEST_MAGIC) + piece for piece in received], most)


@given(st.integers(0, 3), st.lists(options), cuts)
def test_a_handshake_is_the_same_however_it_arrives(flags: int, sent: list[bytes], sizes: list[int]) -> None:
    received = client.encode_client_flags(flags) + b"".join(sent)
    assert shake_hands(pieces(received, sizes)) == shake_hands([received])


@given(st.lists(requests, max_size=8), ends, cuts, st.integers(1, 9))
def test_a_transmission_is_the_same_however_it_arrives(
    sent: list[Sent], end: bytes, sizes: list[int], most: int
) -> None:
    received = b"".join(request.encode() for request in sent) + end
    assert transmit(pieces(received, sizes), most) == transmit([received], 1000)


@given(st.lists(requests, max_size=8), cuts)
def test_every_request_is_taken_as_it_was_sent(sent: list[Sent], sizes: list[int]) -> None:
    found, end = transmit(pieces(b"".join(request.encode() for request in sent), sizes), 8)
    assert end == "starved"
    assert len(found) == len(sent)
    for request, (command, flags, cookie, offset, length, payload, error) in zip(sent, found, strict=True):
        assert request == Sent(command, cookie, offset, length, flags)
        assert payload == (b"" if error else request.encode()[28:])


@given(st.lists(requests, max_size=8), cuts, st.integers(1, 9))
def test_long_requests_are_told_and_long_writes_come_in_parts(sent: list[Sent], sizes: list[int], most: int) -> None:
    with mock.patch.object(nbd_transmission, "LONG", 4000):
        found, end = transmit(pieces(b"".join(request.encode() for request in sent), sizes), most)
    assert end == "starved"
    joined: list[Request] = []
    part_before = False
    for command, flags, cookie, offset, length, payload, error in found:
        if part_before:
            first = joined[-1]
            assert (flags, cookie, offset) == (*first[1:3], first[3] + first[4]) and command in (WRITE_PART, WRITE_END)
            joined[-1] = (*first[:4], first[4] + length, bytearray(first[5]) + payload, error)
        else:
            joined.append((command & 0xFFFF, flags, cookie, offset, length, payload, error))
        assert len(payload) <= 4000 or length <= nbd_transmission.SHORT_WRITE
        assert (command == LONG_READ) <= (length > 4000 and not error)
        part_before = command == WRITE_PART
    assert not part_before
    assert [Sent(r[0], r[2], r[3], r[4], r[1]) for r in joined] == sent
    for request, read in zip(sent, joined, strict=True):
        assert read[5] == (b"" if read[6] else request.encode()[28:])


@given(st.binary(max_size=40))
def test_a_client_reads_random_replies_or_says_no(data: bytes) -> None:
    decoders = (client.decode_info_export, client.decode_error, client.decode_block_status, client.decode_hole)
    for decode in (*decoders, client.decode_meta_context):
        with suppress(FormatError):
            decode(data)
