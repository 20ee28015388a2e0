"""Memory that is not filled with zeros first: that would take as long as many a read."""

from __future__ import annotations

import ctypes

ALIGNMENT = 4096
"""Bytes: reads and writes past the page cache want memory, offset and length in multiples of a disk's logical block,
and none is longer."""

_bytearray_of = ctypes.pythonapi.PyByteArray_FromStringAndSize
_bytearray_of.restype = ctypes.py_object
_bytearray_of.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)


def unfilled(length: int) -> bytearray:
    """A bytearray of ``length`` bytes, whatever was in that memory before: every byte of it has to be written."""
    memory: bytearray = _bytearray_of(None, length)
    return memory


def unfilled_aligned(length: int) -> bytearray:
    """As unfilled(), beginning at a multiple of ALIGNMENT; ``length`` is at least twice that.

    A bytearray gives up its first bytes, and up to half of all, without moving the others.
    """
    memory = unfilled(length + ALIGNMENT)
    del memory[: -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % ALIGNMENT]
    del memory[length:]
    return memory


def is_aligned(memory: memoryview) -> bool:
    """Whether this is writable memory that begins and ends at multiples of ALIGNMENT; False of what cannot be told."""
    if memory.readonly or not len(memory) or len(memory) % ALIGNMENT:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(memory)) % ALIGNMENT == 0
