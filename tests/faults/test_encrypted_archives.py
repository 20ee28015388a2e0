"""Encrypted archives: every byte changed and every length cut is noticed, whoever reads; and what is lost is told."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import decode, encode, open_index, pool, read_of
from encrypted import encrypted, key_file

from pybackup.core.archive.drives import open_drives
from pybackup.core.archive.encrypted_file import HEAD, EncryptedFile
from pybackup.core.archive.encrypted_stream import Unsealed
from pybackup.core.archive.index import ArchiveIndex
from pybackup.core.archive.open import open_archive, range_reader
from pybackup.core.archive.stream import Digests
from pybackup.core.errors import ArchiveError, NoKeyError
from pybackup.core.places.kinds import LocalPath
from pybackup.core.secrets import keys as process_keys
from pybackup.core.secrets.keys import Keys
from pybackup.formats.age_payload import SEALED
from pybackup.formats.errors import FormatError
from pybackup.formats.vma_layout import CLUSTER_SIZE

SMALL = encrypted(encode({"d": b"some text" + bytes(200_000)}))
NOISE = random.Random(7)
DISKS = {"scsi0": NOISE.randbytes(9 * CLUSTER_SIZE), "scsi1": NOISE.randbytes(5 * CLUSTER_SIZE) + bytes(1 << 20)}
ARCHIVE = encode(DISKS, frame_size=65536)
LARGE = encrypted(ARCHIVE)
REFUSED = (ArchiveError, NoKeyError, FormatError)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    found = Keys([str(key_file(tmp_path_factory.mktemp("keys")))])
    process_keys.give(found)
    yield found
    process_keys.give(Keys())


def read_on(file: bytes, keys: Keys, *, tolerant: bool = False) -> tuple[bytes, list[FormatError]]:
    source = io.BytesIO(file)
    unsealed = Unsealed(source.read, "file", keys, tolerant=tolerant)
    try:
        return b"".join(iter(lambda: unsealed.read(1 << 20), b"")), unsealed.lost
    finally:
        unsealed.close()


def read_anywhere(file: bytes, keys: Keys) -> bytes:
    found = EncryptedFile(read_of(file), len(file), "file", keys, file[:HEAD])
    return found.pread(0, found.size)


def test_the_small_archive_is_small_and_sound(keys: Keys) -> None:
    assert len(SMALL) < 1500
    assert read_on(SMALL, keys)[0] == read_anywhere(SMALL, keys)


def test_every_changed_byte_is_noticed(keys: Keys) -> None:
    for at in range(len(SMALL)):
        broken = bytearray(SMALL)
        broken[at] ^= 0x01
        for read in (read_on, read_anywhere):
            if broken.startswith(b"age-encryption.org/v1"):
                with pytest.raises(REFUSED):
                    read(bytes(broken), keys)
        assert at >= 21 or read_on(bytes(broken), keys)[0] == broken, "it is no encrypted file any more"


def test_every_cut_is_noticed(keys: Keys) -> None:
    for end in range(22, len(SMALL)):
        for read in (read_on, read_anywhere):
            with pytest.raises(REFUSED):
                read(SMALL[:end], keys)
    for more in (b"\0", bytes(SEALED)):
        for read in (read_on, read_anywhere):
            with pytest.raises(REFUSED):
                read(SMALL + more, keys)


def start_of_chunks(file: bytes) -> int:
    return file.index(b"\n--- ") + len(b"\n--- ") + 43 + 1 + 16


def test_cuts_between_chunks_are_told_as_that(keys: Keys) -> None:
    start = start_of_chunks(LARGE)
    for count in range(1, (len(LARGE) - start) // SEALED + 1):
        cut = LARGE[: start + count * SEALED]
        with pytest.raises(FormatError, match="cut short behind byte"):
            read_on(cut, keys)
        with pytest.raises(ArchiveError, match="cut short behind byte"):
            read_anywhere(cut, keys)
        content, lost = read_on(cut, keys, tolerant=True)
        assert content == ARCHIVE[: count * 65536]
        assert len(lost) == 1


@pytest.mark.parametrize("number", range(0, 14, 3))
def test_a_damaged_chunk_costs_what_is_in_it_and_nothing_else(number: int, keys: Keys) -> None:
    at = start_of_chunks(LARGE) + number * SEALED
    broken = bytearray(LARGE)
    broken[at + 1000] ^= 4
    content, lost = read_on(bytes(broken), keys, tolerant=True)
    low, high = number * 65536, min(len(ARCHIVE), (number + 1) * 65536)
    assert content == ARCHIVE[:low] + bytes(high - low) + ARCHIVE[high:]
    (error,) = lost
    assert f"{at} to" in str(error) or f"byte {at} on" in str(error)


def test_chunks_that_changed_places_are_noticed(keys: Keys) -> None:
    start = start_of_chunks(LARGE)
    one, two = LARGE[start : start + SEALED], LARGE[start + SEALED : start + 2 * SEALED]
    broken = LARGE[:start] + two + one + LARGE[start + 2 * SEALED :]
    with pytest.raises(FormatError, match="do not decrypt"):
        read_on(broken, keys)
    file = EncryptedFile(read_of(broken), len(broken), "file", keys, broken[:HEAD])
    with pytest.raises(FormatError, match="do not decrypt"):
        file.pread(70_000, 10)
    assert file.pread(3 * 65536, 10) == ARCHIVE[3 * 65536 :][:10]


def test_headers_of_two_files_cannot_be_exchanged(keys: Keys) -> None:
    other = encrypted(ARCHIVE)
    broken = other[: start_of_chunks(other)] + LARGE[start_of_chunks(LARGE) :]
    for read in (read_on, read_anywhere):
        with pytest.raises(REFUSED):
            read(broken, keys)


def test_readers_tell_the_drive(tmp_path: Path, keys: Keys) -> None:
    """By the index and on, strict and tolerant."""
    broken = bytearray(LARGE)
    broken[start_of_chunks(LARGE) + 4 * SEALED + 99] ^= 1
    path = tmp_path / "a.vma.zst.age"
    path.write_bytes(broken)
    with open_archive(LocalPath(str(path)), threads=1, tolerant=True) as stream:
        assert sum(1 for _ in stream)
        told = [str(one) for one in stream.damage]
    assert any("do not decrypt" in one for one in told)
    assert any("drive scsi0" in one for one in told)
    with pytest.raises(ArchiveError, match="do not decrypt"), open_archive(LocalPath(str(path)), threads=1) as stream:
        for _ in stream:
            pass
    place = LocalPath(str(path))
    with open_drives(place, lambda header: header.drives[:1], threads=1) as drives:
        with pytest.raises(ArchiveError, match=r"do not decrypt.*drive scsi0"):
            for _ in drives.extents([1]):
                pass
    with open_drives(place, lambda header: header.drives[1:], threads=1, digests=Digests.UNPROVEN) as drives:
        assert sum(1 for _ in drives.extents([2]))


def test_only_what_is_wanted_is_read(tmp_path: Path, keys: Keys) -> None:
    """Header, end and index: of a large archive a few chunks."""
    disks = {"d": random.Random(3).randbytes(40 * CLUSTER_SIZE)}
    file = encrypted(encode(disks, frame_size=65536))
    asked: list[tuple[int, int]] = []

    def pread(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return file[offset : offset + length]

    found = EncryptedFile(pread, len(file), "file", keys, file[:HEAD])
    index = ArchiveIndex(found.pread, found.size, "file")
    assert index.header.drives[0].name == "d"
    assert len(asked) == len(set(asked)) <= 3
    assert sum(length for _, length in asked) <= 4 * SEALED
    assert index.read_cluster(1, 7) == disks["d"][7 * CLUSTER_SIZE : 8 * CLUSTER_SIZE]


def test_what_is_not_encrypted_is_read_as_ever(tmp_path: Path, keys: Keys) -> None:
    assert decode(ARCHIVE).drives == DISKS
    assert open_index(ARCHIVE).header.drives
    path = tmp_path / "a.vma.zst"
    path.write_bytes(ARCHIVE)
    with range_reader(LocalPath(str(path))) as reader:
        assert reader.encryption is None and reader.size == reader.file_size == len(ARCHIVE)
        assert reader.pread(5, 100_000) == ARCHIVE[5:100_005]
    assert pool is not None
