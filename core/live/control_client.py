"""The other end of a control socket: asks a running server."""

from __future__ import annotations

import json
import socket
from typing import Any

from pybackup.core.errors import BusyError, ExitCode, PybackupError, SourceError

_MAX_LINE = 64 << 20


class RemoteError(PybackupError):
    """A failure that the server reported, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def connect(path: str) -> socket.socket:
    """Connect to a control socket (SourceError)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        # Python's own check of the path's length has no errno.
        raise SourceError(f"cannot reach a server at {path}: {error.strerror or error}") from error
    return sock


def ask(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Send one request and return the answer (RemoteError where it says no, SourceError where there is none)."""
    with connect(path) as sock:
        try:
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                line = lines.readline(_MAX_LINE)
        except OSError as error:
            raise SourceError(f"the server at {path} does not answer: {error.strerror}") from error
    return checked(parse(line, path))


def parse(line: bytes, path: str) -> dict[str, Any]:
    """The JSON object on a line that a server sent (SourceError)."""
    if not line.endswith(b"\n"):
        raise SourceError(f"the server at {path} ended the connection")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise SourceError(f"what answers at {path} is not a pybackup server")
    return message


def checked(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, or the failure that it reports."""
    if answer.get("ok") is True:
        return answer
    code = answer.get("exit_code")
    message = str(answer.get("error", "the server refused"))
    if code == ExitCode.BUSY:
        raise BusyError(message)
    raise RemoteError(message, code if isinstance(code, int) and 0 < code < 256 else 1)
