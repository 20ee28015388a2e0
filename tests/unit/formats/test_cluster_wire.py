"""What goes between a server and whoever writes the archive: messages one way, replies the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.formats import cluster_wire as wire
from pybackup.formats.errors import FormatError

DIGEST = bytes(range(16))
SAID = (
    wire.PROGRESS.pack(wire.PROGRESS_MARK, 5, 7)
    + wire.ANSWER.pack(wire.ANSWER_MARK, True)
    + wire.PROGRESS.pack(wire.PROGRESS_MARK, 1 << 40, 1 << 41)
    + wire.IDENTITY.pack(wire.IDENTITY_MARK, DIGEST)
)


@given(st.integers(1, len(SAID)), st.sampled_from([wire.ACKNOWLEDGEMENT, b"no room is left", b""]))
def test_replies_are_understood_however_they_come_in_pieces(step: int, last: bytes) -> None:
    replies, said = wire.Replies(), SAID + last
    for at in range(0, len(said), step):
        replies.feed(said[at : at + step])
        assert replies.last in last
    assert (replies.stored, replies.written, replies.answer) == (1 << 40, 1 << 41, True)
    assert (replies.digest, replies.last) == (DIGEST, last)


def test_what_is_cut_off_is_no_last_word() -> None:
    for mark, layout in ((wire.PROGRESS_MARK, wire.PROGRESS), (wire.IDENTITY_MARK, wire.IDENTITY)):
        replies = wire.Replies()
        replies.feed(mark + bytes(layout.size - 2))
        assert replies.last == b"" and replies.digest is None


@pytest.mark.parametrize("kind", [wire.DATA, wire.ZEROS, wire.END, wire.UNCHANGED, wire.SAMPLE])
def test_messages(kind: int) -> None:
    message = wire.Message(kind, 7, 3, 2, 65536)
    assert wire.decode(message.encode()) == message


@pytest.mark.parametrize(
    "header",
    [
        wire.Message(0, 1, 0, 1, 0).encode(),
        wire.Message(6, 1, 0, 1, 0).encode(),
        wire.Message(wire.DATA, 1, 0, 1, wire.MAX_PAYLOAD + 1).encode(),
        b"?" * wire.MESSAGE.size,
    ],
)
def test_what_is_no_message(header: bytes) -> None:
    with pytest.raises(FormatError, match="damaged"):
        wire.decode(header)
