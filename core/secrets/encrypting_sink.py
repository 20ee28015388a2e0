"""A sink that encrypts what goes to another, in threads: a whole age file, whatever stops before the end is none.

Memory is bounded: MOST_AHEAD batches of a MiB are under way, each once as it came and once as it goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pybackup.core.device import Buffer
from pybackup.core.errors import RequestError
from pybackup.core.sinks import Sink
from pybackup.core.tasks import end
from pybackup.formats.age_header import FILE_KEY_SIZE, MOST_RECIPIENTS, Stanza, encode_header
from pybackup.formats.age_keys import Passphrase, Recipient
from pybackup.formats.age_payload import CHUNK, NONCE_SIZE, SEALED, TAG_SIZE, PayloadKey
from pybackup.formats.errors import FormatError

from .keys import missing_package

BATCH = 16 * CHUNK
"""Bytes that are encrypted at once."""
MOST_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Encryption:
    """For whom an archive is encrypted. ``tells_facts``: what anybody may know of it stands in the header.

    Either some recipients, or one passphrase, with which nothing else stands in a header.
    """

    recipients: Sequence[Recipient]
    tells_facts: bool = True

    @property
    def is_by_passphrase(self) -> bool:
        """Whether a passphrase opens it."""
        return any(isinstance(one, Passphrase) for one in self.recipients)

    def check(self) -> None:
        """Find out now whether anything can be encrypted (RequestError)."""
        if len(self.recipients) > MOST_RECIPIENTS:
            raise RequestError(
                f"an archive can be encrypted for {MOST_RECIPIENTS} recipients at most: nobody could read it who, as"
                " pybackup, takes no longer header"
            )
        try:
            PayloadKey(bytes(FILE_KEY_SIZE), bytes(NONCE_SIZE))
            if not self.is_by_passphrase:
                self.header(bytes(FILE_KEY_SIZE), [])
        except ImportError as error:
            raise missing_package(error) from None
        except FormatError as error:
            raise RequestError(f"nothing can be encrypted for one of the recipients: {error.what}") from None

    def header(self, file_key: bytes, told: Sequence[Stanza]) -> bytes:
        """The header of a file; ``told``: what else stands in it, but with a passphrase."""
        stanzas = [one.wrap(file_key) for one in self.recipients]
        return encode_header(stanzas if self.is_by_passphrase else [*stanzas, *told], file_key)


def mark_of(header: bytes) -> bytes:
    """By what an encrypted file is known: its header, with the nonce behind it, which no other file has; 16 bytes."""
    return hashlib.sha256(header).digest()[:16]


class EncryptingSink:
    """Encrypts what it is given, and passes it on.

    Fixed: the other sink, for whom, the pool. Changing, in the event loop: the open batch, and those under way in
    order; ``_number``: the chunks in front of the open batch; from begin() on ``size``, bytes that were passed on, and
    ``mark``, by which the file is known.
    """

    def __init__(self, sink: Sink, encryption: Encryption, told: Sequence[Stanza], pool: ThreadPoolExecutor) -> None:
        """``told``: stanzas for everybody."""
        self._sink, self._encryption, self._told, self._pool = sink, encryption, told, pool
        self._file_key = os.urandom(FILE_KEY_SIZE)
        self._nonce = os.urandom(NONCE_SIZE)
        self._key = PayloadKey(self._file_key, self._nonce)
        self._open = _Batch()
        self._used = self._number = 0
        self._free: list[_Batch] = []
        self._under_way: deque[asyncio.Future[tuple[_Batch, int]]] = deque()
        self._is_sealed = False
        self.mark = b""
        self.size = 0

    @property
    def name(self) -> str:
        """The other sink's."""
        return self._sink.name

    async def begin(self) -> None:
        """Open the other sink, and write the header."""
        await self._sink.begin()
        loop = asyncio.get_running_loop()
        header = await loop.run_in_executor(self._pool, self._encryption.header, self._file_key, self._told)
        self.mark, self.size = mark_of(header + self._nonce), len(header) + NONCE_SIZE
        await self._sink.write([header + self._nonce])

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers; waits while too much is under way."""
        for buffer in buffers:
            rest = memoryview(buffer)
            while len(rest):
                if self._used == BATCH:
                    await self._pass_on(is_end=False)
                part = rest[: BATCH - self._used]
                self._open.content[self._used : self._used + len(part)] = part
                self._used += len(part)
                rest = rest[len(part) :]

    async def _pass_on(self, *, is_end: bool) -> None:
        """Have the open batch encrypted, and open another. A full one waits until it is known whether it is the end."""
        await self._settle(MOST_AHEAD - 1)
        batch, used, number = self._open, self._used, self._number
        self._open = self._free.pop() if self._free else _Batch()
        self._used, self._number = 0, number + -(-used // CHUNK)
        sealing = self._pool.submit(_seal, self._key, number, batch, used, is_end)
        self._under_way.append(asyncio.wrap_future(sealing))

    async def _settle(self, most: int) -> None:
        while len(self._under_way) > most:
            batch, size = await self._under_way[0]
            self._under_way.popleft()
            await self._sink.write([memoryview(batch.sealed)[:size]])
            self.size += size
            self._free.append(batch)

    async def seal(self) -> None:
        """That was all: write the rest, and the end that says so."""
        if not self._is_sealed:
            self._is_sealed = True
            await self._pass_on(is_end=True)
            await self._settle(0)

    async def commit(self) -> None:
        """Seal it, and commit the other sink."""
        await self.seal()
        await self._sink.commit()

    async def abort(self) -> None:
        """Drop what is under way, and abort the other sink."""
        waiting, self._under_way = list(self._under_way), deque()
        await end(waiting)
        await self._sink.abort()


class _Batch:
    """Memory for chunks in a row, used again and again: as they came, and as they go."""

    def __init__(self) -> None:
        self.content, self.sealed = bytearray(BATCH), bytearray(BATCH // CHUNK * SEALED)


def _seal(key: PayloadKey, number: int, batch: _Batch, used: int, is_end: bool) -> tuple[_Batch, int]:
    """Encrypt a batch, ``used`` bytes of which are there; (it, the bytes that it has become)."""
    content, sealed = memoryview(batch.content), memoryview(batch.sealed)
    size = 0
    for at in range(0, max(1, used), CHUNK):
        end = min(at + CHUNK, used)
        chunk = sealed[size : size + end - at + TAG_SIZE]
        key.seal_into(number + at // CHUNK, content[at:end], chunk, is_last=is_end and end == used)
        size += len(chunk)
    return batch, size
