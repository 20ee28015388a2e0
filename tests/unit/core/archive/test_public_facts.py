"""Who an encrypted archive is without a key; and that one who tells something else is found out with one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import CREATED, UUID, encode
from encrypted import encrypted, key_file

from pybackup.core.archive.identity import Reference, read_identity
from pybackup.core.archive.public_facts import public_identity
from pybackup.core.errors import ArchiveError, NoKeyError
from pybackup.core.places.kinds import LocalPath
from pybackup.core.secrets import keys as process_keys
from pybackup.core.secrets.keys import Keys
from pybackup.formats.public_facts import PublicFacts

ARCHIVE = encode({"scsi0": b"text" * 5000})
TRUE = PublicFacts(UUID, CREATED, (("scsi0", 20_000),))


@pytest.fixture(name="key")
def _key(tmp_path: Path) -> Iterator[Keys]:
    yield Keys([str(key_file(tmp_path))])
    process_keys.give(Keys())


def written(tmp_path: Path, facts: PublicFacts | None) -> LocalPath:
    path = tmp_path / "a.vma.zst.age"
    path.write_bytes(encrypted(ARCHIVE, [] if facts is None else [facts.stanza()]))
    return LocalPath(str(path))


def test_who_it_is_without_a_key(tmp_path: Path) -> None:
    place = written(tmp_path, TRUE)
    with pytest.raises(NoKeyError):
        read_identity(place)
    found = public_identity(place)
    assert found is not None
    assert (found.uuid, found.created, found.is_public, found.digest) == (UUID, CREATED, True, None)
    assert [(drive.name, drive.size) for drive in found.drives] == [("scsi0", 20_000)]
    # Nobody knows its directory's digest, so it may be the parent of any delta that names its uuid.
    assert found.answers(Reference(UUID, bytes(16))) and not found.answers(Reference(bytes(16), bytes(16)))
    assert found.parent is None and found.reference is None


def test_a_delta_is_one_without_a_key_too(tmp_path: Path) -> None:
    parent = (bytes([5] * 16), bytes([6] * 16))
    found = public_identity(written(tmp_path, PublicFacts(UUID, CREATED, TRUE.drives, parent)))
    assert found is not None and found.is_delta
    assert found.parent == Reference(*parent)


def test_what_tells_nothing(tmp_path: Path) -> None:
    assert public_identity(written(tmp_path, None)) is None


@pytest.mark.parametrize(
    "drives",
    [(("a", 1), ("a", 2)), (("a", 0),), tuple((str(number), 1) for number in range(300))],
    ids=["twice", "empty", "many"],
)
def test_drives_that_no_archive_has(drives: tuple[tuple[str, int], ...], tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="tells everybody is damaged"):
        public_identity(written(tmp_path, PublicFacts(UUID, CREATED, drives)))


@pytest.mark.parametrize(
    "told",
    [
        PublicFacts(bytes(16), CREATED, TRUE.drives),
        PublicFacts(UUID, CREATED + 1, TRUE.drives),
        PublicFacts(UUID, CREATED, (("scsi0", 20_001),)),
        PublicFacts(UUID, CREATED, TRUE.drives, (bytes(16), bytes(16))),
    ],
    ids=["uuid", "time", "drives", "parent"],
)
def test_with_a_key_they_are_checked(told: PublicFacts, tmp_path: Path, key: Keys) -> None:
    process_keys.give(key)
    assert read_identity(written(tmp_path, TRUE)).uuid == UUID
    assert read_identity(written(tmp_path, None)).uuid == UUID
    with pytest.raises(ArchiveError, match="is not what is in the archive"):
        read_identity(written(tmp_path, told))
