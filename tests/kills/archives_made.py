"""Kills of `pybackup run`: every kind of source, and every kind of archive."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from archives import decode, encode
from kills.box import Box, Ended
from kills.places import Bucket, loop_device, nbd_server
from kills.situations import SAME, Situation, disk
from live.processes import PYBACKUP

Source = Callable[[Box], list[str]]
"""Makes disks, and tells how they are called on the command line."""
OLD = encode({"a": disk(3, 300_000)})
"""The archive of yesterday."""


def raw(box: Box) -> list[str]:
    box.source("a.img", disk(1))
    return ["a=a.img"]


def several(box: Box) -> list[str]:
    box.source("b.img", disk(2, 300_000))
    return [*raw(box), "b=b.img"]


def qcow2(box: Box) -> list[str]:
    box.source("a.img", disk(1))
    box.program("qemu-img", "convert", "-O", "qcow2", "a.img", "a.qcow2")
    box.source("a.qcow2")
    return ["a=a.qcow2"]


def block_device(box: Box) -> list[str]:
    return [f"a={loop_device(box, raw(box)[0].removeprefix('a='))}"]


def export(box: Box) -> list[str]:
    box.source("a.img", disk(1))
    return [f"a={nbd_server(box, 'a.img', '--read-only')}"]


class Archived(Situation):
    """The archive is a file. Fixed: all. What it must be is found by a run that nobody kills."""

    results = frozenset({"x.vma.zst"})

    def __init__(
        self, name: str, source: Source = raw, *options: str, old: bytes | None = None, needs: tuple[str, ...] = ()
    ) -> None:
        super().__init__(name)
        self._source, self._options, self._old, self.needs = source, options, old, needs

    def lay(self, box: Box) -> None:
        box.arguments = self._source(box)
        box.call("run", "--quiet", *SAME, *self._options, *box.arguments, "x.vma.zst")
        box.wanted = box.content("x.vma.zst")
        assert box.wanted is not None
        assert decode(box.wanted).drives["a"] == disk(1)

    def before(self, box: Box) -> None:
        box.put("x.vma.zst", self._old)

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        force = ["--force"] if self._old is not None or (again and box.path("x.vma.zst").exists()) else []
        return [PYBACKUP, "run", "--quiet", *SAME, *self._options, *force, *box.arguments, "x.vma.zst"]

    def is_there(self, box: Box, ended: Ended) -> bool:
        found = box.content("x.vma.zst")
        if found == box.wanted:
            return True
        assert found == self._old, f"{len(found or b'')} bytes lie under the archive's name"
        return False

    def again(self, box: Box) -> None:
        """Where there is an archive already, a run without --force refuses it, and leaves it alone."""
        found = box.content("x.vma.zst")
        if found is not None:
            box.call("run", "--quiet", *SAME, *self._options, *box.arguments, "x.vma.zst", codes=(5,))
            assert box.content("x.vma.zst") == found
        super().again(box)


class Told(Archived):
    """With metrics and a hook: what they tell is whole too."""

    results = frozenset({"x.vma.zst", "m.prom", "told"})

    def __init__(self, name: str) -> None:
        super().__init__(name, raw, "--metrics-file", "m.prom", "--on-success", "echo $PYBACKUP_ARCHIVE >> told")

    def before(self, box: Box) -> None:
        super().before(box)
        for name in ("m.prom", "told"):
            box.put(name, None)

    def is_there(self, box: Box, ended: Ended) -> bool:
        there = super().is_there(box, ended)
        metrics = box.content("m.prom")
        assert metrics is None or (b"\npybackup_exit_code{" in metrics and metrics.endswith(b"\n")), metrics
        assert there or not box.content("told"), "the hook ran too early"
        return there


class ToCommand(Archived):
    """A command takes the archive, and gives it its name when its input has ended."""

    results = frozenset({"x.vma.zst", "x.part"})  # a command that is killed leaves what it likes

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        target = "|cat > x.part && mv x.part x.vma.zst"
        return [PYBACKUP, "run", "--quiet", *SAME, *self._options, *box.arguments, target]

    def again(self, box: Box) -> None:
        Situation.again(self, box)


class ToStream(Archived):
    """The archive goes to the standard output: a part is a part, and nothing takes it for more."""

    results = frozenset()

    def lay(self, box: Box) -> None:
        super().lay(box)
        box.put("x.vma.zst", None)

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        return [PYBACKUP, "run", "--quiet", *SAME, *self._options, *box.arguments, "-"]

    def is_there(self, box: Box, ended: Ended) -> bool:
        return self.is_whole(box, ended.out)

    @staticmethod
    def is_whole(box: Box, got: bytes) -> bool:
        assert box.wanted is not None
        assert box.wanted.startswith(got), "not what an archive begins with"
        return got == box.wanted

    def again(self, box: Box) -> None:
        Situation.again(self, box)


class ToFifo(ToStream):
    """The same through a FIFO that somebody reads."""

    results = frozenset({"fifo"})

    def lay(self, box: Box) -> None:
        super().lay(box)
        os.mkfifo(box.path("fifo"))

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        return [*super().command(box)[:-1], "fifo"]

    def meanwhile(self, box: Box, runs: Callable[[], bool]) -> None:
        with open(box.folder / "got", "wb") as got:
            reader = subprocess.Popen(["cat", str(box.path("fifo"))], stdout=got)
        while runs():
            if reader.poll() is None:
                os.sched_yield()
        # It waits for a writer for ever, where none has come.
        os.close(os.open(box.path("fifo"), os.O_RDWR | os.O_NONBLOCK))
        reader.wait()

    def is_there(self, box: Box, ended: Ended) -> bool:
        return self.is_whole(box, (box.folder / "got").read_bytes())


class Merged(Archived):
    """The archive is merged of a full one and a delta, which stay."""

    def lay(self, box: Box) -> None:
        raw(box)
        box.call("run", "--quiet", *SAME, "a=a.img", "base.vma.zst")
        box.put("a.img", disk(1)[:300_000] + disk(2)[300_000:])
        box.source("a.img")
        box.call("run", "--quiet", *SAME, "--base", "base.vma.zst", "a=a.img", "night.vma.zst")
        for name in ("base.vma.zst", "night.vma.zst"):
            box.source(name)
        box.call("merge", "--quiet", "night.vma.zst", "x.vma.zst")
        box.wanted = box.content("x.vma.zst")
        assert box.wanted is not None
        assert decode(box.wanted).drives["a"] == box.content("a.img")

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        force = ["--force"] if self._old is not None or (again and box.path("x.vma.zst").exists()) else []
        return [PYBACKUP, "merge", "--quiet", *self._options, *force, "night.vma.zst", "x.vma.zst"]

    def again(self, box: Box) -> None:
        Situation.again(self, box)


class ToStore(Archived):
    """The archive is an object; what a killed run has sent is aborted by the next one."""

    results = frozenset()

    def lay(self, box: Box) -> None:
        super().lay(box)
        box.put("x.vma.zst", None)
        box.place = Bucket(box)

    def before(self, box: Box) -> None:
        box.place.store.s3.delete_object(Bucket=box.place.store.bucket, Key="x.vma.zst")

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        force = ["--force"] if again and box.place.store.keys() else []
        target = box.place.store.url("x.vma.zst")
        return [PYBACKUP, "run", "--quiet", *SAME, *self._options, *force, *box.arguments, target]

    def is_there(self, box: Box, ended: Ended) -> bool:
        if not box.place.store.keys():
            return False
        assert box.place.store.content("x.vma.zst") == box.wanted
        return True

    def again(self, box: Box) -> None:
        Situation.again(self, box)
        for upload in box.place.store.uploads():
            # One may be left by a run that was killed before it could note it; but nothing was sent to it then.
            store = box.place.store
            found = store.s3.list_parts(Bucket=store.bucket, Key="x.vma.zst", UploadId=upload)
            assert not found.get("Parts"), "parts are left in the store"


ARCHIVES = [
    Archived("run"),
    Archived("run-several", several, "--verify"),
    Archived("run-plain", raw, "--compress", "none"),
    Archived("run-force", raw, old=OLD),
    Archived("run-force-verify", several, "--verify", old=OLD),
    Told("run-told"),
    Archived("run-qcow2", qcow2, needs=("qemu-img", "qemu-nbd")),
    Archived("run-block-device", block_device, needs=("losetup",)),
    Archived("run-nbd", export, needs=("qemu-nbd",)),
    ToCommand("run-command"),
    ToStream("run-stdout"),
    ToFifo("run-fifo"),
    ToStore("run-s3"),
    Merged("merge"),
    Merged("merge-force-verify", raw, "--verify", old=OLD),
]
