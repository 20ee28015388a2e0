"""Which disks a QEMU has, and what they are called."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from pybackup.core.errors import RequestError, SourceError
from pybackup.core.qemu.disks import Disks, LeftOut, QemuDisk, find_disks, select
from pybackup.core.qemu.machine import MOST_BYTES, describe_machine
from pybackup.core.qemu.monitor import RefusedError


class Answers:
    """A monitor that answers questions from a dict."""

    path = "vm.qmp"

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers

    def knows(self, command: str, argument: str | None = None) -> bool:
        return command in self.answers

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        answer = self.answers[command]
        if command != "qom-get":
            return answer
        assert arguments is not None and arguments["property"] == "type"
        if arguments["path"] not in answer:
            raise RefusedError(self.path, command, "no such device")
        return answer[arguments["path"]]


def backend(node: str | None, *, device: str = "", qdev: str = "", ro: bool = False) -> dict[str, Any]:
    inserted = {"inserted": {"node-name": node, "ro": ro}} if node is not None else {}
    return {"device": device, "qdev": qdev, "removable": True, **inserted}


def machine(*backends: Mapping[str, Any]) -> Any:
    nodes = [one["inserted"]["node-name"] for one in backends if one.get("inserted")]
    sizes = [{"node-name": node, "ro": False, "image": {"virtual-size": 512 * n}} for n, node in enumerate(nodes, 1)]
    return Answers({"query-status": {}, "query-block": list(backends), "query-named-block-nodes": sizes})


def test_a_machines_disks_are_what_its_devices_use() -> None:
    monitor = machine(
        backend("#block1", device="drive-scsi0", qdev="scsi0"),
        backend("sd", device="sd0", qdev="/machine/peripheral-anon/device[5]"),
        backend("cd", device="ide1", qdev="cd1"),
        backend("rom", device="pflash0", ro=True),
        backend("libvirt-1-format", qdev="/machine/peripheral/virtio-disk0/virtio-backend"),
        backend("data", qdev="/machine/peripheral-anon/device[0]/virtio-backend"),
        backend("#block9", qdev="/machine/peripheral-anon/device[1]"),
        backend("#block10", qdev="/machine/peripheral-anon/device[2]"),
        backend("vars", qdev="/machine/system.flash1"),
        backend("vars", qdev="again"),
        backend(None, qdev="/machine/peripheral-anon/device[3]"),
        backend(None, qdev="floppy0"),
        backend("media", qdev="floppy1"),
        backend("gone", qdev="odd"),
        backend("none", qdev="zero"),
    )
    types = {"floppy0": "floppy", "floppy1": "floppy", "cd1": "ide-cd", "zero": "scsi-hd"}
    monitor.answers["qom-get"] = {**types, "/machine/peripheral-anon/device[5]": "sd-card"}
    nodes = monitor.answers["query-named-block-nodes"]
    monitor.answers["query-named-block-nodes"] = [one for one in nodes if one["node-name"] != "gone"]
    nodes[-1]["image"]["virtual-size"] = 0
    disks = asyncio.run(find_disks(monitor))
    assert [(disk.name, disk.node) for disk in disks.found] == [
        ("drive-scsi0", "#block1"),
        ("sd0", "sd"),
        ("virtio-disk0", "libvirt-1-format"),
        ("data", "data"),
        ("disk", "#block9"),
        ("disk-2", "#block10"),
        ("system.flash1", "vars"),
    ]
    assert disks.found[2].device == "/machine/peripheral/virtio-disk0/virtio-backend"
    assert disks.left_out == [
        ("ide1", "it is a CD-ROM"),
        ("pflash0", "it is read-only"),
        ("again", "it is the same disk as system.flash1"),
        ("disk", "it is empty"),
        ("floppy0", "it is empty (a floppy drive)"),
        ("floppy1", "it is a floppy"),
        ("odd", "QEMU tells no node of it"),
        ("zero", "it has 0 bytes"),
    ]


def test_nodes_that_no_device_uses_are_told() -> None:
    monitor = machine(backend("a", qdev="a"))
    names = ("a", "lone", "rom", "file")
    monitor.answers["x-debug-query-block-graph"] = {
        "nodes": [{"id": n, "type": "block-driver", "name": name} for n, name in enumerate(names)],
        "edges": [{"parent": 0, "child": 3}],
    }
    monitor.answers["query-named-block-nodes"] += [
        {"node-name": name, "ro": name == "rom", "image": {"virtual-size": 512}} for name in ("lone", "rom", "file")
    ]
    assert asyncio.run(find_disks(monitor)).left_out == [("lone", "no device of the machine uses it")]


def test_a_machine_without_a_disk_is_no_source() -> None:
    with pytest.raises(SourceError, match=r"no disk that can be written to; cd is left out: it is read-only"):
        asyncio.run(find_disks(machine(backend("cd", ro=True))))


def test_a_storage_daemons_disks_are_the_nodes_that_no_node_uses() -> None:
    names = ["root", "root-file", "ro", "#block3"]
    graph = {
        "nodes": [{"id": n, "type": "block-driver", "name": name} for n, name in enumerate(names)]
        + [{"id": 9, "type": "block-backend", "name": ""}],
        "edges": [{"parent": 0, "child": 1}, {"parent": 9, "child": 0}],
    }
    nodes = [{"node-name": name, "ro": name == "ro", "image": {"virtual-size": 512}} for name in names]
    monitor: Any = Answers({"query-named-block-nodes": nodes, "x-debug-query-block-graph": graph})
    disks = asyncio.run(find_disks(monitor))
    assert disks.found == [QemuDisk("disk", "#block3", 512), QemuDisk("root", "root", 512)]
    assert disks.left_out == [LeftOut("ro", "it is read-only")]
    del monitor.answers["x-debug-query-block-graph"]
    with pytest.raises(SourceError, match="does not tell how its nodes belong together"):
        asyncio.run(find_disks(monitor))


def test_names_select_in_the_machines_order() -> None:
    found = [QemuDisk("a", "1", 512), QemuDisk("b", "2", 512)]
    disks = Disks(found, [LeftOut("cd", "it is a CD-ROM")])
    assert select(disks, []) == found
    assert select(disks, ["b", "a", "b"]) == found
    assert select(disks, ["b"]) == found[1:]
    with pytest.raises(RequestError, match="cd is left out: it is a CD-ROM; it has a, b"):
        select(disks, ["cd"])
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
