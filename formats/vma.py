"""VMA version 1: headers and extents, between bytes and values.

Everything read is untrusted: lengths, offsets and names are checked before they are used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeVar
from uuid import UUID

from . import vma_layout as layout
from .buffer import Buffer
from .clusters import EMPTY_EXTENT_DIGEST, mask_within
from .errors import FormatError, NotAnArchiveError, UnsupportedError
from .text import from_utf8, shown, utf8_bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DriveInfo:
    """A drive of an archive: its id (1..254), its name, and its exact size in bytes."""

    drive_id: int
    name: str
    size: int

    @property
    def recorded_size(self) -> int:
        """The size that the VMA header records: rounded up to 512 bytes."""
        return -(-self.size // layout.SECTOR_SIZE) * layout.SECTOR_SIZE

    @property
    def clusters(self) -> int:
        """How many clusters the drive has; the last may be partial."""
        return -(-self.size // layout.CLUSTER_SIZE)

    def allowed_mask(self, cluster: int) -> int:
        """The mask bits whose blocks begin on the drive."""
        return mask_within(self.recorded_size - cluster * layout.CLUSTER_SIZE)


@dataclass(frozen=True)
class Header:
    """What stands in front of the extents. ``created`` is in seconds since the epoch, ``uuid`` 16 bytes.

    ``is_ours``: it has our extension, which pybackup has written into every header from the beginning. The header's MD5
    covers it, so damage does not make a foreign archive of one of ours.
    """

    uuid: bytes
    created: int
    drives: tuple[DriveInfo, ...]
    configs: tuple[tuple[str, bytes], ...] = ()
    extent_digests: bool = True
    parent_uuid: bytes = bytes(16)
    parent_index_digest: bytes = bytes(16)
    is_delta: bool = False
    is_ours: bool = True

    def may_end_early(self, drive: DriveInfo) -> bool:
        """Whether a drive is the memory of a machine, of which other writers store in order what there is.

        An archive of ours has every cluster of every drive, whatever a drive is called.
        """
        return not self.is_ours and drive.name == layout.VMSTATE_NAME

    def drive(self, name: str) -> DriveInfo | None:
        """The drive of that name, however a locale has decoded it, or as we show it; or None."""
        return find_name(self.by_name, name)

    @cached_property
    def by_name(self) -> dict[str, DriveInfo]:
        """The drives by their name."""
        return {drive.name: drive for drive in self.drives}

    @cached_property
    def by_id(self) -> dict[int, DriveInfo]:
        """The drives by their id."""
        return {drive.drive_id: drive for drive in self.drives}


def find_name(named: Mapping[str, T], name: str) -> T | None:
    """What has that name, however a locale has decoded it, or as we show it; or None."""
    with suppress(UnicodeEncodeError):
        name = from_utf8(utf8_bytes(name))
    if name in named:
        return named[name]
    return next((value for key, value in named.items() if shown(key) == name), None)


def check_name(name: str, kind: str) -> None:
    """Refuse a name that could leave a folder, steer a terminal, or not be stored (FormatError)."""
    if not name or name in (".", "..") or "/" in name or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name):
        raise FormatError(f"{name!r} cannot be the name of a {kind}")
    try:
        length = len(utf8_bytes(name))
    except UnicodeEncodeError:
        raise FormatError(f"{name!r} cannot be the name of a {kind}") from None
    if length > 255:
        raise FormatError(f"the name of a {kind} is longer than 255 bytes")


def check_names(names: Iterable[str], kind: str) -> None:
    """check_name() for each, and no two alike."""
    seen: set[str] = set()
    for name in names:
        check_name(name, kind)
        if name in seen:
            raise FormatError(f"two {kind}s are called {name!r}")
        seen.add(name)


# -- header, written ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _BlobBuffer:
    """The blob buffer under construction; offset 0 is never used, for 0 means "none"."""

    content: bytearray = field(default_factory=lambda: bytearray(1))

    def add(self, blob: bytes) -> int:
        """Append a blob and return its offset."""
        if len(blob) > layout.MAX_BLOB:
            raise FormatError(f"a blob of {len(blob)} bytes is larger than VMA can hold ({layout.MAX_BLOB} bytes)")
        offset = len(self.content)
        self.content += layout.BLOB_LENGTH.pack(len(blob)) + blob
        return offset

    def add_name(self, name: str) -> int:
        return self.add(utf8_bytes(name) + b"\0")


def encode_header(header: Header) -> bytes:
    """The bytes of a header, its MD5 set; FormatError where VMA cannot hold what is asked."""
    _check_writable(header)
    blobs = _BlobBuffer()
    names, data = [0] * layout.CONFIG_COUNT, [0] * layout.CONFIG_COUNT
    for slot, (name, content) in enumerate(header.configs):
        names[slot], data[slot] = blobs.add_name(name), blobs.add(content)
    devices = {drive.drive_id: (blobs.add_name(drive.name), drive) for drive in header.drives}
    area = -(-len(blobs.content) // layout.SECTOR_SIZE) * layout.SECTOR_SIZE
    size = layout.HEADER_SIZE + area
    if size > layout.MAX_HEADER_WRITTEN:
        raise FormatError("the configurations are larger than the 512 KiB that VMA's header can hold")
    out = bytearray(size)
    layout.HEADER_START.pack_into(
        out,
        0,
        layout.MAGIC,
        layout.VERSION,
        header.uuid,
        header.created,
        bytes(16),
        layout.HEADER_SIZE,
        len(blobs.content),
        size,
    )
    _put_extension(out, header)
    layout.CONFIG_TABLE.pack_into(out, layout.CONFIG_NAMES_OFFSET, *names)
    layout.CONFIG_TABLE.pack_into(out, layout.CONFIG_DATA_OFFSET, *data)
    for drive_id, (name_offset, drive) in devices.items():
        exact = drive.size if drive.size != drive.recorded_size else 0
        at = layout.DEVICE_INFO_OFFSET + drive_id * layout.DEVICE_INFO.size
        layout.DEVICE_INFO.pack_into(out, at, name_offset, drive.recorded_size, exact)
    out[layout.HEADER_SIZE : layout.HEADER_SIZE + len(blobs.content)] = blobs.content
    out[layout.HEADER_MD5] = _md5_without(out, layout.HEADER_MD5)
    return bytes(out)


def _check_writable(header: Header) -> None:
    if not header.drives:
        raise FormatError("an archive needs at least one drive")
    if len(header.drives) > layout.LAST_DEVICE:
        raise FormatError(f"VMA holds at most {layout.LAST_DEVICE} drives")
    if len(header.configs) > layout.CONFIG_COUNT:
        raise FormatError(f"VMA holds at most {layout.CONFIG_COUNT} configurations")
    if not 0 <= header.created < 1 << 63:
        raise FormatError(f"{header.created} seconds since 1970 is no time that VMA can hold")
    check_names((drive.name for drive in header.drives), "drive")
    check_names((name for name, _ in header.configs), "configuration")
    for drive in header.drives:
        if not 0 < drive.size <= layout.MAX_DRIVE_SIZE:
            raise FormatError(f"drive {drive.name!r} has {drive.size} bytes; VMA holds 1 byte to 256 TiB")


def _put_extension(out: bytearray, header: Header) -> None:
    flags = layout.FLAG_EXTENT_DIGESTS * header.extent_digests | layout.FLAG_DELTA * header.is_delta
    if header.is_ours:
        layout.EXTENSION.pack_into(
            out,
            layout.EXTENSION_OFFSET,
            layout.EXTENSION_MAGIC,
            flags,
            header.parent_uuid,
            header.parent_index_digest,
        )


def _md5_without(buffer: Buffer, own: slice) -> bytes:
    """The MD5 of these bytes, those where it is kept taken as zeros; nothing is copied, for a header may be large."""
    view = memoryview(buffer)
    # VMA prescribes MD5; it guards against damage here, not against an attacker.
    summed = hashlib.md5(view[: own.start], usedforsecurity=False)
    summed.update(bytes(own.stop - own.start))
    summed.update(view[own.stop :])
    return summed.digest()


# -- header, read ---------------------------------------------------------------------------------------------------


def header_length(start: Buffer) -> int:
    """How many bytes the header has in all, from its first 60 bytes; checked against nonsense (FormatError)."""
    if len(start) < layout.HEADER_START.size or bytes(start[:4]) != layout.MAGIC:
        raise NotAnArchiveError("this is not a VMA archive")
    _, version, _, _, _, blobs_at, blobs_size, size = layout.HEADER_START.unpack_from(start)
    if version != layout.VERSION:
        raise FormatError(f"VMA version {version} is not known", 4)
    if not layout.HEADER_SIZE < size <= layout.MAX_HEADER_READ:
        raise FormatError(f"the header claims a size of {size} bytes", 56)
    if blobs_at < layout.HEADER_SIZE or blobs_at + blobs_size > size:
        raise FormatError("the blob buffer lies outside the header", 48)
    return int(size)


def decode_header(content: Buffer, *, allow_delta: bool = False) -> Header:
    """A header from all of its bytes; FormatError for anything that is not right.

    UnsupportedError for features that we do not know, and, unless ``allow_delta``, for an archive that holds only what
    changed since another: what it lacks would be taken for lost, or for zeros.
    """
    if header_length(content) != len(content):
        raise FormatError("the header is cut short", len(content))
    _, _, uuid, created, md5, blobs_at, blobs_size, _ = layout.HEADER_START.unpack_from(content)
    if _md5_without(content, layout.HEADER_MD5) != md5:
        raise FormatError("the header's MD5 is wrong: the header is damaged", 32)
    blobs = memoryview(content)[blobs_at : blobs_at + blobs_size]
    flags, parent, parent_digest = _get_extension(content)
    if (flags or 0) & layout.FLAG_DELTA and not allow_delta:
        raise UnsupportedError(
            f"the archive holds only what changed since its parent (uuid {UUID(bytes=parent)}), and can only be read"
            " together with that, by a sound index and from a file or a store"
        )
    return Header(
        uuid=uuid,
        created=created,
        drives=_get_drives(content, blobs, ours=flags is not None),
        configs=_get_configs(content, blobs),
        extent_digests=bool((flags or 0) & layout.FLAG_EXTENT_DIGESTS),
        is_delta=bool((flags or 0) & layout.FLAG_DELTA),
        parent_uuid=parent,
        parent_index_digest=parent_digest,
        is_ours=flags is not None,
    )


def _get_extension(content: Buffer) -> tuple[int | None, bytes, bytes]:
    magic, flags, parent, digest = layout.EXTENSION.unpack_from(content, layout.EXTENSION_OFFSET)
    if magic != layout.EXTENSION_MAGIC:
        return None, bytes(16), bytes(16)
    if flags & ~(layout.FLAG_EXTENT_DIGESTS | layout.FLAG_DELTA):
        raise UnsupportedError(f"the archive uses features (flags {flags:#x}) that this version does not know", 64)
    return flags, parent, digest


def _get_blob(blobs: memoryview, offset: int, kind: str) -> bytes:
    if offset + layout.BLOB_LENGTH.size <= len(blobs):
        (length,) = layout.BLOB_LENGTH.unpack_from(blobs, offset)
        start = offset + layout.BLOB_LENGTH.size
        if start + length <= len(blobs):
            return bytes(blobs[start : start + length])
    raise FormatError(f"the {kind} points outside the blob buffer")


def _get_name(blobs: memoryview, offset: int, kind: str) -> str:
    blob = _get_blob(blobs, offset, f"name of a {kind}")
    if not blob.endswith(b"\0"):
        raise FormatError(f"the name of a {kind} does not end in NUL")
    return from_utf8(blob[:-1])


def _get_drives(content: Buffer, blobs: memoryview, ours: bool) -> tuple[DriveInfo, ...]:
    drives = []
    table = memoryview(content)[layout.DEVICE_INFO_OFFSET :][: (layout.LAST_DEVICE + 1) * layout.DEVICE_INFO.size]
    for drive_id, (name_offset, recorded, exact) in enumerate(layout.DEVICE_INFO.iter_unpack(table)):
        if drive_id < layout.FIRST_DEVICE:
            continue
        if not name_offset or not recorded:
            continue
        name = _get_name(blobs, name_offset, "drive")
        drives.append(DriveInfo(drive_id, name, _exact_size(name, recorded, exact if ours else 0)))
    if not drives:
        raise FormatError("the header names no drives")
    check_names((drive.name for drive in drives), "drive")
    return tuple(drives)


def _exact_size(name: str, recorded: int, exact: int) -> int:
    if recorded > layout.MAX_DRIVE_SIZE:
        raise FormatError(f"drive {name!r} claims {recorded} bytes, more than VMA can hold")
    if exact and not recorded - layout.SECTOR_SIZE < exact < recorded:
        raise FormatError(f"the two sizes of drive {name!r} disagree")
    return exact or recorded


def _get_configs(content: Buffer, blobs: memoryview) -> tuple[tuple[str, bytes], ...]:
    names = layout.CONFIG_TABLE.unpack_from(content, layout.CONFIG_NAMES_OFFSET)
    data = layout.CONFIG_TABLE.unpack_from(content, layout.CONFIG_DATA_OFFSET)
    configs = tuple(
        (_get_name(blobs, name, "configuration"), _get_blob(blobs, at, "configuration"))
        for name, at in zip(names, data, strict=True)
        if name and at
    )
    check_names((name for name, _ in configs), "configuration")
    return configs


# -- extents --------------------------------------------------------------------------------------------------------


class Slot(NamedTuple):
    """One entry of an extent: which cluster of which drive, and the mask of its stored blocks."""

    drive_id: int
    cluster: int
    mask: int


class SlotRun(NamedTuple):
    """Slots in a row whose clusters are neighbours on a drive and store the same blocks; ``first`` is a cluster."""

    drive_id: int
    first: int
    clusters: int
    mask: int


class ExtentHeader(NamedTuple):
    """An extent's table: its slots, one by one and in runs, its data's length in bytes, and its digest if it has one.

    A full extent of zero clusters in a row has no slots, only a run.
    """

    slots: tuple[Slot, ...]
    runs: Sequence[SlotRun]
    data_size: int
    digest: bytes | None


def runs_of_slots(slots: Iterable[Slot]) -> list[SlotRun]:
    """The slots in their order, neighbours joined: on most disks a few runs instead of 58 slots."""
    runs: list[SlotRun] = []
    drive_id = first = behind = mask = -1
    for slot in slots:
        drive, cluster, blocks = slot
        if cluster == behind and drive == drive_id and blocks == mask:
            behind += 1
            continue
        if behind >= 0:
            runs.append(SlotRun(drive_id, first, behind - first, mask))
        drive_id, first, behind, mask = drive, cluster, cluster + 1, blocks
    if behind >= 0:
        runs.append(SlotRun(drive_id, first, behind - first, mask))
    return runs


def pack_slot(drive_id: int, cluster: int, mask: int) -> int:
    """The u64 of an entry in an extent's table."""
    return mask << 48 | drive_id << 32 | cluster


