"""The XML that libvirt speaks, as far as a backup needs it: domains, backup jobs, checkpoints.

What comes is untrusted: parts of it are whatever somebody who may define a domain wrote. So its size, depth and number
of elements are bounded, a document type, and with it every entity, is refused, and names are checked before they are
used. See https://libvirt.org/formatdomain.html, formatbackup.html and formatcheckpoint.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element
from xml.parsers import expat

from .errors import FormatError

MOST_BYTES = 4 << 20
"""Bytes of a document, in UTF-8."""
MOST_ELEMENTS = 50_000
MOST_DEPTH = 64
AGENT_CHANNEL = "org.qemu.guest_agent.0"
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""The names of a guest's disks, such as vda and sdb."""
_FORMAT = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_OWNER = re.compile(r"\+?(\d{1,10}):\+?(\d{1,10})")
_NO_IMAGES = {"vhostuser": "it is served by another program (vhost-user)", "vhostvdpa": "it is a vDPA device"}
"""Types of disks that QEMU has no image of."""


class LeftOut(NamedTuple):
    """What of a domain is not backed up: what it is called, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """A disk that the guest can write to.

    ``target``: what libvirt and the guest call it; ``kind``: file, block, volume, network...; ``source``: a path, or
    what else it is called by; for a volume ``pool`` and ``volume``. ``image_format`` as QEMU calls it.
    """

    target: str
    kind: str
    source: str
    image_format: str = "raw"
    pool: str = ""
    volume: str = ""
    is_encrypted: bool = False


@dataclass(frozen=True, slots=True)
class DomainXml:
    """What the XML of a domain tells.

    ``owner``: user and group that its QEMU runs as, where it says so. ``unread``: state beside the disks that is kept
    where it cannot be read.
    """

    name: str
    uuid: str
    disks: Sequence[DomainDisk]
    left_out: Sequence[LeftOut]
    nvram: str | None = None
    has_tpm: bool = False
    has_agent: bool = False
    is_agent_connected: bool = False
    owner: tuple[int, int] | None = None
    unread: Sequence[LeftOut] = ()


class _Builder:
    """Makes elements of what expat finds, within bounds."""

    def __init__(self) -> None:
        self._tree = ET.TreeBuilder()
        self._depth = self._count = 0
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._tree.data
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.EntityDeclHandler = self._refuse

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._count += 1
        if self._depth > MOST_DEPTH or self._count > MOST_ELEMENTS:
            raise FormatError("the XML has more elements than any that libvirt makes")
        self._tree.start(tag, attributes)

    def _end(self, tag: str) -> None:
        self._depth -= 1
        self._tree.end(tag)

    def _refuse(self, *_declared: Any) -> None:
        raise FormatError("the XML declares a document type, which none of libvirt's does")

    def close(self) -> Element:
        """The root, when all was parsed."""
        return self._tree.close()


def parse(text: str, root: str) -> Element:
    """The root element, which must be called ``root`` (FormatError)."""
    content = text.encode("utf-8", "surrogateescape")
    if len(content) > MOST_BYTES:
        raise FormatError(f"the XML has {len(content):,} bytes, more than any that libvirt makes")
    builder = _Builder()
    try:
        builder.parser.Parse(content, True)
    except expat.ExpatError as error:
        raise FormatError(f"the XML is not well-formed: {error}") from None
    found = builder.close()
    if found.tag != root:
        raise FormatError(f"the XML is no <{root}>")
    return found


# -- domains --


def parse_domain(text: str) -> DomainXml:
    """What `virsh dumpxml` prints (FormatError)."""
    root = parse(text, "domain")
    disks: list[DomainDisk] = []
    left_out: list[LeftOut] = []
    for element in root.iterfind("devices/disk"):
        _take_disk(element, disks, left_out)
    left_out += _passed_through(root)
    agents = [one for one in root.iterfind("devices/channel/target") if one.get("name") == AGENT_CHANNEL]
    return DomainXml(
        name=root.findtext("name") or "",
        uuid=root.findtext("uuid") or "",
        disks=disks,
        left_out=left_out,
        nvram=_nvram(root),
        has_tpm=any(_tpm_elsewhere(one) is None for one in root.iterfind("devices/tpm/backend")),
        has_agent=bool(agents),
        is_agent_connected=any(one.get("state") == "connected" for one in agents),
        owner=_owner(root),
        unread=_unread(root),
    )


def _take_disk(element: Element, disks: list[DomainDisk], left_out: list[LeftOut]) -> None:
    target = _attribute(element, "target", "dev")
    if not _TARGET.fullmatch(target):
        raise FormatError(f"a disk of the domain is called {target!r}, which is no name of a disk")
    if any(disk.target == target for disk in disks):
        raise FormatError(f"two disks of the domain are called {target}")
    reason = _why_not(element)
    if reason is None:
        disks.append(_disk(element, target))
    else:
        left_out.append(LeftOut(target, reason))


def _why_not(element: Element) -> str | None:
    """Why a disk is not backed up; None if it is."""
    device, kind = element.get("device", "disk"), element.get("type", "")
    if device == "cdrom":
        return "it is a CD-ROM"
    if device == "floppy":
        return "it is a floppy"
    if element.find("readonly") is not None:
        return "it is read-only"
    if element.find("transient") is not None:
        return "it is transient: what is written to it goes when the domain ends"
    if element.find("source") is None:
        return "it is empty"
    return _NO_IMAGES.get(kind)


def _disk(element: Element, target: str) -> DomainDisk:
    kind = element.get("type", "")
    source = element.find("source")
    assert source is not None
    image_format = _attribute(element, "driver", "type") or "raw"
    if not _FORMAT.fullmatch(image_format):
        raise FormatError(f"disk {target} of the domain has the format {image_format!r}")
    name = next((source.get(key, "") for key in ("file", "dev", "name", "dir", "volume") if source.get(key)), "")
    encrypted = source.find("encryption") is not None or element.find("encryption") is not None
    return DomainDisk(
        target, kind, name, image_format, source.get("pool", ""), source.get("volume", ""), is_encrypted=encrypted
    )


def _passed_through(root: Element) -> list[LeftOut]:
    """Devices of the host that may hold data, and shared folders."""
    found = [
        LeftOut(f"{one.get('type', 'host')} device {number}", "it is a device of the host, given to the guest")
        for number, one in enumerate(root.iterfind("devices/hostdev"), 1)
    ]
    found += [
        LeftOut(f"folder {_attribute(one, 'target', 'dir')}", "it is a folder shared with the guest")
        for one in root.iterfind("devices/filesystem")
    ]
    found += [
        LeftOut(f"{one.get('model', '')} memory", "it keeps its content, and is no disk")
        for one in root.iterfind("devices/memory[@model='nvdimm']")
    ]
    return found


def _nvram(root: Element) -> str | None:
    """The path of the file with the firmware's variables."""
    found = root.find("os/nvram")
    if found is None or found.get("type", "file") != "file":
        return None
    source = found.find("source")
    return (source.get("file") if source is not None else (found.text or "").strip()) or None


