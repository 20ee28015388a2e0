"""Keys and headers of age: both programs that there are agree with ours, and a hostile header costs nothing."""

from __future__ import annotations

import os
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybackup.formats import bech32
from pybackup.formats.age_header import (
    MAX_HEADER,
    MOST_STANZAS,
    VERSION_LINE,
    Stanza,
    encode_header,
    hkdf,
    parse_header,
)
from pybackup.formats.age_keys import MOST_WORK, Passphrase, X25519Identity, X25519Recipient, file_key_of
from pybackup.formats.age_payload import CHUNK, NONCE_SIZE, SEALED, Layout, PayloadKey
from pybackup.formats.errors import FormatError, NotAnArchiveError
from pybackup.formats.public_facts import KIND, PublicFacts, facts_in

FILE_KEY = bytes(range(16))
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""However busy the machine is."""
TYPED = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=80)


def sealed(content: bytes, header: bytes, file_key: bytes = FILE_KEY) -> bytes:
    """A whole file, by the rules alone."""
    nonce = bytes(NONCE_SIZE)
    key = PayloadKey(file_key, nonce)
    ends = range(0, max(1, len(content)), CHUNK)
    chunks = [key.seal(at // CHUNK, content[at : at + CHUNK], is_last=at == ends[-1]) for at in ends]
    return header + nonce + b"".join(chunks)


def opened(file: bytes, identity: X25519Identity | Passphrase) -> bytes:
    header = parse_header(file, is_all=True)
    assert header is not None
    file_key = file_key_of(header, [identity])
    assert file_key is not None and header.is_proved_by(file_key)
    nonce = file[header.size : header.size + NONCE_SIZE]
    key, layout = PayloadKey(file_key, nonce), Layout.of(header.size, len(file))
    parts = []
    for number in range(layout.chunks):
        at, size = layout.range_of(number, 1)
        part = key.open(number, file[at : at + size], is_last=number == layout.chunks - 1)
        assert part is not None
        parts.append(part)
    content = b"".join(parts)
    assert len(content) == layout.size
    return content


@QUIET
@given(st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20), st.binary(max_size=100))
def test_bech32_reads_what_it_writes(word: str, content: bytes) -> None:
    text = bech32.encode(word, content)
    assert bech32.decode(text) == bech32.decode(text.upper()) == (word, content)


@QUIET
@given(st.binary(min_size=32, max_size=32), st.data())
def test_bech32_finds_every_typing_error(content: bytes, data: st.DataObject) -> None:
    text = bech32.encode("age", content)
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l"))
    wrong = text[:at] + letter + text[at + 1 :]
    if wrong != text:
        with pytest.raises(FormatError):
            bech32.decode(wrong)


@QUIET
@given(TYPED | st.text(max_size=80))
def test_no_text_is_a_key_by_accident(text: str) -> None:
    for kind in (X25519Identity, X25519Recipient):
        with pytest.raises(FormatError):
            kind.of(text)


def test_hkdf_is_that_of_the_rfc() -> None:
    """RFC 5869, test case 1, of which the first 32 bytes."""
    found = hkdf(bytes([0x0B] * 22), bytes(range(13)), bytes(range(0xF0, 0xFA)))
    assert found.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


def test_keys_are_the_same_to_others(tmp_path: Path, need: Callable[[str], None]) -> None:
    need("age-keygen")
    identity = X25519Identity.new()
    theirs = pyrage.x25519.Identity.from_str(identity.secret_text())
    assert str(theirs.to_public()) == str(identity.recipient())
    (tmp_path / "key").write_text(identity.secret_text())
    told = subprocess.run(["age-keygen", "-y", tmp_path / "key"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(identity.recipient())
    assert identity.secret_text() not in f"{identity!r} {identity} {identity.recipient()!r}"


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5])
def test_others_open_what_we_seal_and_we_what_they_do(size: int, tmp_path: Path, need: Callable[[str], None]) -> None:
    need("age")
    identity, other = X25519Identity.new(), X25519Identity.new()
    content = os.urandom(size)
    facts = PublicFacts(FILE_KEY, 5, (("scsi0", 1 << 40),)).stanza()
    stanzas = [other.recipient().wrap(FILE_KEY), identity.recipient().wrap(FILE_KEY), facts]
    ours = sealed(content, encode_header(stanzas, FILE_KEY))
    assert pyrage.decrypt(ours, [pyrage.x25519.Identity.from_str(identity.secret_text())]) == content
    (tmp_path / "key").write_text(identity.secret_text())
    run = subprocess.run(["age", "-d", "-i", tmp_path / "key"], input=ours, capture_output=True, check=True)
    assert run.stdout == content
    theirs = subprocess.run(
        ["age", "-r", str(other.recipient()), "-r", str(identity.recipient())],
        input=content,
        capture_output=True,
        check=True,
    )
    assert opened(theirs.stdout, identity) == content
    of_rust = pyrage.encrypt(content, [pyrage.x25519.Recipient.from_str(str(identity.recipient()))])
    assert opened(of_rust, identity) == content


def test_passphrases_are_the_same_to_others() -> None:
    ours = sealed(b"content", encode_header([Passphrase(b"a passphrase", work=10).wrap(FILE_KEY)], FILE_KEY))
    assert pyrage.passphrase.decrypt(ours, "a passphrase") == b"content"
    header = parse_header(ours, is_all=True)
    assert header is not None
    assert file_key_of(header, [Passphrase(b"another")]) is None


def test_an_identity_of_others_opens_nothing() -> None:
    header = parse_header(encode_header([X25519Identity.new().recipient().wrap(FILE_KEY)], FILE_KEY), is_all=True)
    assert header is not None
    assert file_key_of(header, [X25519Identity.new(), Passphrase(b"x")]) is None


STANZA = Stanza("X25519", ("AAAA",), bytes(32))


WORDS = st.lists(st.text("!~a+/=9-", min_size=1, max_size=9), min_size=1, max_size=4)


@QUIET
@given(st.lists(st.tuples(WORDS, st.binary(max_size=200)), min_size=1, max_size=5), st.integers(0, 60))
def test_headers_are_read_as_they_are_written(told: list[tuple[list[str], bytes]], cut: int) -> None:
    stanzas = [Stanza(kind, tuple(arguments), body) for (kind, *arguments), body in told]
    text = encode_header(stanzas, FILE_KEY)
    found = parse_header(text + b"payload", is_all=False)
    assert found is not None and list(found.stanzas) == stanzas
    assert found.size == len(text) and found.is_proved_by(FILE_KEY) and not found.is_proved_by(bytes(16))
    assert parse_header(text[: -1 - cut], is_all=False) is None
    with pytest.raises(FormatError):
        parse_header(text[: -1 - cut], is_all=True)


@QUIET
@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_an_error(content: bytes) -> None:
    with pytest.raises(FormatError):
        parse_header(VERSION_LINE + content, is_all=True)


@pytest.mark.parametrize(
    "hostile",
    [
        VERSION_LINE + STANZA.encode() * 4000,
        VERSION_LINE + STANZA.encode() * (MOST_STANZAS + 1),
        VERSION_LINE + b"-> " + b"a" * (4 << 20),
        VERSION_LINE + b"-> a " + b"b " * (2 << 20) + b"\n",
        VERSION_LINE + b"-> a\n" + (b"A" * 64 + b"\n") * 60_000,
        VERSION_LINE + b"-> a\n" + b"A" * (4 << 20),
        VERSION_LINE + b"-> a\n\n--- " + b"A" * (4 << 20),
        VERSION_LINE * 100_000,
    ],
    ids=range(8),
)
def test_hostile_headers_are_refused_before_they_take_memory(hostile: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            parse_header(hostile, is_all=True)
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_HEADER
    finally:
        tracemalloc.stop()


def test_a_hostile_work_factor_is_refused_before_it_costs_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("hashlib.scrypt")
    for work in (str(MOST_WORK + 1), "63", "99", "999", "0", "-1", "+9", "0x9", "9 9"):
        stanza = Stanza("scrypt", ("A" * 22, *work.split(" ")), bytes(32))
        header = parse_header(encode_header([stanza], FILE_KEY), is_all=True)
        assert header is not None
        with pytest.raises(FormatError):
            file_key_of(header, [Passphrase(b"x")])


def test_another_version_is_told_as_one() -> None:
    with pytest.raises(NotAnArchiveError, match="another version"):
        parse_header(b"age-encryption.org/v2\n-> a\n\n--- x\n", is_all=True)
    with pytest.raises(NotAnArchiveError, match="no age file"):
        parse_header(b"anything\n", is_all=True)


NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
DRIVES = st.lists(st.tuples(NAMES, st.integers(0, 1 << 60)), max_size=5)


@QUIET
@given(st.binary(min_size=16, max_size=16), st.integers(0, 1 << 40), DRIVES, st.booleans())
def test_public_facts_are_read_as_they_are_written(
    uuid: bytes, created: int, drives: list[tuple[str, int]], is_delta: bool
) -> None:
    facts = PublicFacts(uuid, created, tuple(drives), (uuid, uuid[::-1]) if is_delta else None)
    assert facts_in([STANZA, facts.stanza()]) == facts
    assert facts_in([STANZA]) is None


NO_ID, AN_ID = b'{"uuid":"00",', b'{"uuid":"' + b"0" * 32 + b'",'
NO_FACTS = [
    *(b"", b"[]", b"null", b"{}", b"[" * 90_000, b"\xff\xff", b"1" * 98_000),
    NO_ID + b'"created":1,"drives":[]}',
    AN_ID + b'"created":-1,"drives":[]}',
    AN_ID + b'"created":1,"drives":[1]}',
    AN_ID + b'"created":1,"drives":[],"parent":["00"]}',
    AN_ID + b'"created":1,"drives":[],"parent":[]}',
    AN_ID + b'"created":1,"drives":[],"parent":{}}',
    b'{"uuid":"' + b"00 " * 10 + b'00","created":1,"drives":[]}',
    b'{"uuid":"' + b"AB" * 16 + b'","created":1,"drives":[]}',
]


@pytest.mark.parametrize("body", NO_FACTS, ids=range(len(NO_FACTS)))
def test_public_facts_that_make_no_sense_are_refused(body: bytes) -> None:
    with pytest.raises(FormatError):
        facts_in([Stanza(KIND, ("1",), body)])


def test_layouts_have_the_size_of_what_was_sealed() -> None:
    for size in (0, 1, CHUNK, CHUNK + 1, 5 * CHUNK):
        file = sealed(bytes(size), b"h" * 100)
        layout = Layout.of(100, len(file))
        assert layout.size == size
        assert layout.place(1) == 100 + NONCE_SIZE + SEALED
    for cut in (100, 116, 120, 116 + 15, 116 + SEALED + 16):
        with pytest.raises(FormatError, match="cut short"):
            Layout.of(100, cut)
