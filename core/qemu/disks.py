"""The disks of a running QEMU that can be written to, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pybackup.core.errors import RequestError, SourceError

from .monitor import Monitor


class QemuDisk(NamedTuple):
    """A disk: its name in the archive, the node to back up, and its size in bytes as the guest sees it."""

    name: str
    node: str
    size: int


async def find_disks(monitor: Monitor) -> list[QemuDisk]:
    """Every disk that can be written to (SourceError where there is none).

    In a machine these are what its devices use, CD-ROMs and floppies left out. A storage daemon has no devices: there
    they are the nodes that no other node uses.
    """
    nodes = {node["node-name"]: node for node in await monitor.execute("query-named-block-nodes", {"flat": True})}
    if monitor.knows("query-status"):
        found = _machine_disks(await monitor.execute("query-block"), nodes)
    elif not monitor.knows("x-debug-query-block-graph"):
        raise SourceError(f"QEMU at {monitor.path} has no machine, and does not tell how its nodes belong together")
    else:
        found = _root_nodes(await monitor.execute("x-debug-query-block-graph"), nodes)
    if not found:
        raise SourceError(f"QEMU at {monitor.path} has no disk that can be written to")
    names = _unique([name for name, _ in found])
    return [
        QemuDisk(name, node, int(nodes[node]["image"]["virtual-size"]))
        for name, (_, node) in zip(names, found, strict=True)
    ]


def select(disks: Sequence[QemuDisk], wanted: Sequence[str]) -> list[QemuDisk]:
    """The disks of these names; all where none is named (RequestError)."""
    known = {disk.name: disk for disk in disks}
    for name in wanted:
        if name not in known:
            raise RequestError(f"the machine has no disk {name!r}; it has {', '.join(known)}")
    return [disk for disk in disks if not wanted or disk.name in wanted]


def _machine_disks(backends: Iterable[Mapping[str, Any]], nodes: Mapping[str, Any]) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for backend in backends:
        inserted = backend.get("inserted")
        if not inserted or inserted["ro"] or backend["removable"]:
            continue
        node = inserted.get("node-name")
        if node in nodes and node not in found:
            found[node] = _device_name(backend, node)
    return [(name, node) for node, name in found.items()]


def _device_name(backend: Mapping[str, Any], node: str) -> str:
    """The drive's id (-drive id=), the device's (-device id=), the node's, in this order, whichever was given."""
    if backend["device"]:
        return str(backend["device"])
    parts = str(backend.get("qdev", "")).removesuffix("/virtio-backend").split("/")
    if parts[-1] and not parts[-1].startswith("device["):
        return parts[-1]
    return "disk" if node.startswith("#") else node


def _root_nodes(graph: Mapping[str, Any], nodes: Mapping[str, Any]) -> list[tuple[str, str]]:
    drivers = {node["id"]: str(node["name"]) for node in graph["nodes"] if node["type"] == "block-driver"}
    used = {edge["child"] for edge in graph["edges"] if edge["parent"] in drivers}
    roots = [name for number, name in drivers.items() if number not in used and name in nodes]
    return [("disk" if name.startswith("#") else name, name) for name in sorted(roots) if not nodes[name]["ro"]]


def _unique(names: Iterable[str]) -> list[str]:
    """Names that an archive can hold, each one different."""
    unique: list[str] = []
    for name in names:
        name = wanted = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "disk"
        number = 2
        while name in unique:
            name, number = f"{wanted}-{number}", number + 1
        unique.append(name)
    return unique
