"""A domain of libvirt, as virsh tells of it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

from pybackup.core.errors import RequestError, SourceError
from pybackup.formats.errors import FormatError
from pybackup.formats.libvirt_xml import DomainDisk, DomainXml, parse_domain

from .virsh import Virsh

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
CONFIG_NAME = "libvirt-domain.xml"
"""What the domain's definition is called in an archive."""


@dataclass(frozen=True, slots=True)
class Domain:
    """What is known of a domain.

    ``now``: as it is at the moment; ``definition``: the XML to define it again, without secrets, and what that tells.
    ``is_active``: whether it has a QEMU. ``has_saved_memory``: it was put to sleep, and will go on where it was.
    """

    uuid: str
    name: str
    is_active: bool
    has_saved_memory: bool
    now: DomainXml
    definition: str

    def chosen(self, wanted: tuple[str, ...]) -> list[DomainDisk]:
        """The disks of these names, all where none is named (RequestError, SourceError where there is none at all)."""
        known = {disk.target: disk for disk in self.now.disks}
        reasons = dict(self.now.left_out)
        if not known:
            others = "".join(f"; {name} is left out: {reason}" for name, reason in self.now.left_out)
            raise SourceError(f"domain {self.name} has no disk that can be written to{others}")
        for name in wanted:
            if name not in known:
                why = f"{name} is left out: {reasons[name]}" if name in reasons else f"the domain has no disk {name!r}"
                raise RequestError(f"{why}; it has {', '.join(known)}")
        return [disk for disk in known.values() if not wanted or disk.target in wanted]


async def all_domains(virsh: Virsh) -> list[str]:
    """The names of all domains, running or not, in order (SourceError).

    A name may have all that Unicode calls the end of a line, but for the newline.
    """
    said = await virsh.ask("list the domains of libvirt", "list", "--all", "--name")
    return sorted(line for line in said.split("\n") if line)


async def find_domain(virsh: Virsh, name: str) -> Domain:
    """The domain of this name, or uuid (SourceError)."""
    uuid, name = await _resolved(virsh, name)
    doing = f"look at domain {name}"
    known = facts(await virsh.ask(doing, "dominfo", "--domain", uuid))
    definition = await virsh.ask(doing, "dumpxml", "--inactive", "--domain", uuid)
    is_active = known.get("Id", "-") != "-"
    now = await virsh.ask(doing, "dumpxml", "--domain", uuid) if is_active else definition
    try:
        found = parse_domain(now)
    except FormatError as error:
        raise SourceError(f"cannot {doing}: {error}") from error
    return Domain(uuid, name, is_active, known.get("Managed save") == "yes", found, definition)


def facts(said: str) -> dict[str, str]:
    """What virsh prints as ``Key: value``."""
    lines = (line.partition(":") for line in said.split("\n"))
    return {key.strip(): value.strip() for key, _, value in lines}


async def _resolved(virsh: Virsh, given: str) -> tuple[str, str]:
    """(uuid, name). A name may be a number, which virsh takes for that of another domain."""
    doing = f"find domain {given}"
    if _UUID.fullmatch(given):
        with contextlib.suppress(SourceError):  # a name may look like that too
            return given.lower(), await _name_of(virsh, doing, given)
    try:
        uuid = (await virsh.ask(doing, "domuuid", "--domain", given)).strip()
        name = await _name_of(virsh, doing, uuid)
        if given == name:
            return uuid, name
    except SourceError:
        if given not in await all_domains(virsh):
            raise
    for uuid in (await virsh.ask(doing, "list", "--all", "--uuid")).split():
        if await _name_of(virsh, doing, uuid) == given:
            return uuid, given
    raise SourceError(f"cannot {doing}: libvirt knows {name!r} by that number, and none by that name")


async def _name_of(virsh: Virsh, doing: str, uuid: str) -> str:
    return (await virsh.ask(doing, "domname", "--domain", uuid)).removesuffix("\n").removesuffix("\n")


async def has_qemu(virsh: Virsh, uuid: str) -> bool:
    """Whether a domain has a QEMU now, running or paused (SourceError)."""
    return uuid in (await virsh.ask(f"look at domain {uuid}", "list", "--uuid")).split()


async def disk_size(virsh: Virsh, domain: Domain, target: str) -> int:
    """Bytes of a disk of a domain, as its guest sees it (SourceError)."""
    doing = f"look at disk {target} of domain {domain.name}"
    said = await virsh.ask(doing, "domblkinfo", "--domain", domain.uuid, "--device", target)
    capacity = facts(said).get("Capacity", "")
    if re.fullmatch("[0-9]{1,19}", capacity):
        return int(capacity)
    raise SourceError(f"cannot {doing}: libvirt does not tell its size")
