"""A proxy in front of a real HTTP server, which fails the requests that it is told to fail."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
ANSWERS = {"500": (500, INTERNAL), "503": (503, SLOW_DOWN), "403": (403, DENIED), "error200": (200, INTERNAL)}

PART = r"PUT .*partNumber="
CREATE = r"POST .*\?uploads"
COMPLETE = r"POST .*\?uploadId="
ABORT = r"DELETE .*uploadId="
RANGE = r"GET /"
HEAD = r"HEAD /"


class Seen(NamedTuple):
    """A request, and how many bytes of body came with it and were answered."""

    what: str
    sent: int
    answered: int


@dataclass
class Fault:
    """Fail requests whose method and path match, ``times`` of them from the ``after``-th on.

    The kinds: an answer of ANSWERS; ``reset`` the connection instead of passing the request on; ``lose`` the answer;
    ``truncate`` it; ``stall``: take the request, never answer; ``stall-body``: do not even take its body; ``alter``
    the request's body by ``change``, or just call it.
    """

    match: str
    kind: str
    times: int = 1
    after: int = 0
    change: Callable[[bytes], bytes] = field(default=lambda body: body)


class FaultyProxy:
    """Fixed: where the requests go. Changing: the faults that are left, and the requests seen so far."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._lock = threading.Lock()
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.closing = threading.Event()

        class Handler(_Handler):
            proxy = self

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fault_of(self, what: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if re.match(fault.match, what):
                    if fault.after:
                        fault.after -= 1
                    elif fault.times:
                        fault.times -= 1
                        return fault
        return None

    def note(self, what: str, sent: int, answered: int) -> None:
        with self._lock:
            self.seen.append(Seen(what, sent, answered))

    def count(self, match: str) -> int:
        return sum(1 for one in list(self.seen) if re.match(match, one.what))

    def fetched(self) -> int:
        """Bytes of all answers to GET."""
        return sum(one.answered for one in list(self.seen) if one.what.startswith("GET"))

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultyProxy]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are interrupted close their connections; that is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultyProxy

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _handle(self) -> None:
        what = f"{self.command} {self.path}"
        fault = self.proxy.fault_of(what)
        kind = fault.kind if fault else ""
        if kind == "stall-body":
            self._stall(what)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if kind == "reset":
            self._reset(what)
        elif kind == "stall":
            self._stall(what)
        elif kind in ANSWERS:
            self._answer(what, *ANSWERS[kind])
        else:
            self._pass_on(what, fault.change(body) if fault else body, kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def _pass_on(self, what: str, body: bytes, kind: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy._target, timeout=60)
        try:
            headers = {key: value for key, value in self.headers.items() if key.lower() not in ("expect", "connection")}
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body=body or None, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if kind == "lose":
            self._reset(what)
            return
        self.send_response_only(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("content-length", "connection", "transfer-encoding", "accept-ranges"):
                self.send_header(key, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        part = content[: len(content) // 2] if kind == "truncate" else content
        self.wfile.write(part)
        self.proxy.note(what, len(body), len(part))
        if kind == "truncate":
            self.close_connection = True

    def _answer(self, what: str, status: int, content: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.proxy.note(what, 0, 0)

    def _reset(self, what: str) -> None:
        self.proxy.note(what, 0, 0)
        self.close_connection = True
        # Lingering for no time at all makes close() a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _stall(self, what: str) -> None:
        self.proxy.note(what, 0, 0)
        self.close_connection = True
        self.proxy.closing.wait(60)
