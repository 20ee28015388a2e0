"""A disk of a tebibyte that nobody has: an NBD server whose content is worked out, night by night.

    big_disk.py SOCKET SIZE USED NIGHT

A piece of 1 MiB is used, then comes a hole, and so on. Each cluster of a piece says where it is, and in which night it
was last written; in each night one in a hundred is. Otherwise all pieces are alike, and compress to nearly nothing.
What is written to the disk is compared with what it holds, and not kept: a restore to it proves itself.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

from pybackup.formats import nbd_wire as wire

PIECE, CLUSTER = 1 << 20, 65536
CLUSTERS = PIECE // CLUSTER
STATUS_STEP = 1 << 30
"""Bytes that one answer tells the status of, at most."""
CONTEXT, HOLE_AND_ZERO = 1, 3
EINVAL, EIO = 22, 5
FLAGS = (
    wire.FLAG_HAS_FLAGS
    | wire.FLAG_SEND_FLUSH
    | wire.FLAG_SEND_TRIM
    | wire.FLAG_SEND_WRITE_ZEROES
    | wire.FLAG_SEND_FAST_ZERO
    | wire.FLAG_CAN_MULTI_CONN
)


class Disk:
    """What it holds. Fixed: size and stride in bytes, and the night, counted from 0."""

    def __init__(self, size: int, used: int, night: int) -> None:
        self.size, self._night = size, night
        self._stride = size // (used // PIECE) // CLUSTER * CLUSTER
        self._pattern = bytes(range(1, 129)) * (PIECE // 128)
        self._zeros = memoryview(bytes(wire.MAX_PAYLOAD))

    def _piece(self, number: int) -> bytearray:
        content = bytearray(self._pattern)
        written = [0] * CLUSTERS
        for night in range(1, self._night + 1):
            chosen = (number * 2654435761 + night * 40503001) % 2**32 * 100 >> 32
            if chosen < CLUSTERS:
                written[chosen] = night
        for step, night in enumerate(written):
            struct.pack_into(">QQ", content, step * CLUSTER, number * CLUSTERS + step + 1, night)
        return content

    def parts(self, offset: int, length: int) -> Iterator[memoryview]:
        """What a range holds, in parts."""
        end = offset + length
        while offset < end:
            number, at = divmod(offset, self._stride)
            if at < PIECE:
                part = memoryview(self._piece(number))[at : at + end - offset]
            else:
                part = self._zeros[: min(end - offset, self._stride - at)]
            yield part
            offset += len(part)

    def holds(self, offset: int, content: bytes) -> bool:
        """Whether that is what the disk holds."""
        view, at = memoryview(content), 0
        for part in self.parts(offset, len(content)):
            if view[at : at + len(part)] != part:
                return False
            at += len(part)
        return True

    def status(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(bytes, flags) of the extents of a range."""
        end = offset + min(length, STATUS_STEP)
        while offset < end:
            at = offset % self._stride
            edge, flags = (PIECE, 0) if at < PIECE else (self._stride, HOLE_AND_ZERO)
            step = min(edge - at, end - offset)
            yield step, flags
            offset += step


class Line:
    """A connection. Fixed: all."""

    def __init__(self, sock: socket.socket, disk: Disk) -> None:
        self._sock, self._disk = sock, disk
        self._input: BinaryIO = sock.makefile("rb", 1 << 20)

    def serve(self) -> None:
        """Until the client goes."""
        with self._sock, self._input:
            try:
                if self._negotiate():
                    while self._answer():
                        pass
            except (ConnectionError, struct.error):
                pass  # the client went without a word

    def _take(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self._input.read(form.size))

    def _negotiate(self) -> bool:
        self._sock.sendall(wire.GREETING.pack(wire.NBD_MAGIC, wire.OPTION_MAGIC, 3))
        self._take(wire.CLIENT_FLAGS)
        while True:
            _, option, length = self._take(wire.OPTION)
            self._input.read(length)
            if option == wire.OPT_STRUCTURED_REPLY:
                self._reply(option, wire.REP_ACK)
            elif option == wire.OPT_SET_META_CONTEXT:
                name = wire.LENGTH.pack(CONTEXT) + wire.BASE_ALLOCATION.encode()
                self._reply(option, wire.REP_META_CONTEXT, name)
                self._reply(option, wire.REP_ACK)
            elif option in (wire.OPT_GO, wire.OPT_INFO):
                told = wire.INFO_EXPORT_REPLY.pack(wire.INFO_EXPORT, self._disk.size, FLAGS)
                self._reply(option, wire.REP_INFO, told)
                self._reply(option, wire.REP_ACK)
                if option == wire.OPT_GO:
                    return True
            elif option == wire.OPT_ABORT:
                return False
            else:
                self._reply(option, wire.REP_ERR_UNSUP)

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._sock.sendall(wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

    def _answer(self) -> bool:
        _, _, command, cookie, offset, length = self._take(wire.REQUEST)
        if command == wire.CMD_DISC:
            return False
        if command == wire.CMD_READ:
            self._chunk(cookie, wire.CHUNK_OFFSET_DATA, struct.pack(">Q", offset), length)
            for part in self._disk.parts(offset, length):
                self._sock.sendall(part)
        elif command == wire.CMD_BLOCK_STATUS:
            extents = b"".join(struct.pack(">II", *one) for one in self._disk.status(offset, length))
            self._chunk(cookie, wire.CHUNK_BLOCK_STATUS, struct.pack(">I", CONTEXT) + extents)
        else:
            self._simple(cookie, self._changed(command, offset, length))
        return True

    def _changed(self, command: int, offset: int, length: int) -> int:
        """An error number, or 0."""
        if command == wire.CMD_WRITE:
            return 0 if self._disk.holds(offset, self._input.read(length)) else EIO
        return 0 if command in (wire.CMD_FLUSH, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES) else EINVAL

    def _chunk(self, cookie: int, kind: int, payload: bytes, more: int = 0) -> None:
        size = len(payload) + more
        self._sock.sendall(wire.CHUNK.pack(wire.CHUNK_MAGIC, wire.CHUNK_FLAG_DONE, kind, cookie, size) + payload)

    def _simple(self, cookie: int, error: int) -> None:
        self._sock.sendall(wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, cookie))


def main() -> None:
    """Serve for as long as the standard input is open."""
    path, disk = sys.argv[1], Disk(*map(int, sys.argv[2:5]))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    threading.Thread(target=_accept, args=(listener, disk), daemon=True).start()
    print(f"nbd+unix:///?socket={path}", flush=True)
    sys.stdin.read()


def _accept(listener: socket.socket, disk: Disk) -> None:
    while True:
        line = Line(listener.accept()[0], disk)
        threading.Thread(target=line.serve, daemon=True).start()


if __name__ == "__main__":
    main()
