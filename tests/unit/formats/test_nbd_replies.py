from __future__ import annotations

import errno

import pytest

from pybackup.formats import nbd_client_wire as client
from pybackup.formats import nbd_replies
from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError
from pybackup.formats.nbd_replies import MAX_DESCRIPTORS, SimpleReplies, StructuredReplies


def chunk(reply: bytes) -> tuple[client.Chunk, bytes]:
    header, payload = client.decode_chunk(reply[: wire.CHUNK.size]), reply[wire.CHUNK.size :]
    assert client.is_chunk(reply)
    assert header.done
    return header, payload


def extents(reply: bytes) -> list[tuple[int, int]]:
    header, payload = chunk(reply)
    assert (header.kind, header.length) == (wire.CHUNK_BLOCK_STATUS, len(payload))
    return client.decode_block_status(payload)[1]


def test_simple_replies() -> None:
    assert client.decode_simple_reply(nbd_replies.done(7)) == (0, 7)
    assert client.decode_simple_reply(SimpleReplies().read_header(8, 0, 512)) == (0, 8)
    assert client.decode_simple_reply(SimpleReplies().error(9, wire.NBD_EIO, "lost")) == (5, 9)
    assert not client.is_chunk(nbd_replies.done(7))


def test_a_structured_read_is_one_chunk() -> None:
    header, payload = chunk(StructuredReplies().read_header(8, 4096, 512))
    assert (header.kind, header.cookie, header.length) == (wire.CHUNK_OFFSET_DATA, 8, 520)
    assert payload == (4096).to_bytes(8, "big")
    header, payload = chunk(StructuredReplies().read_header(8, 4096, 0))
    assert (header.kind, header.length, payload) == (wire.CHUNK_NONE, 0, b"")


def test_a_structured_error_says_why() -> None:
    header, payload = chunk(StructuredReplies().error(8, wire.NBD_ENOSPC, "the disk is full"))
    assert (header.kind, header.length) == (wire.CHUNK_ERROR, len(payload))
    assert client.decode_error(payload) == (28, "the disk is full")
    _, payload = chunk(StructuredReplies().error(8, wire.NBD_EIO, "\udc80ä" * 10_000))
    assert len(payload) <= wire.MAX_STRING


def test_equal_neighbours_are_one_extent() -> None:
    told = [(4096, 0), (4096, 3), (8192, 3), (1, 0)]
    assert extents(nbd_replies.block_status(1, told, one=False)) == [(4096, 0), (12288, 3), (1, 0)]
    assert extents(nbd_replies.block_status(1, told, one=True)) == [(4096, 0)]
    assert extents(nbd_replies.block_status(1, told[1:], one=True)) == [(12288, 3)]


def test_the_number_of_extents_is_bounded() -> None:
    told = [(1, number % 2) for number in range(MAX_DESCRIPTORS + 5)]
    assert len(extents(nbd_replies.block_status(1, told, one=False))) == MAX_DESCRIPTORS


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EPERM, 1),
        (errno.EACCES, 1),
        (errno.EROFS, 1),
        (errno.EIO, 5),
        (errno.ENOMEM, 12),
        (errno.EINVAL, 22),
        (errno.ENOSPC, 28),
        (errno.EDQUOT, 28),
        (errno.EFBIG, 28),
        (errno.ESHUTDOWN, 108),
        (errno.EOPNOTSUPP, 22),
        (errno.EBADF, 5),
        (errno.EOVERFLOW, 5),
        (0, 5),
        (None, 5),
    ],
)
def test_errors_are_those_of_the_specification(number: int | None, error: int) -> None:
    assert nbd_replies.nbd_error(number) == error


def test_enotsup_is_for_fast_zero() -> None:
    assert nbd_replies.nbd_error(errno.EOPNOTSUPP, wire.CMD_FLAG_FAST_ZERO) == wire.NBD_ENOTSUP
    assert nbd_replies.nbd_error(errno.ENOSPC, wire.CMD_FLAG_FAST_ZERO) == wire.NBD_ENOSPC


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (client.decode_greeting, bytes(18)),
        (client.decode_greeting, wire.GREETING.pack(wire.NBD_MAGIC, wire.OPTION_MAGIC, 0)),
        (client.decode_greeting, wire.GREETING.pack(wire.NBD_MAGIC, 5, 1)),
        (client.decode_option_reply, bytes(20)),
        (client.decode_option_reply, wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, 1, 1, 1 << 31)),
        (client.decode_info_export, b"\0\0short"),
        (client.decode_meta_context, b"x"),
        (client.decode_simple_reply, bytes(16)),
        (client.decode_chunk, bytes(20)),
        (client.decode_chunk, wire.CHUNK.pack(wire.CHUNK_MAGIC, 1, 1, 1, 33 << 20)),
        (client.decode_hole, bytes(11)),
        (client.decode_error, b"\0\0\0\5"),
        (client.decode_error, b"\0\0\0\5\0\2x"),
        (client.decode_error, bytes(6)),
        (client.decode_block_status, b"\0\0\0\1"),
        (client.decode_block_status, bytes(11)),
        (client.decode_block_status, bytes(12)),
    ],
)
def test_a_client_refuses_what_is_no_reply(decode: object, data: bytes) -> None:
    assert callable(decode)
    with pytest.raises(FormatError):
        decode(data)


def test_a_client_understands_holes_and_other_infos() -> None:
    assert client.decode_hole(wire.CHUNK_HOLE.pack(5, 6)) == (5, 6)
    assert client.decode_info_export(b"\0\1name") is None
