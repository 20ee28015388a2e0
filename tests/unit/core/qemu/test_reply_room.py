"""What is asked of QEMU at once fits into its socket, with the header in front of it."""

from __future__ import annotations

import socket

import pytest

from pybackup.core.qemu import reply_room
from pybackup.core.qemu.reply_room import SMALLEST, data_at_once


def test_a_reply_fits_where_nobody_reads() -> None:
    size = data_at_once()
    assert size >= SMALLEST
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        ours.setblocking(False)
        for _ in range(3):  # what was read leaves its room again
            assert ours.sendmsg([bytes(28), bytes(size)]) == 28 + size
            got = 0
            while got < 28 + size:
                got += len(theirs.recv(1 << 20))


def test_a_system_with_small_sockets_gets_small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_room, "_fits", lambda size: size <= 20_000)
    assert data_at_once() == 16384
    monkeypatch.setattr(reply_room, "_fits", lambda size: False)
    assert data_at_once() == SMALLEST
    monkeypatch.setattr(reply_room, "_fits", lambda size: True)
    assert data_at_once() == 512 << 10
