"""The keys of age v1 (c2sp.org/age): how a file key is wrapped for a recipient, and unwrapped by an identity.

Arithmetic on the curve and ChaCha20-Poly1305 are those of the package `cryptography`, which is imported when the first
of them is needed (ImportError where it is not there). No text of anything here shows a secret.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from . import bech32
from .age_header import FILE_KEY_SIZE, AgeHeader, Stanza, from_base64, hkdf, to_base64
from .errors import FormatError

KEY_SIZE = 32
RECIPIENT_WORD, IDENTITY_WORD = "age", "age-secret-key-"
X25519, SCRYPT = "X25519", "scrypt"
SALT_SIZE = 16
WORK_FACTOR = 18
"""Of passphrases that we write: 256 MiB and about a second, as age has it."""
MOST_WORK = 20
"""Of passphrases that we read: a GiB and some seconds. Every step doubles both, and a file asks for what it likes."""
_WRAPPED_SIZE = FILE_KEY_SIZE + 16
_NO_NONCE = bytes(12)
_NUMBER = re.compile(r"[1-9][0-9]?")

Random = Callable[[int], bytes]
"""Gives so many bytes that nobody can foresee."""


@runtime_checkable
class Recipient(Protocol):
    """Whoever shall be able to read a file."""

    def wrap(self, file_key: bytes, random: Random = os.urandom) -> Stanza:
        """The file key, for this recipient."""
        ...


class Identity(Protocol):
    """Whoever can read files that are for its recipient."""

    def unwrap(self, stanza: Stanza) -> bytes | None:
        """The file key, or None where the stanza is for somebody else (FormatError where it is damaged)."""
        ...


class X25519Recipient:
    """A public key. Nothing changes."""

    def __init__(self, key: bytes) -> None:
        """``key``: 32 bytes."""
        self.key = key

    @classmethod
    def of(cls, text: str) -> X25519Recipient:
        """The recipient that ``age1...`` names (FormatError)."""
        return cls(_key_of(text, RECIPIENT_WORD))

    def __str__(self) -> str:
        return bech32.encode(RECIPIENT_WORD, self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, X25519Recipient) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def wrap(self, file_key: bytes, random: Random = os.urandom) -> Stanza:
        """A stanza with a share of its own (FormatError where no secret can be shared with this key)."""
        ephemeral = random(KEY_SIZE)
        share = _public(ephemeral)
        key = _wrapping_key(_shared(ephemeral, self.key), share, self.key)
        return Stanza(X25519, (to_base64(share),), _cipher(key).encrypt(_NO_NONCE, file_key, None))


class X25519Identity:
    """A secret key. Nothing changes."""

    def __init__(self, secret: bytes) -> None:
        """``secret``: 32 bytes."""
        self._secret = secret

    @classmethod
    def of(cls, text: str) -> X25519Identity:
        """The identity that ``AGE-SECRET-KEY-1...`` names (FormatError)."""
        return cls(_key_of(text, IDENTITY_WORD))

    @classmethod
    def new(cls, random: Random = os.urandom) -> X25519Identity:
        """One that nobody else has."""
        return cls(random(KEY_SIZE))

    def secret_text(self) -> str:
        """The identity as it stands in a file, and nowhere else."""
        return bech32.encode(IDENTITY_WORD, self._secret).upper()

    def recipient(self) -> X25519Recipient:
        """Who reads with this identity."""
        return X25519Recipient(_public(self._secret))

    def unwrap(self, stanza: Stanza) -> bytes | None:
        """As Identity has it."""
        if stanza.kind != X25519:
            return None
        share = _arguments(stanza, KEY_SIZE)
        public = _public(self._secret)
        return _opened(_wrapping_key(_shared(self._secret, share), share, public), stanza.body)


class Passphrase:
    """A recipient and an identity: whoever knows it. Nothing changes."""

    def __init__(self, passphrase: bytes, *, work: int = WORK_FACTOR) -> None:
        """``work``: of what is wrapped, the logarithm of scrypt's N."""
        self._passphrase, self._work = passphrase, work

    def wrap(self, file_key: bytes, random: Random = os.urandom) -> Stanza:
        """A stanza that has to be alone in its header."""
        salt = random(SALT_SIZE)
        body = _cipher(self._key(salt, self._work)).encrypt(_NO_NONCE, file_key, None)
        return Stanza(SCRYPT, (to_base64(salt), str(self._work)), body)

    def unwrap(self, stanza: Stanza) -> bytes | None:
        """As Identity has it."""
        if stanza.kind != SCRYPT:
            return None
        salt = _arguments(stanza, SALT_SIZE)
        return _opened(self._key(salt, int(stanza.arguments[1])), stanza.body)

    def _key(self, salt: bytes, work: int) -> bytes:
        salt = b"age-encryption.org/v1/scrypt" + salt
        most = 1024 * (2 << work) + (1 << 20)
        return hashlib.scrypt(self._passphrase, salt=salt, n=1 << work, r=8, p=1, maxmem=most, dklen=KEY_SIZE)


