"""Kills of `pybackup restore`: every kind of target."""

from __future__ import annotations

from kills.box import Box, Ended
from kills.places import loop_device, nbd_server
from kills.situations import Situation, disk
from live.processes import PYBACKUP

OLD = b"somebody's disk" * 4096


class Restored(Situation):
    """One drive becomes a file."""

    def __init__(
        self, name: str, target: str = "new.img", old: bytes | None = None, needs: tuple[str, ...] = ()
    ) -> None:
        super().__init__(name)
        self._target, self._old, self.needs = target, old, needs
        self.results = frozenset({target})

    def lay(self, box: Box) -> None:
        box.source("a.img", disk(1))
        box.call("run", "--quiet", "a.img", "x.vma.zst")
        box.source("x.vma.zst")

    def before(self, box: Box) -> None:
        box.put(self._target, self._old)

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        force = ["--force"] if self._old is not None or (again and box.path(self._target).exists()) else []
        return [PYBACKUP, "restore", "--quiet", *force, "x.vma.zst", self._target]

    def is_there(self, box: Box, ended: Ended) -> bool:
        return self.is_whole(box.content(self._target), self._old)

    @staticmethod
    def is_whole(found: bytes | None, old: bytes | None) -> bool:
        if found == disk(1):
            return True
        assert found == old, f"{len(found or b'')} bytes lie under the disk's name"
        return False


class RestoredImage(Restored):
    """An image of another format: QEMU tells what is in it."""

    def is_there(self, box: Box, ended: Ended) -> bool:
        if not box.path(self._target).exists() or box.content(self._target) == self._old:
            return super().is_there(box, ended)
        box.program("qemu-img", "check", "-q", self._target)
        raw = box.folder / "as.raw"
        box.program("qemu-img", "convert", "-O", "raw", self._target, str(raw))
        return self.is_whole(raw.read_bytes(), None)


class RestoredFolder(Restored):
    """Several drives and a configuration in a folder: each is whole or not there."""

    contents = (("a.raw", disk(1)), ("b.raw", disk(2, 300_000)), ("vm.conf", b"cores: 2\n" * 1000))

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.results = frozenset(f"folder/{one}" for one, _ in self.contents)

    def lay(self, box: Box) -> None:
        for name, content in self.contents:
            box.source(name, content)
        box.call("run", "--quiet", "a.raw", "b.raw", "--config", "vm.conf", "x.vma.zst")
        box.source("x.vma.zst")
        box.path("folder").mkdir()

    def before(self, box: Box) -> None:
        for name in self.results:
            box.put(name, None)

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        force = ["--force"] if again and any(box.path(name).exists() for name in self.results) else []
        return [PYBACKUP, "restore", "--quiet", "--with-config", *force, "x.vma.zst", "folder/"]

    def is_there(self, box: Box, ended: Ended) -> bool:
        found = [box.content(f"folder/{name}") for name, _ in self.contents]
        for one, (name, content) in zip(found, self.contents, strict=True):
            assert one in (None, content), f"{len(one or b'')} bytes lie under {name}"
        return None not in found


class RestoredDisk(Restored):
    """A disk that exists is overwritten in place: only a run that came to its end has made it whole."""

    def before(self, box: Box) -> None:
        self.disk(box)  # made once
        with box.path("target.img").open("r+b") as file:
            file.write(b"x" * len(disk(1)))

    def disk(self, box: Box) -> str:
        raise NotImplementedError

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        return [PYBACKUP, "restore", "--quiet", "--force", "x.vma.zst", self.disk(box)]

    def is_there(self, box: Box, ended: Ended) -> bool:
        whole = (box.content("target.img") or b"").startswith(disk(1))
        assert whole or ended.code != 0
        return whole


class RestoredBlockDevice(RestoredDisk):
    def disk(self, box: Box) -> str:
        if not box.place:
            box.put("target.img", bytes(len(disk(1))))
            box.place = loop_device(box, "target.img")
        return box.place


class RestoredExport(RestoredDisk):
    def disk(self, box: Box) -> str:
        if not box.place:
            box.put("target.img", bytes(len(disk(1))))
            box.place = nbd_server(box, "target.img")
        return box.place


class RestoredStream(Restored):
    """A disk on the standard output."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "-")
        self.results = frozenset()

    def before(self, box: Box) -> None:
        pass

    def is_there(self, box: Box, ended: Ended) -> bool:
        assert disk(1).startswith(ended.out), "not what the disk begins with"
        return ended.out == disk(1)


class RestoredCommand(Restored):
    """A command gives the disk its name when its input has ended."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.results = frozenset({"new.img", "new.part"})

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        return [PYBACKUP, "restore", "--quiet", "x.vma.zst", "|cat > new.part && mv new.part new.img"]


RESTORED = [
    Restored("restore"),
    Restored("restore-force", old=OLD),
    RestoredImage("restore-qcow2", "new.qcow2", needs=("qemu-img", "qemu-nbd")),
    RestoredFolder("restore-folder"),
    RestoredBlockDevice("restore-block-device", "target.img", needs=("losetup",)),
    RestoredExport("restore-nbd", "target.img", needs=("qemu-nbd",)),
    RestoredStream("restore-stdout"),
    RestoredCommand("restore-command"),
]