def _tpm_elsewhere(backend: Element) -> str | None:
    """Where a TPM has its state, if not where libvirt puts that by itself: a clause."""
    kind = backend.get("type", "")
    if kind != "emulator":
        return "it is a device of the host" if kind == "passthrough" else f"it is kept by another program ({kind})"
    path = _attribute(backend, "source", "path")
    return f"it is kept in {path}" if path else None


def _unread(root: Element) -> list[LeftOut]:
    found = [
        LeftOut("the firmware's variables", f"they are in no file ({one.get('type')})")
        for one in root.iterfind("os/nvram")
        if one.get("type", "file") != "file"
    ]
    where = [_tpm_elsewhere(one) for one in root.iterfind("devices/tpm/backend")]
    return [*found, *(LeftOut("the state of the TPM", reason) for reason in where if reason is not None)]


def _owner(root: Element) -> tuple[int, int] | None:
    for label in root.iterfind("seclabel[@model='dac']/label"):
        if match := _OWNER.fullmatch((label.text or "").strip()):
            return int(match[1]), int(match[2])
    return None


def _attribute(element: Element, child: str, name: str) -> str:
    found = element.find(child)
    return "" if found is None else found.get(name, "")


# -- backup jobs and checkpoints --


@dataclass(frozen=True, slots=True)
class PulledDisk:
    """A disk of a backup job in pull mode.

    ``export``: what it is called over NBD; ``scratch``: the file for what the guest overwrites. ``since``: the
    checkpoint since which changes are wanted, which the export tells as the dirty bitmap ``export``; empty for none.
    """

    target: str
    export: str
    scratch: str
    since: str = ""