def pack_slots(runs: Iterable[SlotRun]) -> list[int]:
    """The entries of these runs, slot by slot."""
    packed: list[int] = []
    for drive_id, first, clusters, mask in runs:
        start = pack_slot(drive_id, first, mask)
        packed += range(start, start + clusters)
    return packed


def pack_digest(digest: bytes) -> int:
    """The u64 of the slot that holds an extent's digest (six bytes): two of them stand before the mark, four behind."""
    return int.from_bytes(digest[:2], "big") << 48 | layout.DIGEST_SLOT_MARK | int.from_bytes(digest[2:], "big")


def encode_extent_header(uuid: bytes, slots: Sequence[int], blocks: int, digest: bytes | None) -> bytes:
    """The 512 bytes before an extent's data, from at most 58 packed slots."""
    out = bytearray(layout.EXTENT_HEADER_SIZE)
    layout.EXTENT_START.pack_into(out, 0, layout.EXTENT_MAGIC, 0, blocks, uuid, bytes(16))
    last = 0 if digest is None else pack_digest(digest)
    empty = (0,) * (layout.CLUSTERS_PER_EXTENT - len(slots))
    layout.BLOCK_INFOS.pack_into(out, layout.BLOCK_INFOS_OFFSET, *slots, *empty, last)
    out[layout.EXTENT_MD5] = _md5_without(out, layout.EXTENT_MD5)
    return bytes(out)


