"""For whom an archive is encrypted, as the options of a command say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from pybackup.core.errors import RequestError

if TYPE_CHECKING:
    from pybackup.core.secrets.encrypting_sink import Encryption
    from pybackup.formats.age_keys import X25519Recipient


class EncryptionAsked(Protocol):
    """What the options say."""

    @property
    def recipients(self) -> Sequence[str]:
        """Those named themselves."""
        ...

    @property
    def recipients_files(self) -> Sequence[str]:
        """Files with more of them."""
        ...

    @property
    def passphrase_file(self) -> str | None:
        """The file with a passphrase."""
        ...

    @property
    def no_public_facts(self) -> bool:
        """Whether nothing is told to everybody."""
        ...

    @property
    def verify(self) -> bool:
        """Whether the archive is read back."""
        ...


def is_encrypted(asked: EncryptionAsked) -> bool:
    """Whether the archive is to be."""
    return bool(asked.recipients or asked.recipients_files or asked.passphrase_file)


def check_encryption(asked: EncryptionAsked) -> None:
    """RequestError where the options do not go together."""
    if asked.passphrase_file is not None and (asked.recipients or asked.recipients_files):
        raise RequestError("an archive is encrypted for recipients or with a passphrase: --passphrase-file goes alone")
    if asked.no_public_facts and not is_encrypted(asked):
        raise RequestError("--no-public-facts is for archives that are encrypted: --recipient says for whom")


def encryption_of(asked: EncryptionAsked) -> Encryption | None:
    """For whom the archive is encrypted; None for everybody (RequestError)."""
    if not is_encrypted(asked):
        return None
    from pybackup.core.secrets.encrypting_sink import Encryption
    from pybackup.core.secrets.key_files import read_passphrase, read_recipients, recipient_of

    if asked.passphrase_file is not None:
        encryption = Encryption([read_passphrase(asked.passphrase_file, RequestError)], tells_facts=False)
        encryption.check()
        return encryption
    recipients = [recipient_of(text) for text in asked.recipients]
    recipients += [one for path in asked.recipients_files for one in read_recipients(path)]
    encryption = Encryption(list(dict.fromkeys(recipients)), not asked.no_public_facts)
    encryption.check()
    if asked.verify:
        _check_identity(recipients)
    return encryption


def _check_identity(recipients: Sequence[X25519Recipient]) -> None:
    """RequestError where an archive for these could not be read back, which is better known before it is made."""
    from pybackup.core.secrets.keys import given

    if not given():
        raise RequestError(
            "--verify reads an archive back, for which an encrypted one needs the --identity of a recipient"
        )
    if not any(identity.recipient() in recipients for identity in given().x25519()):
        raise RequestError("--verify reads an archive back, and no --identity is that of a recipient")
