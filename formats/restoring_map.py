"""The map of a disk that is being restored while it is in use: which of its clusters are there. Not compressed.

A header block of 4096 bytes says which archive's drive comes to which disk. Records follow, each at a multiple of 512
bytes, and each says of clusters that they are there; nothing ever takes that back. A record is appended when what it
tells of is durable, so the last one may be torn, which is as if it were not there: nobody was told that it is. A torn
record with a whole one behind it is damage: what stood in it was promised to somebody.

All numbers are little-endian.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from blake3 import blake3

from .errors import FormatError

MAGIC = b"pybackup restore"
HEADER_SIZE = 4096
ALIGNMENT = 512
DIGEST_SIZE = 16
ID_SIZE = 16

_HEADER = struct.Struct("<16s16sII")
"""magic, digest of all else in the block, version, bytes of JSON behind"""
_RECORD = struct.Struct("<4sII4xQ16s16s")
"""magic, runs, pieces, sequence number, the map's id, digest of all else in the record"""
_RECORD_MAGIC = b"THER"
_RUN = struct.Struct("<QQ")
"""first cluster, clusters"""
_NUMBER = struct.Struct("<Q")
VERSION = 1

PIECE_CLUSTERS = 1 << 15
"""Clusters of which one piece tells, a bit each, the most significant of a byte first: of 2 GiB of a disk."""
PIECE_SIZE = PIECE_CLUSTERS // 8
MOST_RUNS = 1 << 15
MOST_PIECES = 128
"""In one record, which so takes 1 MiB at most."""
RUNS_FOR_A_PIECE = PIECE_SIZE // _RUN.size
"""More runs than this take more space than a piece."""
MOST_SEARCHED = 64 << 20
"""Bytes behind the last record that are looked through for another one: a torn one has 1 MiB at most."""
FILE, BLOCK = "file", "block"
"""Kinds of disks."""


@dataclass(frozen=True, slots=True)
class RestoringHeader:
    """What comes where. ``archive``, ``index``, ``map_id``: 16 bytes in hexadecimal digits; ``size`` of the drive.

    ``archive_name``: where the archive was, for sentences. ``target``: what tells the disk from others, of its kind.
    """

    archive: str
    index: str
    archive_name: str
    drive: str
    size: int
    map_id: str
    kind: str
    target: str


class Presence(NamedTuple):
    """What a record says: runs of clusters (first, count) and pieces (number, bits) of which the set ones are there."""

    runs: Sequence[tuple[int, int]]
    pieces: Sequence[tuple[int, bytes]] = ()


def encode_header(header: RestoringHeader) -> bytes:
    """The first block. FormatError where the names are too long for it."""
    text = json.dumps(asdict(header), sort_keys=True).encode()
    if _HEADER.size + len(text) > HEADER_SIZE:
        raise FormatError("what is to be told of a disk that is being restored does not fit", 0)
    behind = struct.pack("<II", VERSION, len(text)) + text + bytes(HEADER_SIZE - _HEADER.size - len(text))
    return MAGIC + _digest(behind) + behind


def decode_header(block: bytes) -> RestoringHeader:
    """What the first block says (FormatError)."""
    if len(block) < HEADER_SIZE or block[: len(MAGIC)] != MAGIC:
        raise FormatError("this is no map of a disk that is being restored", 0)
    _, digest, version, size = _HEADER.unpack_from(block)
    if _digest(block[len(MAGIC) + DIGEST_SIZE : HEADER_SIZE]) != digest:
        raise FormatError("the header does not match its digest", 0)
    if version != VERSION:
        raise FormatError(f"a newer version wrote it (format {version})", 0)
    try:
        return _header_of(json.loads(block[_HEADER.size : _HEADER.size + size]))
    except (ValueError, TypeError, RecursionError):
        raise FormatError("the header makes no sense", 0) from None


def _header_of(told: dict[str, object]) -> RestoringHeader:
    kinds = {field.name: int if field.name == "size" else str for field in fields(RestoringHeader)}
    if set(told) != set(kinds) or any(type(told[name]) is not kind for name, kind in kinds.items()):
        raise ValueError
    header = RestoringHeader(**told)  # type: ignore[arg-type]
    if any(len(bytes.fromhex(one)) != ID_SIZE for one in (header.archive, header.index, header.map_id)):
        raise ValueError
    if not 0 < header.size < 1 << 63 or header.kind not in (FILE, BLOCK):
        raise ValueError
    return header


