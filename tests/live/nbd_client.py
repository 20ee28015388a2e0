"""A guest's connection to a server, one request at a time, for threads and for SQLite's callbacks."""

from __future__ import annotations

import os
import socket
from itertools import count
from typing import Any

from pybackup.formats import nbd_client_wire as client
from pybackup.formats import nbd_wire as wire


class Nbd:
    """A connection to one export; a request that the server refuses is an OSError."""

    def __init__(self, path: str, export: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.connect(path)
        self._cookies = count(1)
        flags = client.decode_greeting(self._take(wire.GREETING.size))
        self._sock.sendall(client.encode_client_flags(flags) + client.encode_go(export))
        self.size = self.flags = 0
        while (reply := client.decode_option_reply(self._take(wire.OPTION_REPLY.size))).kind != wire.REP_ACK:
            data = self._take(reply.length)
            assert reply.kind == wire.REP_INFO, data
            if info := client.decode_info_export(data):
                self.size, self.flags = info

    def write(self, offset: int, data: bytes, fua: bool = False) -> None:
        self._ask(wire.CMD_WRITE, offset, len(data), wire.CMD_FLAG_FUA if fua else 0, data)

    def zero(self, offset: int, length: int) -> None:
        self._ask(wire.CMD_WRITE_ZEROES, offset, length)

    def trim(self, offset: int, length: int) -> None:
        self._ask(wire.CMD_TRIM, offset, length)

    def read(self, offset: int, length: int) -> bytes:
        return self._ask(wire.CMD_READ, offset, length)

    def flush(self) -> None:
        self._ask(wire.CMD_FLUSH)

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Nbd:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _ask(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> bytes:
        cookie = next(self._cookies)
        self._sock.sendall(client.encode_request(command, cookie, offset, length, flags) + data)
        reply = client.decode_simple_reply(self._take(wire.SIMPLE_REPLY.size))
        assert reply.cookie == cookie
        if reply.error:
            raise OSError(reply.error, os.strerror(reply.error))
        return self._take(length) if command == wire.CMD_READ else b""

    def _take(self, size: int) -> bytes:
        taken = bytearray()
        while len(taken) < size:
            part = self._sock.recv(size - len(taken))
            if not part:
                raise ConnectionResetError("the NBD server has gone")
            taken += part
        return bytes(taken)
