"""What is not whole is never called sound: drives called vmstate, deltas, features of the future, data unprotected."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign_vma
import pytest
import zstandard
from archives import decode, encode, header_of, open_index, pool, with_index
from command_line import pybackup

from pybackup.core.archive.by_index import DrivesByIndex
from pybackup.core.archive.facts import archive_facts
from pybackup.core.errors import ArchiveError
from pybackup.core.places.kinds import LocalPath
from pybackup.formats import cluster_index as index
from pybackup.formats.archive import ArchiveEncoder
from pybackup.formats.clusters import scan

NOISE = random.Random(3)
DISK = NOISE.randbytes(200 * 65536)
HEADER = 12800


def with_flags(archive: bytes, flags: int) -> bytes:
    """A plain archive with other flags of ours in its header, whose MD5 is right."""
    content = bytearray(archive)
    content[64:68] = struct.pack(">I", flags)
    size = struct.unpack_from(">I", content, 56)[0]
    content[32:48] = bytes(16)
    content[32:48] = hashlib.md5(content[:size]).digest()
    return bytes(content)


def extents_of(archive: bytes) -> list[int]:
    """Where the extents of a plain archive begin, and where the last ends."""
    at = struct.unpack_from(">I", archive, 56)[0]
    places = [at]
    while at < len(archive):
        at += 512 + 4096 * struct.unpack_from(">H", archive, at + 6)[0]
        places.append(at)
    return places


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
@pytest.mark.parametrize("wrap", [bytes, zstandard.compress, gzip.compress], ids=["plain", "zstd", "gzip"])
def test_an_archive_of_ours_is_whole_or_damaged_whatever_a_drive_is_called(wrap: Any, keep: int) -> None:
    plain = encode({"vmstate": DISK}, level=None)
    places = extents_of(plain)
    cut = wrap(plain[: places[keep]])
    assert any(one.what == "missing" and one.drive == "vmstate" for one in decode(cut, tolerant=True).damage)
    with pytest.raises(ArchiveError, match="missing: drive vmstate"):
        decode(cut)


def test_a_vmstate_of_ours_may_come_in_any_order() -> None:
    plain = encode({"vmstate": DISK}, level=None)
    places = extents_of(plain)
    parts = [plain[start:end] for start, end in itertools.pairwise(places)]
    swapped = plain[: places[0]] + b"".join(reversed(parts))
    assert decode(swapped).drives == {"vmstate": DISK}


def test_the_index_must_know_all_of_a_vmstate() -> None:
    def without_the_last_run(kind: int, content: bytes) -> bytes:
        if kind != index.SEGMENT:
            return content
        *start, frames, runs, stored = index.SEGMENT_START.unpack_from(content)
        at = index.SEGMENT_START.size + frames * index.FRAME_ROW.size
        drive, run_kind, zero, first, count = index.RUN.unpack_from(content, at)
        shorter = bytearray(content)
        index.RUN.pack_into(shorter, at, drive, run_kind, zero, first, count - 1)
        places = at + runs * index.RUN.size + stored * 2
        del shorter[-16:], shorter[places + stored * 4 - 4 : places + stored * 4], shorter[places - 2 : places]
        index.SEGMENT_START.pack_into(shorter, 0, *start, frames, runs, stored - 1)
        return bytes(shorter)

    archive = with_index(encode({"vmstate": DISK[:700_000], "b": b"x" * 4096}), without_the_last_run)
    source = DrivesByIndex(open_index(archive), pool, stop=lambda: None)
    with pytest.raises(ArchiveError, match="missing in the index: drive vmstate"):
        list(source.extents([1]))


def test_the_memory_of_another_program_may_end_early_and_that_is_told(tmp_path: Path) -> None:
    whole = foreign_vma.write({"drive-scsi0": DISK[:65536], "vmstate": DISK}, style=foreign_vma.Style(mixed=False))
    archive = tmp_path / "x.vma"
    archive.write_bytes(whole[: extents_of(whole)[2]])
    done = pybackup("verify", archive)
    assert done.code == 0
    assert "drive vmstate ends after" in done.out.decode()
    assert pybackup("verify", "--json", archive).json["ends_early"][0]["drive"] == "vmstate"


# -- flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, sentence", [(3, "only what changed since its parent"), (5, "flags 0x5")])
def test_what_we_cannot_read_is_refused_by_every_reader(tmp_path: Path, flags: int, sentence: str) -> None:
    plain = with_flags(encode({"a": DISK[:200_000]}, level=None), flags)
    for archive in (plain, zstandard.compress(plain), gzip.compress(plain)):
        for tolerant in (False, True):
            with pytest.raises(ArchiveError, match=sentence):
                decode(archive, tolerant=tolerant)
    (tmp_path / "x.vma").write_bytes(plain)
    (tmp_path / "d.img").write_bytes(DISK[:200_000])
    for command in (["verify", "x.vma"], ["restore", "x.vma", "y"], ["compare", "x.vma", "d.img"]):
        done = pybackup(*command, cwd=tmp_path)
        assert (done.code, sentence in done.err) == (4, True), done.err
    assert not (tmp_path / "y").exists()


def test_a_delta_with_an_index_is_not_served_and_info_tells_what_it_is(tmp_path: Path) -> None:
    encoder = ArchiveEncoder(replace(header_of({"a": DISK[:131072]}), is_delta=True, parent_uuid=b"p" * 16))
    out = [encoder.start()]
    encoder.add(1, 1, scan(DISK[:65536]))
    encoder.close_extent()
    for item in encoder.ready:
        out += encoder.commit(encoder.encode(item, encoder.compressor()))
    archive = b"".join([*out, *encoder.finish({})])
    with pytest.raises(ArchiveError, match="only what changed"):
        open_index(archive)
    path = tmp_path / "delta.vma.zst"
    path.write_bytes(archive)
    assert archive_facts(LocalPath(str(path))).header.is_delta
    done = pybackup("info", path)
    assert done.code == 0
    assert "delta    holds what changed since" in done.out.decode()
    assert "missing  " in done.out.decode()
    for command in (["serve", path], ["restore", path, tmp_path / "y"], ["verify", path]):
        assert pybackup(*command).code == 4


# -- what guards the data -------------------------------------------------------------------------------------------


def test_whether_anything_guards_the_data_is_told(tmp_path: Path) -> None:
    foreign = foreign_vma.write({"drive-scsi0": DISK[:300_032]})
    unchecked = zstandard.ZstdCompressor(write_checksum=False).compress
    checked = zstandard.ZstdCompressor(write_checksum=True).compress
    streamed = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compressobj()
    cases = {
        "plain": (foreign, False),
        "zstd unchecked": (unchecked(foreign), False),
        "half checked": (checked(foreign[:150_000]) + unchecked(foreign[150_000:]), False),
        "zstd": (checked(foreign), True),
        "zstd streamed": (streamed.compress(foreign) + streamed.flush(), True),
        "gzip": (gzip.compress(foreign), True),
        "ours plain": (encode({"a": DISK[:300_032]}, level=None), True),
        "ours in zstd unchecked": (unchecked(encode({"a": DISK[:300_032]}, level=None)), True),
    }
    for name, (archive, guarded) in cases.items():
        assert decode(archive).stream.protects_data == guarded, name
    (tmp_path / "x.vma").write_bytes(foreign)
    assert "structure sound, data not protected" in pybackup("verify", tmp_path / "x.vma").out.decode()
    report = pybackup("verify", "--json", tmp_path / "x.vma").json
    assert (report["sound"], report["protected"]) == (True, False)
