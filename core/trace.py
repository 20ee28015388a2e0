"""Structured trace points: what the job, the copier and the archive did, one event after the other.

An event has a name such as ``copy.claim`` and a few values. Events nobody asked for cost one look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

EVENTS = {
    "job.state": "the job entered a state",
    "job.error": "the first error of the job",
    "job.decided": "what cannot be undone is done, such as that an archive has its name",
    "job.speed": "the speed limit was changed",
    "job.freeze": "all drives are frozen: the instant that the backup holds",
    "copy.read": "clusters were read by the background loop",
    "copy.zero": "clusters were found to be holes, and not read",
    "copy.guest": "clusters were saved before a guest changed them",
    "copy.unreadable": "blocks could not be read",
    "qemu.image": "QEMU uses the temporary image of a drive",
    "qemu.serve": "QEMU's NBD server runs",
    "qemu.freeze": "QEMU has frozen all drives: the instant that the backup holds",
    "qemu.export": "QEMU offers a frozen drive",
    "qemu.end": "nothing of the backup is left in QEMU, but what records changes for the next",
    "qemu.keep": "QEMU records what changes since the archive, which is complete",
    "libvirt.folder": "there is a folder for the scratch images of a domain",
    "libvirt.begin": "libvirt has frozen all drives of a domain: the instant that the backup holds",
    "libvirt.open": "a frozen drive of a domain can be read",
    "libvirt.keep": "libvirt records what changes since the archive, which is complete",
    "libvirt.end": "nothing of the backup is left in the domain",
    "archive.extent": "an extent was compressed and written",
    "archive.segment": "a segment of the index was written",
    "archive.finish": "the archive is complete",
}
"""Every trace event, and what it tells."""


class Trace:
    """Passes on the events that match one of some patterns (``copy.*``).

    Fixed: the patterns' events and the receiver.
    """

    def __init__(
        self, patterns: Iterable[str] = (), receive: Callable[[str, dict[str, object]], None] | None = None
    ) -> None:
        patterns = tuple(patterns)
        self._wanted = frozenset(
            name for name in EVENTS if receive and any(fnmatchcase(name, pattern) for pattern in patterns)
        )
        self._receive = receive

    @property
    def wants_any(self) -> bool:
        """Whether any event matches."""
        return bool(self._wanted)

    def wants(self, event: str) -> bool:
        """Whether anybody listens; ask before computing costly values."""
        return event in self._wanted

    def __call__(self, event: str, **values: object) -> None:
        """Tell that ``event`` happened."""
        if event in self._wanted and self._receive is not None:
            self._receive(event, values)