def encode_zero_extents(uuid: bytes, drive_id: int, first: int, count: int, digest: bytes | None) -> bytes:
    """The extents of ``count`` zero clusters from ``first`` on; they have no data.

    A disk of a terabyte has some 290,000 of them, so this does the least that can be done for each.
    """
    out = bytearray()
    per_extent = layout.CLUSTERS_PER_EXTENT
    start = layout.EXTENT_START.pack(layout.EXTENT_MAGIC, 0, 0, uuid, bytes(16))
    last = 0 if digest is None else pack_digest(digest)
    infos, md5 = layout.BLOCK_INFOS.pack, hashlib.md5
    base = drive_id << 32
    full_end = first + count - count % per_extent
    for cluster in range(base + first, base + full_end, per_extent):
        table = infos(*range(cluster, cluster + per_extent), last)
        out += start[:24]
        out += md5(start + table, usedforsecurity=False).digest()
        out += table
    if count % per_extent:
        slots = range(base + full_end, base + first + count)
        out += encode_extent_header(uuid, slots, 0, digest)
    return bytes(out)


def decode_extent_header(content: Buffer, header: Header, at: int) -> ExtentHeader:
    """Check and read 512 bytes that begin an extent; ``at`` is their offset, for messages (FormatError)."""
    magic, reserved, blocks, uuid, md5 = layout.EXTENT_START.unpack_from(content)
    if magic != layout.EXTENT_MAGIC or reserved:
        raise FormatError("an extent does not begin with its magic", at)
    if _md5_without(content, layout.EXTENT_MD5) != md5:
        raise FormatError("the MD5 of an extent header is wrong", at)
    if uuid != header.uuid:
        raise FormatError("an extent carries the uuid of another archive", at)
    return _decode_slots(content, blocks, header.by_id, header.extent_digests, at)