def encode_record(map_id: bytes, number: int, presence: Presence) -> bytes:
    """One record, padded. At most MOST_RUNS runs and MOST_PIECES pieces."""
    runs, pieces = presence
    assert len(runs) <= MOST_RUNS and len(pieces) <= MOST_PIECES
    body = b"".join((*(_RUN.pack(*run) for run in runs), *(_NUMBER.pack(which) + bits for which, bits in pieces)))
    start = _RECORD.pack(_RECORD_MAGIC, len(runs), len(pieces), number, map_id, bytes(DIGEST_SIZE))
    digest = _digest(start + body)
    whole = start[:-DIGEST_SIZE] + digest + body
    return whole + bytes(-len(whole) % ALIGNMENT)


def in_records(presence: Iterator[tuple[int, int] | tuple[int, bytes]]) -> Iterator[Presence]:
    """Runs (first, count) and pieces (number, bits), put together so that each fits into a record."""
    runs: list[tuple[int, int]] = []
    pieces: list[tuple[int, bytes]] = []
    for one, what in presence:
        if isinstance(what, bytes):
            pieces.append((one, what))
        else:
            runs.append((one, what))
        if len(runs) == MOST_RUNS or len(pieces) == MOST_PIECES:
            yield Presence(runs, pieces)
            runs, pieces = [], []
    if runs or pieces:
        yield Presence(runs, pieces)


def records(
    read: Callable[[int, int], bytes], size: int, map_id: bytes, clusters: int
) -> Iterator[tuple[int, Presence]]:
    """Every record of a file of ``size`` bytes, with the offset behind it; FormatError at damage.

    ``read(offset, length)``: bytes of the file, fewer at its end. Where it ends in a torn record, that is left out.
    """
    at, number = HEADER_SIZE, 0
    while (found := _record_at(read, at, size, map_id)) is not None and found[0] == number:
        _, length, presence = found
        _check(presence, clusters, at)
        at += length
        number += 1
        yield at, presence
    later = _whole_behind(read, at, size, map_id, number)
    if later is not None:
        raise FormatError("a record is damaged, and there are more behind it", at)


def _record_at(
    read: Callable[[int, int], bytes], at: int, size: int, map_id: bytes
) -> tuple[int, int, Presence] | None:
    """(number, bytes, what it says) of the whole record at a place; None where none is."""
    start = read(at, _RECORD.size) if at + _RECORD.size <= size else b""
    if len(start) < _RECORD.size:
        return None
    magic, runs, pieces, number, owner, digest = _RECORD.unpack(start)
    if magic != _RECORD_MAGIC or owner != map_id or runs > MOST_RUNS or pieces > MOST_PIECES:
        return None
    length = runs * _RUN.size + pieces * (_NUMBER.size + PIECE_SIZE)
    body = read(at + _RECORD.size, length)
    if len(body) < length or _digest(start[:-DIGEST_SIZE] + bytes(DIGEST_SIZE) + body) != digest:
        return None
    whole = _RECORD.size + length
    return number, whole + -whole % ALIGNMENT, _presence_of(body, runs)


def _presence_of(body: bytes, runs: int) -> Presence:
    behind = runs * _RUN.size
    step = _NUMBER.size + PIECE_SIZE
    pieces = [
        (_NUMBER.unpack_from(body, at)[0], body[at + _NUMBER.size : at + step]) for at in range(behind, len(body), step)
    ]
    return Presence(list(_RUN.iter_unpack(body[:behind])), pieces)


def _check(presence: Presence, clusters: int, at: int) -> None:
    """Nothing is said of what the drive does not have (FormatError)."""
    runs_fit = all(count and first + count <= clusters for first, count in presence.runs)
    if not runs_fit or any(number * PIECE_CLUSTERS >= clusters for number, _ in presence.pieces):
        raise FormatError("a record tells of clusters that the drive does not have", at)


def _whole_behind(read: Callable[[int, int], bytes], at: int, size: int, map_id: bytes, number: int) -> int | None:
    """The offset of a whole record that comes after the end, which a torn one is not."""
    for offset in range(at, min(size, at + MOST_SEARCHED), ALIGNMENT):
        found = _record_at(read, offset, size, map_id)
        if found is not None and found[0] >= number:
            return offset
    return None


def _digest(content: bytes) -> bytes:
    return blake3(content).digest(DIGEST_SIZE)
