from __future__ import annotations

import pytest

from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError
from pybackup.formats.nbd_client_wire import encode_request
from pybackup.formats.nbd_handshake import export_flags
from pybackup.formats.nbd_transmission import (
    BUFFER_SIZE,
    LONG,
    LONG_READ,
    WRITE_END,
    WRITE_PART,
    PayloadBuffers,
    Request,
    RequestReader,
    RequestRules,
)

SIZE = 64 << 20
FLAGS = export_flags(read_only=False) | wire.FLAG_SEND_DF
RULES = RequestRules(SIZE, FLAGS, block_status=True)
MOST = 1 << 40


def reader(rules: RequestRules = RULES) -> RequestReader:
    return RequestReader(rules, PayloadBuffers())


def feed(requests: RequestReader, data: bytes, most: int = 1000) -> list[Request]:
    """Give it all of ``data`` in as few pieces as its buffers allow; return all requests with their data copied."""
    found: list[Request] = []
    while data or not requests.starved:
        if requests.starved:
            room = requests.buffer()
            piece = data[: len(room)]
            room[: len(piece)] = piece
            requests.received(len(piece))
            data = data[len(piece) :]
        found += [(*request[:5], bytearray(request[5]), request[6]) for request in requests.requests(most, MOST)]
        if requests.closed:
            break
    return found


def test_many_requests_come_at_once() -> None:
    data = encode_request(wire.CMD_READ, 1, 4096, 512) + encode_request(wire.CMD_WRITE, 2, 0, 3) + b"abc"
    data += encode_request(wire.CMD_FLUSH, 3) + encode_request(wire.CMD_TRIM, 4, 5, 6, wire.CMD_FLAG_FUA)
    assert feed(reader(), data) == [
        (wire.CMD_READ, 0, 1, 4096, 512, b"", 0),
        (wire.CMD_WRITE, 0, 2, 0, 3, b"abc", 0),
        (wire.CMD_FLUSH, 0, 3, 0, 0, b"", 0),
        (wire.CMD_TRIM, wire.CMD_FLAG_FUA, 4, 5, 6, b"", 0),
    ]


@pytest.mark.parametrize("length", [0, 1, 65535, 65536, 65537, BUFFER_SIZE, LONG, LONG + 1, 32 << 20])
def test_a_write_of_any_length_is_whole(length: int) -> None:
    payload = bytes(range(256)) * (length // 256) + bytes(length % 256)
    data = encode_request(wire.CMD_WRITE, 1, 7, length) + payload + encode_request(wire.CMD_READ, 2, 0, 1)
    *parts, read = feed(reader(), data)
    assert b"".join(part[5] for part in parts) == payload
    assert [part[3] for part in parts] == [7 + at for at in range(0, max(length, 1), LONG)]
    whole = len(parts) == 1
    assert [part[0] for part in parts] == ([wire.CMD_WRITE] if whole else [WRITE_PART] * (len(parts) - 1) + [WRITE_END])
    assert {part[2] for part in parts} == {1}
    assert read[2] == 2


def test_a_write_takes_one_round_of_the_buffer_after_the_other() -> None:
    requests = reader()
    for cookie in range(200):
        payload = bytes([cookie]) * (3000 + cookie)
        (write,) = feed(requests, encode_request(wire.CMD_WRITE, cookie, 0, len(payload)) + payload)
        assert write[2] == cookie
        assert write[5] == payload


def test_a_batch_has_limits() -> None:
    requests = reader()
    data = b"".join(encode_request(wire.CMD_READ, cookie, 0, 1000) for cookie in range(10))
    requests.buffer()[: len(data)] = data
    requests.received(len(data))
    assert [request[2] for request in requests.requests(3, MOST)] == [0, 1, 2]
    assert [request[2] for request in requests.requests(100, 1001)] == [3, 4]
    assert not requests.starved
    assert [request[2] for request in requests.requests(100, MOST)] == [5, 6, 7, 8, 9]
    assert requests.starved


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "error"),
    [
        (wire.CMD_READ, 0, SIZE - 1, 1, 0),
        (wire.CMD_READ, 0, SIZE, 1, wire.NBD_EINVAL),
        (wire.CMD_READ, 0, (1 << 64) - 1, 1, wire.NBD_EINVAL),
        (wire.CMD_READ, 0, 0, wire.MAX_PAYLOAD, 0),
        (wire.CMD_READ, 0, 0, wire.MAX_PAYLOAD + 1, wire.NBD_EINVAL),
        (wire.CMD_READ, wire.CMD_FLAG_DF, 0, 1, 0),
        (wire.CMD_READ, wire.CMD_FLAG_FUA, 0, 1, 0),
        (wire.CMD_READ, wire.CMD_FLAG_NO_HOLE, 0, 1, wire.NBD_EINVAL),
        (wire.CMD_READ, 1 << 15, 0, 1, wire.NBD_EINVAL),
        (wire.CMD_FLUSH, 0, 0, 1, wire.NBD_EINVAL),
        (wire.CMD_FLUSH, 0, 1, 0, wire.NBD_EINVAL),
        (wire.CMD_TRIM, 0, 0, SIZE, 0),
        (wire.CMD_TRIM, 0, 1, SIZE, wire.NBD_EINVAL),
        (wire.CMD_CACHE, 0, 0, SIZE, 0),
        (wire.CMD_CACHE, 0, 1, SIZE, wire.NBD_EINVAL),
        (wire.CMD_WRITE_ZEROES, wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO, 0, SIZE, 0),
        (wire.CMD_WRITE_ZEROES, 0, 1, SIZE, wire.NBD_ENOSPC),
        (wire.CMD_WRITE_ZEROES, wire.CMD_FLAG_DF, 0, 1, wire.NBD_EINVAL),
        (wire.CMD_BLOCK_STATUS, wire.CMD_FLAG_REQ_ONE, 0, SIZE, 0),
        (wire.CMD_BLOCK_STATUS, 0, 0, 0, wire.NBD_EINVAL),
        (wire.CMD_BLOCK_STATUS, 0, 1, SIZE, wire.NBD_EINVAL),
        (8, 0, 0, 0, wire.NBD_EINVAL),
        (0xFFFF, 0, 0, 0, wire.NBD_EINVAL),
    ],
)
def test_bad_requests_have_their_errors(command: int, flags: int, offset: int, length: int, error: int) -> None:
    data = encode_request(command, 9, offset, length, flags)
    told = LONG_READ if command == wire.CMD_READ and length > LONG and not error else command
    assert feed(reader(), data) == [(told, flags, 9, offset, length, b"", error)]