def _decode_slots(
    content: Buffer, blocks: int, drives: dict[int, DriveInfo], has_digest: bool, at: int
) -> ExtentHeader:
    infos = layout.BLOCK_INFOS.unpack_from(content, layout.BLOCK_INFOS_OFFSET)
    if not blocks and (run := _zero_run(infos, drives, has_digest)) is not None:
        return run
    slots, digest, found = [], None, 0
    for info in infos:
        drive_id = info >> 32 & 0xFF
        if not drive_id:
            if has_digest and info >> 40 & 0xFF == layout.DIGEST_MARK:
                digest = (info >> 48).to_bytes(2, "big") + (info & 0xFFFFFFFF).to_bytes(4, "big")
            continue
        slot = Slot(drive_id, info & 0xFFFFFFFF, info >> 48)
        found += slot.mask.bit_count()
        slots.append(slot)
        _check_slot(slot, drives, at)
    if found != blocks:
        raise FormatError(f"an extent's masks name {found} blocks, its header {blocks}", at)
    if has_digest and digest is None:
        raise FormatError("an extent has no digest, though the header promises one", at)
    return ExtentHeader(tuple(slots), runs_of_slots(slots), blocks * layout.BLOCK_SIZE, digest)


_EMPTY_DIGEST_SLOT = pack_digest(EMPTY_EXTENT_DIGEST)


