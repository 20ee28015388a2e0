"""Keys and encrypted archives for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybackup.core.device import Buffer
from pybackup.core.errors import TargetError
from pybackup.core.secrets.encrypting_sink import EncryptingSink, Encryption
from pybackup.formats.age_header import Stanza
from pybackup.formats.age_keys import X25519Identity

IDENTITY = X25519Identity(bytes(range(32)))
"""One for all tests, for it costs nothing to know it."""


def key_file(folder: Path) -> Path:
    """A file with that identity."""
    path = folder / "key.txt"
    path.write_text(f"# a remark\n\n{IDENTITY.secret_text()}\n")
    return path


class HeldSink:
    """Keeps what it is given. ``fails_at``: the write that fails, counted from 1."""

    name = "held"

    def __init__(self, fails_at: int = 0) -> None:
        self.content = bytearray()
        self.calls: list[str] = []
        self._left = fails_at

    async def begin(self) -> None:
        self.calls.append("begin")

    async def write(self, buffers: Sequence[Buffer]) -> None:
        self._left -= 1
        if not self._left:
            raise TargetError("the sink is full")
        for buffer in buffers:
            self.content += buffer

    async def commit(self) -> None:
        self.calls.append("commit")

    async def abort(self) -> None:
        self.calls.append("abort")


def encrypted(content: bytes, told: Sequence[Stanza] = (), piece: int = 100_000) -> bytes:
    """An age file for the recipient of IDENTITY, as our sink writes it."""

    async def write() -> bytes:
        inside = HeldSink()
        with ThreadPoolExecutor(2) as pool:
            sink = EncryptingSink(inside, Encryption([IDENTITY.recipient()]), told, pool)
            await sink.begin()
            await sink.write([content[at : at + piece] for at in range(0, len(content), piece)])
            await sink.commit()
        return bytes(inside.content)

    return asyncio.run(write())
