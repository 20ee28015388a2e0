"""A guest of a few bytes: a boot sector that reads, writes and reads back its disk through the BIOS, then tells it."""

from __future__ import annotations

SECTOR = 512


def _disk_call(kind: int, sector: int, buffer: int) -> bytes:
    """mov ax, kind (2: read, 3: write) of one sector; mov cx, sector; mov bx, buffer; int 13h."""
    return bytes([0xB8, 1, kind, 0xB9, sector, 0, 0xBB, buffer & 255, buffer >> 8, 0xCD, 0x13])


def bootable(message: bytes, size: int) -> bytes:
    """A disk whose second sector holds ``message``, which is copied to the third, read from there and printed on COM1.

    Without that being possible, nothing is printed.
    """
    steps = [_disk_call(2, 2, 0x7E00), _disk_call(3, 3, 0x7E00), _disk_call(2, 3, 0x8000)]
    # lodsb; test al,al; jz behind; mov dx,3F8h; out dx,al; jmp back; hlt; jmp to the hlt
    printing = bytes([0xBE, 0, 0x80, 0xAC, 0x84, 0xC0, 0x74, 6, 0xBA, 0xF8, 3, 0xEE, 0xEB, 0xF5, 0xF4, 0xEB, 0xFD])
    # xor ax,ax; mov ds,ax; mov es,ax; mov dh,0 (dl is the drive that was booted from)
    code = bytes([0x31, 0xC0, 0x8E, 0xD8, 0x8E, 0xC0, 0xB6, 0])
    left = sum(len(step) + 2 for step in steps) + len(printing) - 3
    for step in steps:
        left -= len(step) + 2
        code += step + bytes([0x72, left])  # jc to the hlt
    code += printing
    disk = bytearray(size)
    disk[: len(code)] = code
    disk[510:512] = b"\x55\xaa"
    disk[SECTOR : SECTOR + len(message) + 1] = message + b"\0"
    return bytes(disk)