def _zero_run(infos: tuple[int, ...], drives: dict[int, DriveInfo], has_digest: bool) -> ExtentHeader | None:
    """A full extent of zero clusters in a row, as a sparse disk has very many, recognised in one comparison."""
    count, first = layout.CLUSTERS_PER_EXTENT, infos[0]
    if infos[count] != (_EMPTY_DIGEST_SLOT if has_digest else 0) or infos[:count] != tuple(range(first, first + count)):
        return None
    drive = drives.get(first >> 32)
    cluster = first & 0xFFFFFFFF
    if drive is None or cluster + count > drive.clusters:
        return None
    runs = (SlotRun(drive.drive_id, cluster, count, 0),)
    return ExtentHeader((), runs, 0, EMPTY_EXTENT_DIGEST if has_digest else None)


def _check_slot(slot: Slot, drives: dict[int, DriveInfo], at: int) -> None:
    drive = drives.get(slot.drive_id)
    if drive is None:
        raise FormatError(f"an extent names drive {slot.drive_id}, which the header does not", at)
    if slot.cluster >= drive.clusters:
        raise FormatError(f"an extent names cluster {slot.cluster} behind the end of drive {drive.name!r}", at)
    # Other writers may store the whole last cluster; only what begins on the drive is ours to keep.
    if slot.mask != layout.FULL_MASK and slot.mask & ~drive.allowed_mask(slot.cluster):
        raise FormatError(f"an extent stores blocks behind the end of drive {drive.name!r}", at)
