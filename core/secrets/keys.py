"""The keys that were given to open encrypted archives.

They belong to the process, as its user does: whoever starts it says once what there is, and every archive that is
opened by anybody in it, in whatever thread, is tried with them. The files are read when the first of these is met, for
who reads no encrypted archive needs no key.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext

from pybackup.core.errors import Advice, ArchiveError, NoKeyError, RequestError
from pybackup.core.system.extras import how_to_install
from pybackup.formats.age_header import AgeHeader
from pybackup.formats.age_keys import SCRYPT, X25519, Identity, X25519Identity, file_key_of
from pybackup.formats.errors import FormatError

from .key_files import read_identities, read_passphrase

_ONE_AT_A_TIME = threading.Lock()


class Keys:
    """Fixed: the names of the files. Changing, under a lock: what was read of them, once."""

    def __init__(self, identity_files: Sequence[str] = (), passphrase_file: str | None = None) -> None:
        self._identity_files, self._passphrase_file = identity_files, passphrase_file
        # They may be read when the process has left the folder that it was started in.
        self._folder = os.getcwd() if self else ""
        self._lock = threading.Lock()
        self._read: Sequence[Identity] | None = None

    def __bool__(self) -> bool:
        return bool(self._identity_files or self._passphrase_file)

    def identities(self) -> Sequence[Identity]:
        """What opens archives (NoKeyError)."""
        with self._lock:
            # Once: a file may be a pipe.
            if self._read is None:
                found: list[Identity] = [
                    one for path in self._identity_files for one in read_identities(path, self._where(path))
                ]
                if self._passphrase_file is not None:
                    found.append(read_passphrase(self._passphrase_file, where=self._where(self._passphrase_file)))
                self._read = found
            return self._read

    def _where(self, path: str) -> str:
        return os.path.join(self._folder, path)

    def x25519(self) -> Sequence[X25519Identity]:
        """Those that have a recipient (NoKeyError)."""
        return [one for one in self.identities() if isinstance(one, X25519Identity)]

    def file_key(self, header: AgeHeader, name: str) -> bytes:
        """What opens a file, whose header is proved by it (NoKeyError, ArchiveError, RequestError)."""
        if not self:
            raise _none_given(header, name)
        try:
            # What a passphrase takes in memory, the file says, up to a GiB: archives are opened in several threads.
            with _ONE_AT_A_TIME if _wants_passphrase(header) else nullcontext():
                found = file_key_of(header, self.identities())
        except FormatError as error:
            raise ArchiveError(f"{name}: the header of its encryption is damaged: {error.what}") from None
        except ImportError as error:
            raise missing_package(error) from None
        if found is None:
            raise _none_fits(header, name)
        if not header.is_proved_by(found):
            raise ArchiveError(
                f"{name}: the header of its encryption is damaged, or was changed: its MAC does not prove it"
            )
        return found


def missing_package(error: ImportError) -> RequestError:
    """What is told where the package for encryption is not there."""
    why = "" if error.name == "cryptography" else f" ({error})"
    return RequestError(
        f"encrypted archives need a package that this Python does not have{why}: {how_to_install('age')}"
    )


def _none_given(header: AgeHeader, name: str) -> NoKeyError:
    if _wants_passphrase(header):
        return NoKeyError(f"{name} is encrypted with a passphrase, and none was given", advice=Advice.PASSPHRASE)
    return NoKeyError(f"{name} is encrypted, and no identity was given to open it", advice=Advice.IDENTITY)


def _none_fits(header: AgeHeader, name: str) -> NoKeyError:
    if _wants_passphrase(header):
        return NoKeyError(f"{name} is encrypted with a passphrase, and that is not what was given")
    kinds = sorted({stanza.kind for stanza in header.stanzas} - {X25519})
    if any(stanza.kind == X25519 for stanza in header.stanzas):
        return NoKeyError(f"{name} is encrypted for others: no identity that was given opens it")
    return NoKeyError(
        f"{name} is encrypted for recipients of kinds that pybackup does not have"
        f" ({', '.join(kinds[:4])}): decrypt it with `age -d`, and read what comes"
    )


def _wants_passphrase(header: AgeHeader) -> bool:
    return any(stanza.kind == SCRYPT for stanza in header.stanzas)


class _Given:
    """Changing, by whoever runs the process: the keys."""

    keys = Keys()


def give(keys: Keys) -> None:
    """Have all archives that are opened from now on tried with these, and no others."""
    _Given.keys = keys


def given() -> Keys:
    """The keys that were given to this process; none, unless somebody did."""
    return _Given.keys
