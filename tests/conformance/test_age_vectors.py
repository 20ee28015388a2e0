"""The published test vectors of age: what they say becomes of each file, becomes of it here, read in either way."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybackup.core.archive.encrypted_file import EncryptedFile
from pybackup.core.archive.encrypted_stream import Unsealed
from pybackup.core.errors import ArchiveError, NoKeyError
from pybackup.core.secrets.keys import Keys
from pybackup.formats.age_header import looks_encrypted
from pybackup.formats.errors import FormatError

KIT: list[dict[str, Any]] = json.loads((Path(__file__).parent / "age_vectors.json").read_text())["vectors"]
HEAD = 1 << 14


@pytest.fixture(params=KIT, ids=[vector["name"] for vector in KIT])
def vector(request: pytest.FixtureRequest) -> Any:
    return request.param


def file_of(vector: dict[str, Any]) -> bytes:
    return zlib.decompress(base64.b85decode(vector["file"]))


def keys_of(vector: dict[str, Any], folder: Path) -> Keys:
    identities = folder / "identities"
    identities.write_text("\n".join(vector.get("identity", [])))
    passphrase = folder / "passphrase"
    passphrase.write_text("".join(vector.get("passphrase", [""])[:1]))
    return Keys([str(identities)] if "identity" in vector else [], str(passphrase) if "passphrase" in vector else None)


def outcome(act: Callable[[], object]) -> str:
    """What became of it, in the words of the vectors."""
    try:
        act()
    except NoKeyError:
        return "no match"
    except (ArchiveError, FormatError) as error:
        text = str(error)
        if "MAC does not prove" in text:
            return "HMAC failure"
        return "header failure" if "header" in text else "payload failure"
    return "success"


def expected(vector: dict[str, Any], content: bytes) -> str:
    if not looks_encrypted(content):
        return "success"  # of another version, or none: for us it is any file, and its bytes are its own
    # A file that ends behind its header has no payload; that this is told of the header is the vectors' choice.
    return "payload failure" if vector["name"] in ("stream_no_nonce", "stream_short_nonce") else str(vector["expect"])


def test_read_on(vector: dict[str, Any], tmp_path: Path) -> None:
    content = file_of(vector)
    source = io.BytesIO(content)
    unsealed = Unsealed(source.read, "file", keys_of(vector, tmp_path))
    released = hashlib.sha256()

    def read() -> None:
        while part := unsealed.read(1 << 20):
            released.update(part)

    try:
        assert outcome(read) == expected(vector, content)
    finally:
        unsealed.close()
    if "payload" in vector and looks_encrypted(content):
        assert released.hexdigest() == vector["payload"]


def test_read_at_any_place(vector: dict[str, Any], tmp_path: Path) -> None:
    content = file_of(vector)
    if not looks_encrypted(content):
        return

    def pread(offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(content)
        return content[offset : offset + length]

    def read() -> None:
        file = EncryptedFile(pread, len(content), "file", keys_of(vector, tmp_path), content[:HEAD])
        whole = file.pread(0, file.size)
        if vector["expect"] == "success":
            assert hashlib.sha256(whole).hexdigest() == vector["payload"]
            step = 40_000
            parts = [file.pread(at, min(step, file.size - at)) for at in range(0, file.size, step)]
            assert b"".join(parts) == whole

    assert outcome(read) == expected(vector, content)
