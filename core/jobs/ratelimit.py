"""How fast a job may go. Arithmetic only: the clock is a parameter, and waiting is the caller's business."""

from __future__ import annotations

from collections.abc import Callable

from pybackup.core.errors import RequestError

SLICE = 0.1
"""Seconds in a slice, as in QEMU's block jobs: each slice has its quota, what exceeds it is taken from the next."""

_ROUNDING = 1e-6
"""Slices: who slept until the next slice has arrived there, whatever the sum of floating point numbers says."""


class RateLimit:
    """A limit in bytes a second; 0 means none.

    Fixed: the clock, in seconds. Changing: the speed, the current slice and what was charged to it; owned by the
    event loop.
    """

    def __init__(self, speed: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slice_start = clock()
        self._charged = 0.0
        self.set_speed(speed)

    @property
    def speed(self) -> int:
        """Bytes a second, or 0 for no limit."""
        return self._speed

    def set_speed(self, speed: int) -> None:
        """Change the speed from now on; what was charged before is forgiven. RequestError if it is negative."""
        if speed < 0:
            raise RequestError(f"a speed of {speed} bytes a second is negative; 0 means no limit")
        self._speed = speed
        self._slice_start = self._clock()
        self._charged = 0.0

    @property
    def _quota(self) -> float:
        return self._speed * SLICE

    def charge(self, size: int) -> None:
        """Count ``size`` bytes that are being copied, whoever asked for them."""
        if self._speed:
            self._enter_slice()
            self._charged += size

    def delay(self) -> float:
        """Seconds to wait until the next byte may be copied; 0.0 where none."""
        if not self._speed:
            return 0.0
        self._enter_slice()
        if self._charged < self._quota:
            return 0.0
        slices = int(self._charged // self._quota)
        return max(0.0, self._slice_start + slices * SLICE - self._clock())

    def _enter_slice(self) -> None:
        """Go on to the slice that the clock says; the excess of those that passed goes with it."""
        passed = int((self._clock() - self._slice_start) / SLICE + _ROUNDING)
        if passed > 0:
            self._slice_start += passed * SLICE
            self._charged = max(0.0, self._charged - passed * self._quota)
