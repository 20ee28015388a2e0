"""What `pybackup run` tells of the machine whose disks were backed up, QEMU's or libvirt's."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any

from pybackup.cli import forget
from pybackup.cli.printable import say
from pybackup.cli.run_request import RunRequest
from pybackup.cli.running import warn
from pybackup.core.places.kinds import LibvirtDomain
from pybackup.core.runs.course import Way
from pybackup.core.runs.machine import MachinesDisks

if TYPE_CHECKING:
    from pybackup.core.runs.domain import DomainsDisks


def tell_of_the_end(request: RunRequest, way: Way) -> None:
    """What has become of a machine."""
    machine = _machine(request, way)
    if machine is None:
        return
    for name in machine.stays_behind:
        say(f"pybackup: {name} stays behind in the machine, which does not give it up", err=True)
    notes = [*machine.told]
    notes += [f"QEMU does not record what changes of {name} from now on: {why}" for name, why in machine.unrecorded]
    if machine.begins_to_record:
        where = "" if request.connect is None else f" --connect {quote(request.connect)}"
        drops = f"pybackup run {forget.OPTION} {quote(str(request.sources[0].what))}{where}"
        notes.append(f"QEMU records from now on what changes, for the next backup; `{drops}` drops that")
    request.listener().tell(notes=notes)
    warn(f"disk {name} was unplugged meanwhile; the archive holds it as it was before" for name in machine.unplugged)


def _machine(request: RunRequest, way: Way) -> MachinesDisks | DomainsDisks | None:
    """The way, where it is that to the disks of a machine; what one of libvirt needs is loaded for no other."""
    if isinstance(request.sources[0].what, LibvirtDomain):
        from pybackup.core.runs.domain import DomainsDisks

        return way if isinstance(way, DomainsDisks) else None
    return way if isinstance(way, MachinesDisks) else None


def domain_name(request: RunRequest, way: Way) -> str | None:
    """The name of the domain, which that of the archive may hold."""
    machine = _machine(request, way)
    return None if machine is None or isinstance(machine, MachinesDisks) else machine.domain_name


def told_of(request: RunRequest, way: Way) -> dict[str, Any]:
    """What the report as JSON tells of a machine alone."""
    machine = _machine(request, way)
    if machine is None:
        return {}
    left_out = [{"name": name, "reason": reason} for name, reason in machine.left_out]
    unrecorded = [{"name": name, "reason": reason} for name, reason in machine.unrecorded]
    return {"left_out": left_out, "unplugged": list(machine.unplugged), "unrecorded": unrecorded}