class BackupJobXml(NamedTuple):
    """What a backup job of a domain tells of itself: its socket, if it has one, and its disks' exports by target."""

    socket: str
    exports: dict[str, str]


def pull_backup(socket: str, disks: Sequence[PulledDisk], others: Iterable[str]) -> str:
    """The XML of a backup job; ``others`` are the targets of the domain's disks that are not in it."""
    root = Element("domainbackup", mode="pull")
    ET.SubElement(root, "server", transport="unix", socket=socket)
    parent = ET.SubElement(root, "disks")
    for disk in disks:
        about = {"name": disk.target, "backup": "yes", "type": "file", "exportname": disk.export, "backupmode": "full"}
        if disk.since:
            about |= {"backupmode": "incremental", "incremental": disk.since, "exportbitmap": disk.export}
        one = ET.SubElement(parent, "disk", about)
        ET.SubElement(one, "driver", type="qcow2")
        ET.SubElement(one, "scratch", file=disk.scratch)
    for target in others:
        ET.SubElement(parent, "disk", name=target, backup="no")
    return ET.tostring(root, "unicode")


def checkpoint(name: str, description: str, disks: Iterable[str], others: Iterable[str]) -> str:
    """The XML of a checkpoint of these disks."""
    root = Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "description").text = description
    parent = ET.SubElement(root, "disks")
    for target in disks:
        ET.SubElement(parent, "disk", name=target, checkpoint="bitmap")
    for target in others:
        ET.SubElement(parent, "disk", name=target, checkpoint="no")
    return ET.tostring(root, "unicode")


def parse_backup_job(text: str) -> BackupJobXml:
    """What `virsh backup-dumpxml` prints (FormatError)."""
    root = parse(text, "domainbackup")
    exports = {one.get("name", ""): one.get("exportname", "") for one in root.iterfind("disks/disk[@backup='yes']")}
    return BackupJobXml(_attribute(root, "server", "socket"), exports)


class CheckpointXml(NamedTuple):
    """What a checkpoint tells of itself: the name of its bitmap on each of its disks, by target."""

    description: str
    bitmaps: dict[str, str]


def parse_checkpoint(text: str) -> CheckpointXml:
    """What `virsh checkpoint-dumpxml` prints (FormatError)."""
    root = parse(text, "domaincheckpoint")
    name = root.findtext("name") or ""
    disks = root.iterfind("disks/disk[@checkpoint='bitmap']")
    return CheckpointXml(
        root.findtext("description") or "", {one.get("name", ""): one.get("bitmap") or name for one in disks}
    )


def with_description(text: str, description: str) -> str:
    """The XML of a checkpoint with another description (FormatError)."""
    root = parse(text, "domaincheckpoint")
    found = root.find("description")
    if found is None:
        found = ET.SubElement(root, "description")
    found.text = description
    return ET.tostring(root, "unicode")
