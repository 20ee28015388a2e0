"""Which disk a device that goes takes along."""

from __future__ import annotations

from typing import Any

from pybackup.core.qemu.disks import QemuDisk
from pybackup.core.qemu.unplugging import Unplugging

DISKS = [
    QemuDisk("a", "1", 512, "/machine/peripheral/virtio1/virtio-backend"),
    QemuDisk("b", "2", 512, "scsi1"),
    QemuDisk("c", "3", 512, "/machine/peripheral-anon/device[1]"),
    QemuDisk("d", "4", 512, "/machine/peripheral-anon/device[10]/scsi.0/legacy[0]"),
    QemuDisk("e", "5", 512),
]


def deleted(path: str) -> dict[str, Any]:
    return {"event": "DEVICE_DELETED", "data": {"path": path}}


def test_a_device_is_known_by_its_id_or_path_or_by_what_it_is_part_of() -> None:
    unplugging = Unplugging(DISKS)
    for path in ("/machine/peripheral/virtio", "/machine/peripheral/scsi", "/machine/peripheral-anon/device[10]/x", ""):
        unplugging.take(deleted(path))
    unplugging.take({"event": "RESET", "data": {"path": "/machine/peripheral/scsi1"}})
    unplugging.take({"event": "DEVICE_DELETED"})
    assert unplugging.names == []
    for path in ("/machine/peripheral-anon/device[10]", "/machine/peripheral/scsi1", "/machine/peripheral/scsi1"):
        unplugging.take(deleted(path))
    assert unplugging.names == ["d", "b"]
    for path in ("/machine/peripheral/virtio1", "/machine/peripheral-anon/device[1]"):
        unplugging.take(deleted(path))
    assert unplugging.names == ["d", "b", "a", "c"]