def check_stanzas(header: AgeHeader) -> None:
    """FormatError where a stanza of a kind that is ours breaks its rules; costs nothing."""
    for stanza in header.stanzas:
        if stanza.kind == X25519:
            _arguments(stanza, KEY_SIZE)
        elif stanza.kind == SCRYPT:
            if len(header.stanzas) > 1:
                raise FormatError("a passphrase's stanza is not alone in it")
            _arguments(stanza, SALT_SIZE)


def file_key_of(header: AgeHeader, identities: Sequence[Identity]) -> bytes | None:
    """The file key, by the first identity that opens a stanza; None where none does (FormatError)."""
    check_stanzas(header)
    for identity in identities:
        for stanza in header.stanzas:
            if (found := identity.unwrap(stanza)) is not None:
                return found
    return None


def _key_of(text: str, word: str) -> bytes:
    found, key = bech32.decode(text)
    if found != word or (word == IDENTITY_WORD) is not text.isupper():
        raise FormatError("it is a key of another kind")
    if len(key) != KEY_SIZE:
        raise FormatError("it has the wrong length")
    return key


def _arguments(stanza: Stanza, size: int) -> bytes:
    """The first argument, ``size`` bytes (FormatError where anything is wrong that can be seen without arithmetic)."""
    expected = 2 if stanza.kind == SCRYPT else 1
    if len(stanza.arguments) != expected or len(stanza.body) != _WRAPPED_SIZE:
        raise FormatError(f"a stanza of the kind {stanza.kind} is damaged")
    content = from_base64(stanza.arguments[0].encode())
    if len(content) != size:
        raise FormatError(f"a stanza of the kind {stanza.kind} is damaged")
    if stanza.kind == SCRYPT:
        work = stanza.arguments[1]
        if not _NUMBER.fullmatch(work):
            raise FormatError("the work factor of its passphrase is damaged")
        if int(work) > MOST_WORK:
            raise FormatError(
                f"its passphrase would take {1 << max(0, int(work) - MOST_WORK)} GiB of memory, by a work factor of"
                f" {work}, where at most {MOST_WORK} is taken"
            )
    return content


def _wrapping_key(shared: bytes, share: bytes, recipient: bytes) -> bytes:
    return hkdf(shared, share + recipient, b"age-encryption.org/v1/X25519")


def _public(secret: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def _shared(secret: bytes, public: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        # The secret would be zero, whoever takes part.
        raise FormatError("a key is one with which there is no secret") from None


def _cipher(key: bytes) -> _Cipher:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key)


def _opened(key: bytes, body: bytes) -> bytes | None:
    from cryptography.exceptions import InvalidTag

    try:
        return _cipher(key).decrypt(_NO_NONCE, body, None)
    except InvalidTag:
        return None


class _Cipher(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...
