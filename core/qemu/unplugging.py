"""Disks that are unplugged from a machine while they are backed up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .disks import QemuDisk

PERIPHERALS = "/machine/peripheral/"
"""Where QEMU keeps devices with an id."""


class Unplugging:
    """Fixed: the disks. Changing: ``names``, those of disks whose device has gone, in this order."""

    def __init__(self, disks: Sequence[QemuDisk]) -> None:
        self._disks = disks
        self.names: list[str] = []

    def take(self, event: Mapping[str, Any]) -> None:
        """Note what an event of the monitor tells."""
        if event.get("event") != "DEVICE_DELETED":
            return
        path = str(event.get("data", {}).get("path", ""))
        for disk in self._disks:
            if disk.name not in self.names and _is_part_of(disk.device, path):
                self.names.append(disk.name)


def _is_part_of(device: str, path: str) -> bool:
    """Whether a device, told by its id or its path, is the one at ``path``, or within it."""
    if not device or not path:
        return False
    whole = device if device.startswith("/") else PERIPHERALS + device
    return whole == path or whole.startswith(f"{path}/")
