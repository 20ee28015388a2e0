"""What was acknowledged after FLUSH or with FUA survives any crash, whether a backup runs or not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from doubles import CheckedDevice
from nbd_peer import NbdPeer
from nbd_serving import run, serving

from pybackup.core.archive.create import ArchiveOptions, make_writer
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.device import Buffer
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.jobs.backup import BackupJob
from pybackup.core.jobs.copying import Drive
from pybackup.core.sinks.file import FileSink
from pybackup.formats import nbd_wire as wire

SIZE = 2 << 20
BLOCK = 4096


class VolatileDevice(CheckedDevice):
    """A disk with a write cache: ``durable`` is what a power failure would leave.

    A flush makes durable what was complete when it began; whatever else there was may be lost.
    """

    def __init__(self, draw: random.Random) -> None:
        self.memory = MemoryDevice(SIZE)
        super().__init__(self.memory)
        self.durable = bytes(SIZE)
        self._draw = draw
        self._begun = self._ended = 0

    async def _dawdle(self) -> None:
        for _ in range(self._draw.randrange(6)):
            await asyncio.sleep(0)

    async def pwrite(self, offset: int, data: Buffer) -> None:
        await self._dawdle()
        await super().pwrite(offset, data)
        await self._dawdle()

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        await self._dawdle()
        await super().write_zeroes(offset, length, may_punch=may_punch, fast_only=fast_only)

    async def flush(self) -> None:
        self._begun += 1
        number, complete = self._begun, self.memory.contents()
        await self._dawdle()
        if number > self._ended:
            # Flushes may end in any order, and none takes back what a later one has done.
            self._ended, self.durable = number, complete

    def write_now(self, offset: int, data: Buffer) -> bool:
        return self._draw.random() < 0.5 and super().write_now(offset, data)


class Guest:
    """A connection with blocks of its own; knows what it was promised."""

    def __init__(self, peer: NbdPeer, device: VolatileDevice, blocks: Sequence[int], draw: random.Random) -> None:
        self.peer, self.device, self.blocks, self.draw = peer, device, blocks, draw
        self.answered: dict[int, bytes] = {}
        self.checks = 0

    async def work(self, steps: int) -> None:
        for _ in range(steps):
            if self.draw.random() < 0.2:
                await self.flush()
            else:
                await self.write()

    async def write(self) -> None:
        block, content = self.draw.choice(self.blocks), self.draw.randbytes(BLOCK)
        flags = wire.CMD_FLAG_FUA if self.draw.random() < 0.2 else 0
        if self.draw.random() < 0.2:
            content = bytes(BLOCK)
            reply = await self.peer.ask(wire.CMD_WRITE_ZEROES, block * BLOCK, BLOCK, flags)
        else:
            reply = await self.peer.ask(wire.CMD_WRITE, block * BLOCK, flags=flags, data=content)
        assert not reply.error
        self.answered[block] = content
        if flags:
            self.check(block)

    async def flush(self) -> None:
        assert not (await self.peer.ask(wire.CMD_FLUSH)).error
        for block in self.answered:
            self.check(block)

    def check(self, block: int) -> None:
        # Whatever others flush later only adds to it: nobody else writes to this block.
        assert self.device.durable[block * BLOCK : (block + 1) * BLOCK] == self.answered[block]
        self.checks += 1


@pytest.mark.parametrize("seed", range(4))
def test_what_was_acknowledged_is_durable(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    device = VolatileDevice(draw)
    disk = CopyBeforeWrite(device)
    path = str(tmp_path / "nbd.sock")

    async def backups() -> None:
        with ThreadPoolExecutor(1) as pool:
            for number in range(3):
                options = ArchiveOptions(uuid=bytes(16), created=0, level=1)
                sink = FileSink(str(tmp_path / f"{number}.vma"))
                writer = make_writer([("disk", SIZE)], [], options, sink, pool)
                await BackupJob([Drive(1, "disk", disk)], writer, pool).run()

    async def test() -> None:
        async with serving(path, disk):
            peers = [await NbdPeer.connect(path, "disk") for _ in range(4)]
            guests = [
                Guest(peer, device, range(number, SIZE // BLOCK, 4), random.Random(seed * 10 + number))
                for number, peer in enumerate(peers)
            ]
            await asyncio.gather(backups(), *(guest.work(150) for guest in guests))
            assert all(guest.checks for guest in guests)
            for peer in peers:
                await peer.leave()

    run(test())
