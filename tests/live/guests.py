"""Guests whose every change is known beforehand: what the disks hold after the first n changes is a function of n.

So an image alone tells of which instant it is, and whether it is of one instant at all.
"""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from live.nbd_client import Nbd

BLOCK = 4096
NUMBER = struct.Struct("<Q")


class Change(NamedTuple):
    """A block of a disk gets new content, or a range becomes zero (content is None)."""

    disk: str
    offset: int
    length: int
    content: bytes | None


class History:
    """The changes of one guest, within the same range [start, end) of several disks."""

    def __init__(self, seed: int, disks: list[str], start: int, end: int) -> None:
        self._seed, self._disks, self.start, self.end = seed, disks, start, end

    def change(self, number: int) -> Change:
        draw = random.Random(self._seed << 40 | number)
        disk = self._disks[number % len(self._disks)]
        offset = draw.randrange(self.start, self.end - BLOCK + 1, 512)
        if number % 16 == 7:
            # What this disk's last change has written becomes zero: a change that changes nothing could not be counted.
            offset = self.change(number - len(self._disks)).offset
            return Change(disk, offset, min(draw.randrange(512, 200_000), self.end - offset), None)
        return Change(disk, offset, BLOCK, self._mark(number) + draw.randbytes(BLOCK - 16))

    def _mark(self, number: int) -> bytes:
        return NUMBER.pack(0xC0FFEE << 40 | self._seed) + NUMBER.pack(number)

    def instant(self, before: Mapping[str, bytes], images: Mapping[str, bytes], first: int = 0) -> int:
        """The number of changes that the images hold; AssertionError if they are not of one instant.

        ``before`` is what they held after the ``first`` changes.
        """
        disks = {name: bytearray(before[name][self.start : self.end]) for name in self._disks}
        wanted = {name: images[name][self.start : self.end] for name in self._disks}
        last = max(self._last_mark(wanted), first - 1)
        number = first
        while number <= last or disks != wanted:
            # Changes to zero leave no mark, and erase some.
            assert number <= last + 16, f"no instant: the last change found is {last}"
            self._apply(disks, self.change(number))
            number += 1
        return number

    def after(self, before: Mapping[str, bytes], number: int) -> dict[str, bytes]:
        """What the range of each disk holds after so many changes."""
        disks = {name: bytearray(before[name][self.start : self.end]) for name in self._disks}
        for one in range(number):
            self._apply(disks, self.change(one))
        return {name: bytes(disk) for name, disk in disks.items()}

    def _last_mark(self, images: Mapping[str, bytes]) -> int:
        return max(number for name in self._disks for number in (*self._marks(images[name]), -1))

    def _marks(self, image: bytes) -> Iterator[int]:
        mark = NUMBER.pack(0xC0FFEE << 40 | self._seed)
        at = image.find(mark)
        while at >= 0:
            if at + 16 <= len(image):
                yield NUMBER.unpack_from(image, at + 8)[0]
            at = image.find(mark, at + 1)

    def _apply(self, disks: dict[str, bytearray], change: Change) -> None:
        at = change.offset - self.start
        disks[change.disk][at : at + change.length] = change.content or bytes(change.length)


class Guest(threading.Thread):
    """Makes the changes of a history, one after the other, until it is stopped; ``done`` have been answered."""

    def __init__(self, socket: str, history: History, disks: list[str]) -> None:
        super().__init__()
        self.history, self.done = history, 0
        self.failure: Exception | None = None
        self._disks = {name: Nbd(socket, name) for name in disks}
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._make(self.history.change(self.done))
                self.done += 1
        except OSError as error:
            self.failure = error

    def _make(self, change: Change) -> None:
        if change.content is None:
            self._disks[change.disk].zero(change.offset, change.length)
        else:
            self._disks[change.disk].write(change.offset, change.content)

    def __enter__(self) -> Guest:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()
        for disk in self._disks.values():
            disk.close()
        assert self.failure is None, f"the guest failed: {self.failure}"
