"""The sink that encrypts: what comes out is one age file, in order, and nothing of a backup that failed is whole."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pyrage
import pytest
from encrypted import IDENTITY, HeldSink, encrypted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybackup.core.archive.encrypted_stream import Unsealed
from pybackup.core.errors import RequestError, TargetError
from pybackup.core.secrets.encrypting_sink import BATCH, EncryptingSink, Encryption
from pybackup.formats.age_header import MOST_RECIPIENTS, Stanza, parse_header
from pybackup.formats.age_keys import Passphrase, X25519Identity, X25519Recipient
from pybackup.formats.age_payload import CHUNK
from pybackup.formats.public_facts import KIND, MAX_BODY

PATTERN = bytes(range(251)) * (3 * BATCH // 251)
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, 2 * BATCH + CHUNK + 3]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [70_001, BATCH])
def test_others_open_it(size: int, piece: int) -> None:
    file = encrypted(PATTERN[:size], [Stanza("unknown", ("x",), b"anything")], piece)
    assert pyrage.decrypt(file, [pyrage.x25519.Identity.from_str(IDENTITY.secret_text())]) == PATTERN[:size]


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.integers(0, 3 * CHUNK), max_size=30))
def test_pieces_of_any_size_make_the_same(sizes: list[int]) -> None:
    async def write() -> HeldSink:
        inside = HeldSink()
        with ThreadPoolExecutor(2) as pool:
            sink = EncryptingSink(inside, Encryption([IDENTITY.recipient()]), [], pool)
            await sink.begin()
            at = 0
            for size in sizes:
                # What was given may be used again as soon as write() returns.
                buffer = bytearray(PATTERN[at : at + size])
                await sink.write([buffer])
                buffer[:] = bytes(len(buffer))
                at += size
            await sink.seal()
            await sink.commit()
        return inside

    inside = asyncio.run(write())
    opened = pyrage.decrypt(bytes(inside.content), [pyrage.x25519.Identity.from_str(IDENTITY.secret_text())])
    assert opened == PATTERN[: sum(sizes)]
    assert inside.calls == ["begin", "commit"]


@pytest.mark.parametrize("fails_at", range(1, 5))
def test_a_sink_that_fails_fails_all(fails_at: int) -> None:
    async def write() -> HeldSink:
        inside = HeldSink(fails_at)
        with ThreadPoolExecutor(2) as pool:
            sink = EncryptingSink(inside, Encryption([IDENTITY.recipient()]), [], pool)
            with pytest.raises(TargetError, match="full"):
                await sink.begin()
                for at in range(0, len(PATTERN), 100_000):
                    await sink.write([PATTERN[at : at + 100_000]])
                await sink.commit()
            await sink.abort()
        return inside

    assert asyncio.run(write()).calls == ["begin", "abort"]


def test_what_is_aborted_is_no_whole_file() -> None:
    async def write() -> bytes:
        inside = HeldSink()
        with ThreadPoolExecutor(2) as pool:
            sink = EncryptingSink(inside, Encryption([IDENTITY.recipient()]), [], pool)
            await sink.begin()
            for _ in range(20):
                await sink.write([PATTERN])
            await sink.abort()
        return bytes(inside.content)

    left = asyncio.run(write())
    assert len(left) > 10 * BATCH
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(left, [pyrage.x25519.Identity.from_str(IDENTITY.secret_text())])


def test_a_passphrase_stands_alone_whatever_is_told() -> None:
    header = Encryption([Passphrase(b"x", work=2)]).header(bytes(16), [Stanza("told", (), b"")])
    assert header.count(b"-> ") == 1


def test_a_recipient_with_whom_there_is_no_secret_is_refused() -> None:
    with pytest.raises(RequestError, match="nothing can be encrypted"):
        Encryption([X25519Recipient(bytes(32))]).check()


def test_two_files_have_nothing_in_common() -> None:
    one, other = encrypted(PATTERN[:CHUNK]), encrypted(PATTERN[:CHUNK])
    assert one[200:] != other[200:]
    assert Unsealed(lambda _: b"", "empty", None).read(5) == b""  # type: ignore[arg-type]


def test_no_header_is_written_that_nobody_could_read() -> None:
    """As many recipients as may be, and as much told as may be, are within what a reader takes."""
    recipients = [X25519Identity(number.to_bytes(32, "big")).recipient() for number in range(1, MOST_RECIPIENTS + 2)]
    most = Encryption(recipients[:MOST_RECIPIENTS])
    most.check()
    header = most.header(bytes(16), [Stanza(KIND, ("1",), bytes(MAX_BODY))])
    found = parse_header(header, is_all=True)
    assert found is not None and len(found.stanzas) == MOST_RECIPIENTS + 1
    with pytest.raises(RequestError, match="127 recipients at most"):
        Encryption(recipients).check()
