"""Files with identities, with recipients, or with a passphrase. No sentence about them shows a piece of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pybackup.core.errors import NoKeyError, PybackupError, RequestError, TargetError
from pybackup.core.sinks.target_failure import target_failure
from pybackup.formats.age_header import looks_encrypted
from pybackup.formats.age_keys import Passphrase, X25519Identity, X25519Recipient
from pybackup.formats.errors import FormatError

MOST_BYTES = 256 << 10
"""Of a file of keys."""
MOST_KEYS = 64
"""Each is tried on every stanza of a header."""
MOST_PASSPHRASE = 64 << 10
"""Bytes of a passphrase, the end of its line included."""

IDENTITY_BEGINS = "AGE-SECRET-KEY-"

Key = TypeVar("Key")


def read_identities(path: str, where: str | None = None) -> Sequence[X25519Identity]:
    """The identities in a file, as `age-keygen` writes it (NoKeyError). ``where``: the path to open, if another."""
    content = _content(path, "identity", MOST_BYTES, NoKeyError, where)
    if looks_encrypted(content):
        raise NoKeyError(f"the identity file {path} is itself encrypted: decrypt it first, with `age -d`")
    return _keys(path, content, "identity", _identity, NoKeyError)


def read_recipients(path: str) -> Sequence[X25519Recipient]:
    """The recipients in a file, a line each (RequestError)."""
    return _keys(path, _content(path, "recipients", MOST_BYTES, RequestError), "recipients", _recipient, RequestError)


def read_passphrase(path: str, error: type[PybackupError] = NoKeyError, where: str | None = None) -> Passphrase:
    """What stands in the first line of a file, and there is no other (``error``). ``where``: the path to open."""
    line, _, rest = _content(path, "passphrase", MOST_PASSPHRASE, error, where).partition(b"\n")
    line = line.removesuffix(b"\r")
    if rest.strip() or not line:
        raise error(f"the passphrase file {path} must have one line, with the passphrase")
    return Passphrase(line)


def recipient_of(text: str) -> X25519Recipient:
    """The recipient that a text names (RequestError)."""
    try:
        return _recipient(text.strip())
    except FormatError as error:
        # Who takes an identity for a recipient must not find it in a log.
        raise RequestError(f"{_named(text)} is no recipient: {error.what}") from None


def _named(text: str) -> str:
    return repr(text) if text.startswith("age1") and len(text) < 100 else "what was given"


def _content(path: str, kind: str, most: int, failure: type[PybackupError], where: str | None = None) -> bytes:
    if IDENTITY_BEGINS in path.upper():
        # The key itself, where the name of its file belongs: what fails is told to logs, hooks and reports.
        raise failure(f"what was given for the {kind} file is an identity itself, which is secret: put it into a file")
    try:
        with open(where or path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise failure(f"cannot read the {kind} file {path}: {error.strerror}") from error
    if len(content) > most:
        raise failure(f"the {kind} file {path} is too large to be one")
    return content


def _keys(
    path: str, content: bytes, kind: str, parse: Callable[[str], Key], failure: type[PybackupError]
) -> Sequence[Key]:
    keys: list[Key] = []
    for number, line in _lines(content):
        try:
            keys.append(parse(line))
        except FormatError as error:
            raise failure(f"line {number} of the {kind} file {path} is no key of ours: {error.what}") from None
        if len(keys) > MOST_KEYS:
            raise failure(f"the {kind} file {path} has more than {MOST_KEYS} keys")
    if not keys:
        raise failure(f"the {kind} file {path} has no key in it")
    return keys


def _lines(content: bytes) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is neither empty nor a remark."""
    for number, line in enumerate(content.decode("latin-1").splitlines(), 1):
        if (text := line.strip()) and not text.startswith("#"):
            yield number, text


def _identity(text: str) -> X25519Identity:
    upper = text.upper()
    if upper.startswith("AGE-PLUGIN-"):
        raise FormatError("it is the identity of a plugin of age, which pybackup has not")
    if upper.startswith("AGE-SECRET-KEY-PQ-"):
        raise FormatError("it is a post-quantum identity, which pybackup does not have yet; use an X25519 one")
    if upper.startswith("-----BEGIN"):
        raise FormatError("it is a key of SSH or of another program; `pybackup keygen` makes one for archives")
    if text.startswith("age1"):
        raise FormatError("it is a recipient, and an identity is wanted, which begins with AGE-SECRET-KEY-1")
    return X25519Identity.of(text)


def _recipient(text: str) -> X25519Recipient:
    if text.upper().startswith(IDENTITY_BEGINS):
        raise FormatError(
            "it is an identity, which is secret: the recipient is what belongs to it, and begins with age1"
        )
    if text.startswith("age1pq1"):
        raise FormatError("it is a post-quantum recipient, which pybackup does not have yet; use an X25519 one")
    if text.startswith(("ssh-", "ecdsa-")):
        raise FormatError("it is a key of SSH; `pybackup keygen` makes one for archives")
    if text.startswith("age1") and "1" in text.removeprefix("age1"):
        raise FormatError("it is the recipient of a plugin of age, which pybackup has not")
    return X25519Recipient.of(text)


def write_identity(path: str, identity_file: bytes) -> None:
    """Make a file that only its owner can read, and that was not there before (TargetError)."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise TargetError(f"{path} exists already, and no file is replaced by a key") from None
    except OSError as error:
        raise target_failure(path, error, "create") from error
    try:
        with open(fd, "wb") as file:
            file.write(identity_file)
            file.flush()
            os.fsync(fd)
        _sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise target_failure(path, error, "write") from error


def _sync_folder(folder: str) -> None:
    """A key that is gone after a power failure is one of which archives may have been made already."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a filesystem that knows no such thing
            os.fsync(fd)
    finally:
        os.close(fd)
