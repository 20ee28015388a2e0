"""The disks of a running QEMU that can be written to, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pybackup.core.errors import RequestError, SourceError

from .monitor import Monitor, RefusedError

_DRIVES = {"floppy": "a floppy", "ide-cd": "a CD-ROM", "scsi-cd": "a CD-ROM", "xen-cdrom": "a CD-ROM"}
"""Types of devices whose media are not the machine's own disks. SD cards and what else can be removed are."""


class QemuDisk(NamedTuple):
    """A disk: its name in the archive, the node to back up, and its size in bytes as the guest sees it.

    ``device``: the device that uses it, by its id or path; empty if there is none.
    """

    name: str
    node: str
    size: int
    device: str = ""


class LeftOut(NamedTuple):
    """What is left out on purpose: what it is called, and why."""

    name: str
    reason: str


class Disks(NamedTuple):
    """What a QEMU has: the disks to back up, and what is none."""

    found: Sequence[QemuDisk]
    left_out: Sequence[LeftOut]


class _Candidate(NamedTuple):
    """A name that need not be unique yet, a node, and its device."""

    name: str
    node: str
    device: str = ""


async def find_disks(monitor: Monitor) -> Disks:
    """Every disk that can be written to (SourceError where there is none).

    In a machine these are what its devices use, CD-ROMs and floppies left out. A storage daemon has no devices: there
    they are the nodes that no other node uses.
    """
    nodes = {node["node-name"]: node for node in await monitor.execute("query-named-block-nodes", {"flat": True})}
    left: list[LeftOut] = []
    if monitor.knows("query-status"):
        candidates = await _machine_disks(monitor, nodes, left)
    elif not monitor.knows("x-debug-query-block-graph"):
        raise SourceError(f"QEMU at {monitor.path} has no machine, and does not tell how its nodes belong together")
    else:
        candidates = await _root_nodes(monitor, nodes, left)
    found = _measured(candidates, nodes, left)
    if not found:
        others = "".join(f"; {name} is left out: {reason}" for name, reason in left)
        raise SourceError(f"QEMU at {monitor.path} has no disk that can be written to{others}")
    return Disks(found, left)


def _measured(candidates: Sequence[_Candidate], nodes: Mapping[str, Any], left: list[LeftOut]) -> list[QemuDisk]:
    found: list[QemuDisk] = []
    for name, one in zip(_unique([one.name for one in candidates]), candidates, strict=True):
        size = int(nodes[one.node]["image"]["virtual-size"])
        if size:
            found.append(QemuDisk(name, one.node, size, one.device))
        else:
            left.append(LeftOut(name, "it has 0 bytes"))
    return found


def select(disks: Disks, wanted: Sequence[str]) -> list[QemuDisk]:
    """The disks of these names; all where none is named (RequestError)."""
    known = {disk.name: disk for disk in disks.found}
    reasons = dict(disks.left_out)
    for name in wanted:
        if name not in known:
            reason = f"{name} is left out: {reasons[name]}" if name in reasons else f"the machine has no disk {name!r}"
            raise RequestError(f"{reason}; it has {', '.join(known)}")
    return [disk for disk in disks.found if not wanted or disk.name in wanted]


async def _machine_disks(monitor: Monitor, nodes: Mapping[str, Any], left: list[LeftOut]) -> list[_Candidate]:
    found: dict[str, _Candidate] = {}
    seen: set[str] = set()
    for backend in await monitor.execute("query-block"):
        inserted = backend.get("inserted") or {}
        node, device = str(inserted.get("node-name", "")), str(backend.get("qdev", ""))
        seen.add(node)
        name = _device_name(backend, node)
        drive = _DRIVES.get(await _type_of(monitor, device))
        if reason := _why_not(inserted, nodes, drive, found.get(node)):
            left.append(LeftOut(name, reason))
        else:
            found[node] = _Candidate(name, node, device)
    if monitor.knows("x-debug-query-block-graph"):
        roots = await _roots(monitor, nodes)
        unused = [node for node in roots if node not in seen and not nodes[node]["ro"]]
        left += [LeftOut(node, "no device of the machine uses it") for node in unused]
    return list(found.values())


def _why_not(
    inserted: Mapping[str, Any], nodes: Mapping[str, Any], drive: str | None, same: _Candidate | None
) -> str | None:
    """Why a drive is not backed up; None if it is."""
    if not inserted:
        return f"it is empty ({drive} drive)" if drive else "it is empty"
    if drive:
        return f"it is {drive}"
    if inserted["ro"]:
        return "it is read-only"
    if same is not None:
        return f"it is the same disk as {same.name}"
    return None if inserted.get("node-name") in nodes else "QEMU tells no node of it"


async def _type_of(monitor: Monitor, device: str) -> str:
    """The type of a device; empty where QEMU does not tell it."""
    if not device or not monitor.knows("qom-get"):
        return ""
    try:
        return str(await monitor.execute("qom-get", {"path": device, "property": "type"}))
    except RefusedError:
        return ""


def _device_name(backend: Mapping[str, Any], node: str) -> str:
    """The drive's id (-drive id=), the device's (-device id=), the node's, in this order, whichever was given."""
    if backend["device"]:
        return str(backend["device"])
    parts = str(backend.get("qdev", "")).removesuffix("/virtio-backend").split("/")
    if parts[-1] and not parts[-1].startswith("device["):
        return parts[-1]
    return "disk" if not node or node.startswith("#") else node


async def _root_nodes(monitor: Monitor, nodes: Mapping[str, Any], left: list[LeftOut]) -> list[_Candidate]:
    found = []
    for node in sorted(await _roots(monitor, nodes)):
        name = "disk" if node.startswith("#") else node
        if nodes[node]["ro"]:
            left.append(LeftOut(name, "it is read-only"))
        else:
            found.append(_Candidate(name, node))
    return found


async def _roots(monitor: Monitor, nodes: Mapping[str, Any]) -> list[str]:
    """The names of all nodes that no other node uses."""
    graph = await monitor.execute("x-debug-query-block-graph")
    drivers = {node["id"]: str(node["name"]) for node in graph["nodes"] if node["type"] == "block-driver"}
    used = {edge["child"] for edge in graph["edges"] if edge["parent"] in drivers}
    return [name for number, name in drivers.items() if number not in used and name in nodes]


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
