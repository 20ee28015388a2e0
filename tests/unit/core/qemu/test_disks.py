"""Which disks a QEMU has, and what they are called."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from pybackup.core.errors import RequestError, SourceError
from pybackup.core.qemu.disks import QemuDisk, find_disks, select
from pybackup.core.qemu.machine import MOST_BYTES, describe_machine


class Answers:
    """A monitor that answers questions from a dict."""

    path = "vm.qmp"

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers

    def knows(self, command: str, argument: str | None = None) -> bool:
        return command in self.answers

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        return self.answers[command]


def backend(
    node: str, *, device: str = "", qdev: str = "", removable: bool = False, ro: bool = False
) -> dict[str, Any]:
    return {"device": device, "qdev": qdev, "removable": removable, "inserted": {"node-name": node, "ro": ro}}


def machine(*backends: Mapping[str, Any]) -> Any:
    nodes = [one["inserted"]["node-name"] for one in backends if one.get("inserted")]
    sizes = [{"node-name": node, "ro": False, "image": {"virtual-size": 512 * n}} for n, node in enumerate(nodes, 1)]
    return Answers({"query-status": {}, "query-block": list(backends), "query-named-block-nodes": sizes})


def test_a_machines_disks_are_what_its_devices_use() -> None:
    monitor = machine(
        backend("#block1", device="drive-scsi0", qdev="scsi0"),
        backend("cd", device="ide1", removable=True),
        backend("rom", device="pflash0", ro=True),
        backend("libvirt-1-format", qdev="/machine/peripheral/virtio-disk0/virtio-backend"),
        backend("data", qdev="/machine/peripheral-anon/device[0]/virtio-backend"),
        backend("#block9", qdev="/machine/peripheral-anon/device[1]"),
        backend("#block10", qdev="/machine/peripheral-anon/device[2]"),
        backend("vars", qdev="/machine/system.flash1"),
        backend("vars", qdev="again"),
        {"device": "floppy0", "removable": True},
    )
    assert [(disk.name, disk.node) for disk in asyncio.run(find_disks(monitor))] == [
        ("drive-scsi0", "#block1"),
        ("virtio-disk0", "libvirt-1-format"),
        ("data", "data"),
        ("disk", "#block9"),
        ("disk-2", "#block10"),
        ("system.flash1", "vars"),
    ]


def test_a_machine_without_a_disk_is_no_source() -> None:
    with pytest.raises(SourceError, match=r"QEMU at vm\.qmp has no disk that can be written to"):
        asyncio.run(find_disks(machine(backend("cd", removable=True))))


def test_a_storage_daemons_disks_are_the_nodes_that_no_node_uses() -> None:
    names = ["root", "root-file", "ro", "#block3"]
    graph = {
        "nodes": [{"id": n, "type": "block-driver", "name": name} for n, name in enumerate(names)]
        + [{"id": 9, "type": "block-backend", "name": ""}],
        "edges": [{"parent": 0, "child": 1}, {"parent": 9, "child": 0}],
    }
    nodes = [{"node-name": name, "ro": name == "ro", "image": {"virtual-size": 512}} for name in names]
    monitor: Any = Answers({"query-named-block-nodes": nodes, "x-debug-query-block-graph": graph})
    assert asyncio.run(find_disks(monitor)) == [QemuDisk("disk", "#block3", 512), QemuDisk("root", "root", 512)]
    del monitor.answers["x-debug-query-block-graph"]
    with pytest.raises(SourceError, match="does not tell how its nodes belong together"):
        asyncio.run(find_disks(monitor))


def test_names_select_in_the_machines_order() -> None:
    disks = [QemuDisk("a", "1", 512), QemuDisk("b", "2", 512)]
    assert select(disks, []) == disks
    assert select(disks, ["b", "a", "b"]) == disks
    assert select(disks, ["b"]) == disks[1:]
    with pytest.raises(RequestError, match="no disk 'c'; it has a, b"):
        select(disks, ["a", "c"])


def test_the_description_holds_no_secrets_and_is_small() -> None:
    nodes = [
        {"node-name": "x", "file": "nbd://user@host/x", "key-secret": "sec0", "encrypted": True},
        {"node-name": "y", "file": 'json:{"driver": "https", "password-secret": "geheim"}'},
    ]
    told = json.loads(asyncio.run(describe_machine(Answers({"query-named-block-nodes": nodes}))))  # type: ignore[arg-type]
    assert told == {
        "nodes": [
            {"node-name": "x", "file": "(left out)", "encrypted": True},
            {"node-name": "y", "file": "(left out)"},
        ]
    }
    large: Any = Answers({"query-version": {"qemu": 9}, "query-pci": ["x" * 10] * MOST_BYTES})
    content = asyncio.run(describe_machine(large))
    assert len(content) < MOST_BYTES and json.loads(content) == {"version": {"qemu": 9}}
