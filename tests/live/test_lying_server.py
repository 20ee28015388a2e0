"""What answers at a control socket is not believed: a stream of clusters that cannot be makes no archive."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live.processes import call

from pybackup.formats.cluster_wire import DATA, END, SAMPLE, UNCHANGED, ZEROS, Message

SIZE = 3 * 65_536 + 512
STATUS = {"ok": True, "drives": [{"name": "disk", "size": SIZE}], "job": None, "last": None}


def data(first: int, clusters: int, length: int, drive_id: int = 1) -> bytes:
    return Message(DATA, drive_id, first, clusters, length).encode() + b"x" * length


def zeros(first: int, clusters: int, drive_id: int = 1) -> bytes:
    return Message(ZEROS, drive_id, first, clusters, 0).encode()


def end(text: str = '{"unreadable": []}') -> bytes:
    return Message(END, 0, 0, 0, len(text)).encode() + text.encode()


ALL = data(0, 2, 2 * 65_536) + zeros(2, 1) + data(3, 1, 512)
STREAMS = {
    "nothing": b"",
    "no magic": b"?" * 100,
    "a kind that is not known": Message(9, 1, 0, 1, 0).encode(),
    "too long": Message(DATA, 1, 0, 1, 1 << 40).encode(),
    "another drive": data(0, 1, 65_536, drive_id=2),
    "behind the end": zeros(4, 1),
    "far behind the end": zeros(0, 0xFFFFFFFF),
    "no clusters": data(0, 0, 0),
    "data without data": data(0, 1, 0),
    "data cut short": data(0, 2, 65_536),
    "more data than disk": data(3, 1, 65_536),
    "zeros with data": Message(ZEROS, 1, 0, 1, 65_536).encode() + bytes(65_536),
    "unchanged without a parent": Message(UNCHANGED, 1, 0, 1, 0).encode(),
    "a sample without a parent": Message(SAMPLE, 1, 0, 1, 65_536).encode() + bytes(65_536),
    "the same cluster again": ALL + zeros(1, 1) + end(),
    "an end too early": data(0, 2, 2 * 65_536) + end(),
    "cut off within a message": ALL[:-100],
    "an end that says nothing": ALL + end("[]"),
    "an end that is no JSON": ALL + end("{"),
}


@contextmanager
def answering(path: Path, stream: bytes) -> Iterator[None]:
    """Answers a request for the status and one for a backup."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_answer, args=(listener, stream))
        thread.start()
        yield
        thread.join()


def _answer(listener: socket.socket, stream: bytes) -> None:
    client, _ = listener.accept()
    with client:
        client.recv(65_536)
        client.sendall(json.dumps(STATUS).encode() + b"\n")
    client, _ = listener.accept()
    with client:
        _, (fd,), _, _ = socket.recv_fds(client, 65_536, 1)
        with socket.socket(fileno=fd) as clusters:
            try:
                clusters.sendall(stream)
                clusters.shutdown(socket.SHUT_WR)
                client.sendall(b'{"ok": true}\n')
                clusters.recv(1)
            except OSError:
                return


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_that_cannot_be_makes_no_archive(tmp_path: Path, stream: bytes) -> None:
    with answering(tmp_path / "control", stream):
        call("run", f"serve:{tmp_path / 'control'}", str(tmp_path / "out.vma"), code=3)
    assert [path.name for path in tmp_path.iterdir()] == ["control"]


def test_a_server_that_hangs_up_after_the_end_has_given_up(tmp_path: Path) -> None:
    """Until the archive is complete: cancelled, or stopped. Only the acknowledgement ends a backup well."""
    stream = data(3, 1, 512) + zeros(2, 1) + data(0, 2, 2 * 65_536) + end()
    with answering(tmp_path / "control", stream):
        said = call("run", f"serve:{tmp_path / 'control'}", str(tmp_path / "out.vma"), code=3).stderr
    assert "ended the backup too early" in said
    assert not (tmp_path / "out.vma").exists()
