"""RawDevice against a bytearray: random requests of odd sizes, on disks of odd sizes."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from device_contract import contents, described
from doubles import CheckedDevice
from hypothesis import given, settings
from hypothesis import strategies as st

from pybackup.core.devices.raw import RawDevice

EDGES = sorted({size + more for size in (512, 4096, 65536, 131072) for more in (-1, 0, 1)} | {1, 3})

numbers = st.one_of(st.sampled_from([0, *EDGES]), st.integers(0, EDGES[-1]))
steps = st.lists(
    st.tuples(
        st.sampled_from(["pwrite", "write_now", "punch", "zero", "fast", "discard", "pread", "read_now", "flush"]),
        numbers,
        numbers,
        st.integers(1, 255),
    ),
    max_size=20,
)


async def apply(device: CheckedDevice, model: bytearray, step: tuple[str, int, int, int]) -> None:
    """Do one step on both, and compare what it reads."""
    action, first, second, fill = step
    offset = min(first, len(model))
    length = min(second, len(model) - offset)
    here = slice(offset, offset + length)
    data = bytes([fill]) * length
    match action:
        case "pwrite":
            await device.pwrite(offset, data)
            model[here] = data
        case "write_now":
            if device.write_now(offset, data):
                model[here] = data
        case "punch" | "zero":
            await device.write_zeroes(offset, length, may_punch=action == "punch")
            model[here] = bytes(length)
        case "fast":
            try:
                await device.write_zeroes(offset, length, fast_only=True)
            except OSError:
                return
            model[here] = bytes(length)
        case "discard":
            await device.discard(offset, length)
            model[here] = await device.pread(offset, length)
        case "pread":
            assert await device.pread(offset, length) == model[here]
        case "read_now":
            read: Any = device.read_now(offset, length)
            assert read is None or read == model[here]
        case "flush":
            await device.flush()


@settings(max_examples=150, deadline=None)
@given(size=st.sampled_from(EDGES), steps=steps, drop_cache=st.booleans())
def test_the_file_always_holds_what_was_written(
    size: int, steps: list[tuple[str, int, int, int]], drop_cache: bool
) -> None:
    async def test(path: Path) -> None:
        model = bytearray(size)
        path.write_bytes(model)
        device = CheckedDevice(RawDevice.open(path, writable=True, drop_cache=drop_cache))
        for step in steps:
            await apply(device, model, step)
        assert await contents(device) == model
        assert await described(device) == model
        await device.close()
        assert path.read_bytes() == model

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(test(Path(folder) / "disk.img"))
