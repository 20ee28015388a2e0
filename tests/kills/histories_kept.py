"""Kills of `pybackup prune`: what stays can be restored as it was, and the next prune does the rest."""

from __future__ import annotations

from kills.box import Box, Ended
from kills.situations import Situation, disk
from live.processes import PYBACKUP

from pybackup.core.archive.chain import open_chain
from pybackup.core.places.kinds import LocalPath
from pybackup.formats.vma_layout import CLUSTER_SIZE

NIGHT = 1_764_208_800
"""2025-11-27 02:00 UTC."""
DAY = 86400


def night(number: int) -> bytes:
    """The disk in one night."""
    return disk(1)[: 200_000 * number] + disk(2)[200_000 * number :]


def restored(box: Box, name: str) -> bytes:
    """The drive of an archive, which must have all that it needs."""
    content = bytearray()
    with open_chain(LocalPath(str(box.path(name)))) as chain:
        size = chain.view.header.drives[0].size
        for cluster in range(-(-size // CLUSTER_SIZE)):
            content += chain.view.read_cluster(1, cluster)
    return bytes(content[:size])


class Pruned(Situation):
    """Six nights, of which the last two are to stay, and what they need. Fixed: all.

    ``stay``: the nights whose archives are there at the end. ``full_every``: so many nights.
    """

    def __init__(self, name: str, stay: tuple[int, ...], full_every: int, *options: str) -> None:
        super().__init__(name)
        self._full_every, self._options = full_every, options
        self._nights = {f"x-{NIGHT + number * DAY}.vma.zst": number for number in range(6)}
        self._kept = [name for name, number in self._nights.items() if number >= 4]
        self.results = frozenset({*(f"x-{NIGHT + number * DAY}.vma.zst" for number in stay), ".pybackup-verified"})

    def lay(self, box: Box) -> None:
        before = ""
        for name, number in self._nights.items():
            box.put("a.img", night(number))
            base = ["--base", before] if number % self._full_every else []
            box.call("run", "--quiet", "--time", str(NIGHT + number * DAY), *base, "a=a.img", name)
            before = name
        box.put("a.img", None)
        box.place = {name: box.content(name) for name in self._nights}

    def before(self, box: Box) -> None:
        for name in box.names():
            box.put(name, None)
        for name, content in box.place.items():
            box.put(name, content)

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        return [PYBACKUP, "prune", "--quiet", "--keep-last", "2", *self._options, "."]

    def is_there(self, box: Box, ended: Ended) -> bool:
        """All that is to stay can be restored, whatever has gone; is it as it shall be at the end?"""
        for name in self._kept:
            assert restored(box, name) == night(self._nights[name]), f"{name} is not what it was"
        archives = {name for name in box.names() if not name.startswith(".")}
        for name in archives - set(self._kept):
            restored(box, name)
        return archives == {name for name in self.results if not name.startswith(".")}


HISTORIES = [
    Pruned("prune", (4, 5), 2),
    Pruned("prune-chain", (3, 4, 5), 3),
    Pruned("prune-merge", (4, 5), 6, "--merge"),
]
