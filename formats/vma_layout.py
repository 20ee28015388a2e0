"""The structures and constants of VMA version 1, and nothing else.

VMA is the backup format of Proxmox VE, specified in ``vma_spec.txt`` of the pve-qemu repository. All numbers are
big-endian except the length in front of a blob. What pybackup adds in reserved bytes is marked "ours".
"""

from __future__ import annotations

import struct

MAGIC = b"VMA\0"
VERSION = 1
HEADER_SIZE = 12288
"""Bytes before the blob buffer."""

HEADER_START = struct.Struct(">4sI16sQ16sIII")
"""magic, version, uuid, creation time, MD5, blob buffer offset, blob buffer size, header size"""

HEADER_MD5 = slice(32, 48)
CONFIG_NAMES_OFFSET = 2044
CONFIG_DATA_OFFSET = 3068
CONFIG_COUNT = 256
CONFIG_TABLE = struct.Struct(">256I")
DEVICE_INFO_OFFSET = 4096
DEVICE_INFO = struct.Struct(">I4xQQ8x")
"""name offset, size in bytes, exact size in bytes (ours: 0 means the same as size)"""
FIRST_DEVICE, LAST_DEVICE = 1, 254

BLOB_LENGTH = struct.Struct("<H")
MAX_BLOB = 0xFFFF
MAX_HEADER_WRITTEN = 512 * 1024
"""What Proxmox's own writer never exceeds."""
MAX_HEADER_READ = 64 * 1024 * 1024
"""More than 768 blobs of 64 KiB can take; a header that claims more is nonsense."""

EXTENSION_OFFSET = 60
EXTENSION = struct.Struct(">4sI16s16s")
"""Ours: magic, flags, uuid of the parent, digest of the parent's index"""
EXTENSION_MAGIC = b"PBX1"
FLAG_EXTENT_DIGESTS = 1
FLAG_DELTA = 2

SECTOR_SIZE = 512
BLOCK_SIZE = 4096
CLUSTER_SIZE = 65536
BLOCKS_PER_CLUSTER = 16
FULL_MASK = 0xFFFF
MAX_CLUSTERS = 1 << 32
MAX_DRIVE_SIZE = MAX_CLUSTERS * CLUSTER_SIZE
"""256 TiB: the cluster number is a u32."""

EXTENT_MAGIC = b"VMAE"
EXTENT_HEADER_SIZE = 512
EXTENT_START = struct.Struct(">4sHH16s16s")
"""magic, zero, number of blocks that follow, uuid, MD5"""
EXTENT_MD5 = slice(24, 40)
BLOCK_INFOS_OFFSET = 40
BLOCK_INFO_COUNT = 59
BLOCK_INFOS = struct.Struct(">59Q")
"""Each a u64 of: mask << 48 | byte 2 << 40 | device id << 32 | cluster number"""
CLUSTERS_PER_EXTENT = 58
"""Of 59 slots; Proxmox's writer leaves the last one free, and so there is room for our digest."""

DIGEST_MARK = 0xB3
DIGEST_SLOT_MARK = DIGEST_MARK << 40
"""Ours: byte 2 = 0xB3 and device id 0, which other readers skip, mark the slot with the extent's digest."""
EXTENT_DIGEST_SIZE = 6
CLUSTER_DIGEST_SIZE = 16
VMSTATE_NAME = "vmstate"
