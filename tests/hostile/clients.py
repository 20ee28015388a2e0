"""Clients that mean no good, or are broken: what they send to a server is drawn at random."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable

from pybackup.formats import nbd_client_wire as client
from pybackup.formats import nbd_wire as wire

LONGEST = 0.3
"""Seconds that one of them stays and does nothing."""
HUGE = (0, 1, 511, 65_536, (32 << 20) + 1, 0x7FFFFFFF, 0xFFFFFFFF)
OFFSETS = (0, 1, 4095, 1 << 20, 1 << 31, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)


class HostileClients(threading.Thread):
    """One after the other, until stopped. ``spared``: an export to which they may send nothing that changes it.

    Changing: how many there were.
    """

    def __init__(self, seed: int, path: str, spared: str, other: str) -> None:
        super().__init__()
        self._draw, self._path, self._spared, self._other = random.Random(seed), path, spared, other
        self._stopping = threading.Event()
        self.count = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            # A server that cuts them off is right to do so.
            with contextlib.suppress(OSError, EOFError):
                self._play()
            self.count += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def _play(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(self._path)
            if self._draw.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._draw.choice(_ACTS)(self, sock)

    # -- the handshake --

    def _garbage(self, sock: socket.socket) -> None:
        sock.sendall(self._draw.randbytes(self._draw.choice([1, 4, 20, 5000, 200_000])))
        self._linger(sock)

    def _silence(self, sock: socket.socket) -> None:
        self._linger(sock)

    def _greet(self, sock: socket.socket) -> None:
        flags = client.decode_greeting(_take(sock, wire.GREETING.size))
        sock.sendall(client.encode_client_flags(flags))

    def _part_of_a_handshake(self, sock: socket.socket) -> None:
        whole = client.encode_client_flags(3) + self._option()
        sock.sendall(whole[: self._draw.randrange(len(whole))])
        self._linger(sock)

    def _wild_options(self, sock: socket.socket) -> None:
        self._greet(sock)
        for _ in range(self._draw.choice([1, 5, 500])):
            sock.sendall(self._option())
        self._linger(sock)

    def _option(self) -> bytes:
        draw = self._draw
        option = draw.choice([*range(12), 1 << 31, 0xFFFFFFFF])
        data = draw.choice(
            [
                b"",
                draw.randbytes(draw.randrange(100)),
                client.encode_go(draw.choice([self._spared, "no such export", "x" * 5000, "\0"]))[wire.OPTION.size :],
                client.encode_meta_context(self._spared, ["base:allocation", "q" * 4096] * 20)[wire.OPTION.size :],
                struct.pack(">I", 0xFFFFFFFF) + b"name",
            ]
        )
        length = draw.choice([len(data)] * 6 + list(HUGE))
        magic = draw.choice([wire.OPTION_MAGIC] * 9 + [0])
        return wire.OPTION.pack(magic, option, length) + data

    # -- transmission --

    def _enter(self, sock: socket.socket, export: str) -> None:
        """Choose an export as a good client does, at times with structured replies and block status."""
        self._greet(sock)
        if self._draw.random() < 0.7:
            sock.sendall(client.encode_option(wire.OPT_STRUCTURED_REPLY))
            _until_ack(sock)
            sock.sendall(client.encode_meta_context(export, [wire.BASE_ALLOCATION]))
            _until_ack(sock)
        sock.sendall(client.encode_go(export))
        _until_ack(sock)

    def _any(self) -> str:
        return self._draw.choice([self._spared, self._other])

    def _half_a_request(self, sock: socket.socket) -> None:
        self._enter(sock, self._any())
        whole = client.encode_request(wire.CMD_WRITE, 1, 0, 1 << 20, 0) + bytes(1 << 20)
        sock.sendall(whole[: self._draw.choice([1, 27, 28, 100, 70_000, (1 << 20) - 1])])
        self._linger(sock)

    def _wild_requests(self, sock: socket.socket) -> None:
        """Nothing that is right by chance: the offset or the length is not."""
        self._enter(sock, self._any())
        draw = self._draw
        for _ in range(draw.choice([1, 20, 300])):
            command = draw.choice([*range(12), 255, 0xFFFF])
            place = draw.choice([*((offset, 1 << 30) for offset in OFFSETS), *(((1 << 64) - 1, one) for one in HUGE)])
            flags = draw.choice([0, 0, draw.randrange(1 << 16)])
            magic = draw.choice([wire.REQUEST_MAGIC] * 20 + [0x12345678])
            sock.sendall(wire.REQUEST.pack(magic, flags, command, draw.randrange(1 << 64), *place))
        self._linger(sock)

    def _writes(self, sock: socket.socket) -> None:
        """Right ones, of a disk that nobody else minds; their replies are not read."""
        self._enter(sock, self._other)
        draw = self._draw
        for number in range(draw.choice([1, 50, 400])):
            command = draw.choice([wire.CMD_WRITE, wire.CMD_WRITE_ZEROES, wire.CMD_TRIM, wire.CMD_FLUSH])
            length = 0 if command == wire.CMD_FLUSH else draw.choice([512, 4096, 70_000])
            offset = 0 if command == wire.CMD_FLUSH else draw.randrange(1 << 20)
            data = bytes([number % 256]) * length if command == wire.CMD_WRITE else b""
            sock.sendall(client.encode_request(command, number, offset, length, draw.randrange(2)) + data)
        self._linger(sock)

    def _reads_that_nobody_takes(self, sock: socket.socket) -> None:
        self._enter(sock, self._any())
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for number in range(self._draw.choice([10, 2000])):
                sock.sendall(client.encode_request(wire.CMD_READ, number, 0, 1 << 20))
        self._linger(sock)

    def _flood(self, sock: socket.socket) -> None:
        """Of cheap requests, half of whose replies are read."""
        self._enter(sock, self._any())
        command = self._draw.choice([wire.CMD_BLOCK_STATUS, wire.CMD_FLUSH, wire.CMD_READ, wire.CMD_CACHE])
        length = 0 if command == wire.CMD_FLUSH else self._draw.choice([1, 4096, 1 << 20])
        one = client.encode_request(command, 7, 0, length)
        sock.setblocking(False)
        for _ in range(self._draw.choice([3, 30])):
            with contextlib.suppress(BlockingIOError):
                sock.sendall(one * 200)
            with contextlib.suppress(BlockingIOError):
                sock.recv(1 << 16)
        self._linger(sock)

    def _leave_in_order(self, sock: socket.socket) -> None:
        self._enter(sock, self._any())
        sock.sendall(client.encode_request(wire.CMD_DISC, 1, 0, 0))
        self._linger(sock)

    def _linger(self, sock: socket.socket) -> None:
        """Stay a while, and perhaps read something, before the connection ends."""
        if self._draw.random() < 0.5:
            return
        sock.settimeout(self._draw.random() * LONGEST)
        with contextlib.suppress(TimeoutError):
            if self._draw.random() < 0.5:
                sock.recv(self._draw.choice([1, 100_000]))
            else:
                time.sleep(self._draw.random() * LONGEST)  # what it does is nothing


_ACTS: tuple[Callable[[HostileClients, socket.socket], None], ...] = (
    HostileClients._garbage,
    HostileClients._silence,
    HostileClients._part_of_a_handshake,
    HostileClients._wild_options,
    HostileClients._half_a_request,
    HostileClients._wild_requests,
    HostileClients._writes,
    HostileClients._reads_that_nobody_takes,
    HostileClients._flood,
    HostileClients._leave_in_order,
)


def _take(sock: socket.socket, size: int) -> bytes:
    taken = bytearray()
    while len(taken) < size:
        if not (part := sock.recv(size - len(taken))):
            raise EOFError
        taken += part
    return bytes(taken)


def _until_ack(sock: socket.socket) -> None:
    while True:
        reply = client.decode_option_reply(_take(sock, wire.OPTION_REPLY.size))
        _take(sock, reply.length)
        if reply.kind == wire.REP_ACK or reply.kind & wire.REP_ERROR:
            return
