"""Files of keys: what is read, what is refused, and that no sentence shows a secret."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from encrypted import IDENTITY, key_file

from pybackup.core.errors import NoKeyError, PybackupError, RequestError, TargetError
from pybackup.core.secrets.key_files import (
    read_identities,
    read_passphrase,
    read_recipients,
    recipient_of,
    write_identity,
)
from pybackup.core.secrets.keys import Keys
from pybackup.formats.age_header import encode_header, parse_header
from pybackup.formats.age_keys import Passphrase
from pybackup.formats.bech32 import encode

RECIPIENT = str(IDENTITY.recipient())
SECRET = IDENTITY.secret_text()


def test_what_keygen_writes_is_read(tmp_path: Path) -> None:
    (identity,) = read_identities(str(key_file(tmp_path)))
    assert identity.recipient() == IDENTITY.recipient()
    (tmp_path / "recipients").write_text(f"# who\n{RECIPIENT}\n\n  {RECIPIENT}\r\n")
    assert read_recipients(str(tmp_path / "recipients")) == [IDENTITY.recipient()] * 2
    assert recipient_of(RECIPIENT) == IDENTITY.recipient()


NO_IDENTITIES = {
    "": "no key in it",
    "# nothing\n": "no key in it",
    RECIPIENT: "line 1 .* is a recipient",
    f"\n{SECRET[:-1]}": "line 2 .* checksum",
    f"{SECRET[:20]}{'Q' if SECRET[20] != 'Q' else 'P'}{SECRET[21:]}": "typing error",
    SECRET.lower(): "another kind",
    "AGE-PLUGIN-YUBIKEY-1QQQQQQ": "plugin",
    "AGE-SECRET-KEY-PQ-1QQQQQQ": "post-quantum",
    "-----BEGIN OPENSSH PRIVATE KEY-----": "SSH",
    "age-encryption.org/v1\n-> X25519 x\n": "itself encrypted",
    f"{SECRET}\n" * 65: "more than 64",
    "#" * 300_000: "too large",
    "\x00\xff binary": "no key of ours",
}


@pytest.mark.parametrize("content", NO_IDENTITIES, ids=range(len(NO_IDENTITIES)))
def test_no_identities(content: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    with pytest.raises(NoKeyError, match=NO_IDENTITIES[content]) as raised:
        read_identities(str(path))
    assert SECRET[16:30] not in str(raised.value)


NO_RECIPIENTS = {
    SECRET: "is an identity, which is secret",
    RECIPIENT[:-2]: "checksum",
    encode("age1yubikey", bytes(33)): "plugin",
    "age1pq1qqqqqq": "post-quantum",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me": "key of SSH",
    encode("age", bytes(31)): "wrong length",
    "nobody": "no key",
}


@pytest.mark.parametrize("text", NO_RECIPIENTS, ids=range(len(NO_RECIPIENTS)))
def test_no_recipients(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipients"
    path.write_text(text)
    for act in (lambda: read_recipients(str(path)), lambda: recipient_of(text)):
        with pytest.raises(RequestError, match=NO_RECIPIENTS[text]) as raised:
            act()
        assert SECRET[16:30] not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo\n", b"x" * 70_000], ids=range(4))
def test_no_passphrases(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(content)
    with pytest.raises(NoKeyError) as raised:
        read_passphrase(str(path))
    assert "two" not in str(raised.value)


@pytest.mark.parametrize("read", [read_identities, read_recipients, read_passphrase])
def test_a_file_that_is_not_there(read: Callable[[str], object], tmp_path: Path) -> None:
    with pytest.raises(PybackupError, match=r"cannot read the .* file .*gone: No such file"):
        read(str(tmp_path / "gone"))


@pytest.mark.parametrize("read", [read_identities, read_recipients, read_passphrase])
@pytest.mark.parametrize("text", [SECRET, SECRET.lower(), f"./{SECRET}"], ids=range(3))
def test_a_key_in_the_place_of_its_file_is_not_told(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(PybackupError, match="an identity itself, which is secret") as raised:
        read(text)
    assert SECRET[16:30].lower() not in str(raised.value).lower()


def test_an_identity_is_written_once_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "key"
    old = os.umask(0)
    try:
        write_identity(str(path), b"secret\n")
    finally:
        os.umask(old)
    assert path.read_bytes() == b"secret\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(TargetError, match="exists already"):
        write_identity(str(path), b"another\n")
    assert path.read_bytes() == b"secret\n"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TargetError):
        write_identity(str(tmp_path / "link"), b"another\n")
    with pytest.raises(TargetError):
        write_identity(str(tmp_path / "none" / "key"), b"another\n")
    assert not (tmp_path / "nowhere").exists()


def test_a_pipe_of_keys_is_read_once(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    try:
        os.write(theirs, SECRET.encode())
        os.close(theirs)
        keys = Keys([f"/dev/fd/{ours}"])
        assert keys.identities() is keys.identities()
        assert len(keys.x25519()) == 1
    finally:
        os.close(ours)


def test_one_passphrase_at_a_time_has_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`list` opens eight archives at a time, and each may ask for a GiB."""
    (tmp_path / "passphrase").write_text("one\n")
    header = parse_header(encode_header([Passphrase(b"one", work=2).wrap(bytes(16))], bytes(16)), is_all=True)
    assert header is not None
    keys, inside, most = Keys(passphrase_file=str(tmp_path / "passphrase")), [0], []
    derive = hashlib.scrypt

    def scrypt(*arguments: Any, **options: Any) -> bytes:
        inside[0] += 1
        most.append(inside[0])
        if len(most) < 3:
            together.wait(0.1)  # nobody sets it: others have the time to come
        inside[0] -= 1
        return derive(*arguments, **options)

    together = threading.Event()
    monkeypatch.setattr("hashlib.scrypt", scrypt)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: keys.file_key(header, "a"), range(8))) == {bytes(16)}
    assert most == [1] * 8
