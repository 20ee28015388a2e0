"""A client among hostile ones: whatever they do, what it reads is what it wrote."""

from __future__ import annotations

import random
import threading

from live.nbd_client import Nbd


class HonestClient(threading.Thread):
    """Writes, zeroes and reads a range of a disk that nobody else writes to, and compares.

    ``failure`` says what was wrong. Changing: the model, and how much was done.
    """

    def __init__(self, seed: int, path: str, export: str, start: int, end: int) -> None:
        super().__init__()
        self._draw, self._nbd = random.Random(seed), Nbd(path, export)
        self.start_at, self.end = start, end
        self.model = bytearray(self._nbd.read(start, end - start))
        self._stopping = threading.Event()
        self.requests = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._request()
                self.requests += 1
            assert self._nbd.read(self.start_at, len(self.model)) == self.model
        except BaseException as failure:
            self.failure = failure

    def _request(self) -> None:
        low = self._draw.randrange(len(self.model))
        high = min(len(self.model), low + self._draw.choice([1, 512, 4096, 65_536, 200_000]))
        offset = self.start_at + low
        match self._draw.choice(["read", "write", "zero", "flush"]):
            case "read":
                assert self._nbd.read(offset, high - low) == self.model[low:high], f"wrong data at {offset}"
            case "write":
                self.model[low:high] = self._draw.randbytes(high - low)
                self._nbd.write(offset, bytes(self.model[low:high]), fua=self._draw.random() < 0.1)
            case "zero":
                self.model[low:high] = bytes(high - low)
                self._nbd.zero(offset, high - low)
            case "flush":
                self._nbd.flush()

    def stop(self) -> None:
        """End it, and say what it found."""
        self._stopping.set()
        self.join()
        self._nbd.close()
        if self.failure is not None:
            raise self.failure