@pytest.mark.parametrize(
    ("offset", "length", "flags", "error"),
    [
        (SIZE, 1, 0, wire.NBD_ENOSPC),
        (SIZE - 70000, 70001, 0, wire.NBD_ENOSPC),
        (0, 10, wire.CMD_FLAG_DF, wire.NBD_EINVAL),
        (0, wire.MAX_PAYLOAD + 1, 0, wire.NBD_EINVAL),
    ],
)
def test_the_data_of_a_bad_write_is_skipped(offset: int, length: int, flags: int, error: int) -> None:
    data = encode_request(wire.CMD_WRITE, 1, offset, length, flags) + bytes(length)
    write, read = feed(reader(), data + encode_request(wire.CMD_READ, 2))
    assert write[5:] == (b"", error)
    assert read[2] == 2


def test_read_only_means_eperm() -> None:
    rules = RequestRules(SIZE, export_flags(read_only=True))
    data = encode_request(wire.CMD_WRITE, 1, 0, 5) + b"12345"
    data += encode_request(wire.CMD_TRIM, 2, 0, 5) + encode_request(wire.CMD_WRITE_ZEROES, 3, 0, 5)
    data += encode_request(wire.CMD_READ, 4, 0, 5) + encode_request(wire.CMD_FLUSH, 5)
    assert [request[6] for request in feed(reader(rules), data)] == [wire.NBD_EPERM] * 3 + [0, 0]


def test_what_was_not_negotiated_is_einval() -> None:
    rules = RequestRules(SIZE, export_flags(read_only=False))
    data = encode_request(wire.CMD_BLOCK_STATUS, 1, 0, 5) + encode_request(wire.CMD_READ, 2, 0, 5, wire.CMD_FLAG_DF)
    assert [request[6] for request in feed(reader(rules), data)] == [wire.NBD_EINVAL] * 2


def test_nothing_counts_behind_disc() -> None:
    requests = reader()
    data = encode_request(wire.CMD_READ, 1) + encode_request(wire.CMD_DISC, 2) + b"nonsense" * 10
    assert [request[2] for request in feed(requests, data)] == [1, 2]
    assert requests.closed
    assert requests.requests(10, MOST) == []


def test_nonsense_is_told_after_the_requests_before_it() -> None:
    requests = reader()
    data = encode_request(wire.CMD_READ, 1) + b"x" * 28
    requests.buffer()[: len(data)] = data
    requests.received(len(data))
    assert len(requests.requests(10, MOST)) == 1
    with pytest.raises(FormatError, match=r"no request \(at byte 28\)"):
        requests.requests(10, MOST)


def test_the_place_of_nonsense_counts_everything_before() -> None:
    requests = reader()
    data = b"".join(encode_request(wire.CMD_WRITE, 1, 0, length) + bytes(length) for length in (5, 100_000, 1 << 20, 9))
    data += encode_request(wire.CMD_WRITE, 1, SIZE, 300_000) + bytes(300_000)
    with pytest.raises(FormatError) as caught:
        feed(requests, data + b"x" * 28)
    assert caught.value.offset == len(data)


def test_what_came_with_the_handshake_is_first() -> None:
    requests = RequestReader(RULES, PayloadBuffers(), encode_request(wire.CMD_READ, 1)[:20])
    assert requests.requests(10, MOST) == []
    assert [request[2] for request in feed(requests, encode_request(wire.CMD_READ, 1)[20:])] == [1]


class TestPayloadBuffers:
    def test_a_buffer_is_used_again_for_the_same_length(self) -> None:
        buffers = PayloadBuffers()
        first = buffers.take(100)
        buffers.give_back(first)
        assert buffers.take(99) is not first
        assert buffers.take(100) is first
        assert buffers.take(100) is not first

    def test_no_more_is_kept_than_allowed(self) -> None:
        buffers = PayloadBuffers(most_bytes=250)
        kept = [buffers.take(100) for _ in range(3)]
        for buffer in kept:
            buffers.give_back(buffer)
        assert buffers.take(100) is kept[2]
        assert buffers.take(100) not in (kept[0], kept[1]) or buffers._bytes == 0
        huge = buffers.take(251)
        buffers.give_back(huge)
        assert buffers.take(251) is not huge
