"""VMA archives as other programs write them: an encoder of its own, made from the specification, without our code."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CLUSTER, BLOCK = 65536, 4096
UUID = bytes.fromhex("00112233445566778899aabbccddeeff")


@dataclass(frozen=True)
class Style:
    """How an archive is laid out. Proxmox's own writer fills 58 entries, mixes devices, and comes out of order."""

    entries: int = 58
    mixed: bool = True
    backwards: bool = False
    filler: int = 0
    """An entry of device 0 with some cluster number, which readers skip, after so many others; 0: none."""
    whole_clusters: bool = False
    """Store zero blocks too."""


def _md5_at(content: bytearray, at: int) -> bytes:
    content[at : at + 16] = hashlib.md5(content).digest()
    return bytes(content)


def header(drives: Mapping[str, bytes], configs: Mapping[str, bytes]) -> bytes:
    blobs = bytearray(1)

    def blob(content: bytes) -> int:
        offset = len(blobs)
        blobs.extend(struct.pack("<H", len(content)) + content)
        return offset

    out = bytearray(12288)
    for slot, (name, content) in enumerate(configs.items()):
        struct.pack_into(">I", out, 2044 + 4 * slot, blob(name.encode() + b"\0"))
        struct.pack_into(">I", out, 3068 + 4 * slot, blob(content))
    for device, (name, disk) in enumerate(drives.items(), 1):
        struct.pack_into(">IIQ", out, 4096 + 32 * device, blob(name.encode() + b"\0"), 0, len(disk))
    size = 12288 + -(-len(blobs) // 512) * 512
    struct.pack_into(">4sI16sQ", out, 0, b"VMA\0", 1, UUID, 1_600_000_000)
    struct.pack_into(">III", out, 48, 12288, len(blobs), size)
    return _md5_at(out + blobs.ljust(size - 12288, b"\0"), 32)


def _entry(device: int, number: int, cluster: bytes, style: Style) -> tuple[bytes, bytes]:
    """The eight bytes of the table, and the stored blocks."""
    blocks = [cluster[at : at + BLOCK] for at in range(0, CLUSTER, BLOCK)]
    stored = [at for at, block in enumerate(blocks) if any(block) or (style.whole_clusters and any(cluster))]
    mask = sum(1 << at for at in stored)
    return struct.pack(">HBBI", mask, 0, device, number), b"".join(blocks[at] for at in stored)


def extent(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    data = b"".join(stored for _, stored in entries)
    out = bytearray(512)
    struct.pack_into(">4sHH16s", out, 0, b"VMAE", 0, len(data) // BLOCK, UUID)
    table = b"".join(entry for entry, _ in entries)
    out[40 : 40 + len(table)] = table
    return _md5_at(out, 24) + data


def write(drives: Mapping[str, bytes], configs: Mapping[str, bytes] | None = None, style: Style | None = None) -> bytes:
    """The archive; every drive's size must be a multiple of 512, as Proxmox has it."""
    style = style or Style()
    entries = []
    for device, disk in enumerate(drives.values(), 1):
        assert len(disk) % 512 == 0
        clusters = -(-len(disk) // CLUSTER)
        for number in range(clusters):
            cluster = disk[number * CLUSTER : (number + 1) * CLUSTER].ljust(CLUSTER, b"\0")
            entries.append((number, device, _entry(device, number, cluster, style)))
    if style.mixed:
        entries.sort(key=lambda entry: entry[:2])
    if style.backwards:
        # Memory comes in order whatever the disks do.
        memory = {number for number, name in enumerate(drives, 1) if name == "vmstate"}
        entries.sort(key=lambda entry: (entry[1] not in memory, entry[0] if entry[1] in memory else -entry[0]))
    table = [entry for _, _, entry in entries]
    if style.filler:
        filler = struct.pack(">HBBI", 0, 0, 0, 77), b""
        for at in range(len(table) - 1, 0, -style.filler):
            table.insert(at, filler)
    out = [header(drives, configs or {})]
    out += [extent(table[at : at + style.entries]) for at in range(0, len(table), style.entries)]
    return b"".join(out)
