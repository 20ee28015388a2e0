"""What is asked of QEMU for the bitmaps of one disk, and what is made of a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pybackup.core.qemu.bitmap_names import BitmapName
from pybackup.core.qemu.bitmaps import BitmapRequest, DirtyBitmaps, ParentArchive
from pybackup.core.qemu.disks import QemuDisk
from pybackup.core.qemu.monitor import MonitorLostError, RefusedError

OLD, NEW = bytes(16), bytes([1] * 16)
BASE = str(BitmapName(OLD, 1, None, "disk"))
KEPT = str(BitmapName(NEW, 2, OLD, "disk"))
REQUEST = BitmapRequest(NEW, 2, ParentArchive(OLD, 1, {"disk": 1 << 20}))


class Told:
    """A QEMU with one disk, node ``n`` of a qcow2; transactions that contain ``refused`` it refuses.

    Changing: the names of the bitmaps that there are.
    """

    def __init__(self, refused: object = None, status: str = "running", *, is_lost: bool = False) -> None:
        self.refused, self.status, self.is_lost = refused, status, is_lost
        self.bitmaps = [BASE]

    def knows(self, command: str, argument: str | None = None) -> bool:
        return command != "query-migrate"

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        if self.is_lost:
            raise MonitorLostError("it has gone")
        if command == "query-status":
            return {"status": self.status}
        if command == "query-named-block-nodes":
            told = [
                {"name": name, "granularity": 65536, "recording": True, "busy": False, "persistent": True}
                for name in self.bitmaps
            ]
            return [{"node-name": "n", "drv": "qcow2", "image": {}, "dirty-bitmaps": told}]
        assert command == "transaction" and arguments is not None
        actions = arguments["actions"]
        if any(self.refused in (action["type"], *action["data"].items()) for action in actions):
            raise RefusedError("here", command, "no such thing")
        for action in actions:
            name = action["data"].get("name")
            if action["type"].endswith("add"):
                self.bitmaps.append(name)
            elif action["type"].endswith("remove"):
                self.bitmaps.remove(name)
        return {}


async def night(qemu: Told) -> DirtyBitmaps:
    """Up to the instant."""
    bitmaps = DirtyBitmaps(qemu, REQUEST)
    await bitmaps.look([QemuDisk("disk", "n", 1 << 20)], ["run-0"])
    await qemu.execute("transaction", {"actions": bitmaps.actions()})
    assert qemu.bitmaps == [BASE, "run-0-changed", "run-0-recording"]
    qemu.bitmaps.remove("run-0-changed")
    return bitmaps


def kept(qemu: Told) -> tuple[list[str], list[str]]:
    """What bitmaps there are in the end, and what is said of those that there are not."""

    async def course() -> tuple[list[str], list[str]]:
        bitmaps = await night(qemu)
        assert await bitmaps.keep() == []
        return qemu.bitmaps, [reason for _, reason in bitmaps.unrecorded]

    return asyncio.run(course())


def test_the_new_one_takes_the_place_of_the_old_one() -> None:
    assert kept(Told()) == ([KEPT], [])


def test_one_that_the_image_has_no_room_for_lives_as_long_as_qemu() -> None:
    assert kept(Told(("persistent", True))) == ([KEPT], [])


def test_a_machine_that_leaves_keeps_what_it_has() -> None:
    qemu = Told()

    async def course() -> None:
        bitmaps = await night(qemu)
        qemu.status = "postmigrate"
        assert await bitmaps.keep() == []
        assert "was migrated to another host" in bitmaps.unrecorded[0].reason
        assert qemu.bitmaps == [BASE, "run-0-recording"] and bitmaps.recordings == []

    asyncio.run(course())


def test_a_qemu_that_has_gone_is_told() -> None:
    qemu = Told()

    async def course() -> None:
        bitmaps = await night(qemu)
        qemu.is_lost = True
        assert await bitmaps.keep() == []
        assert bitmaps.unrecorded == [("disk", "it has gone")]

    asyncio.run(course())


def test_what_cannot_be_renamed_is_told_and_the_old_one_goes_all_the_same() -> None:
    qemu = Told()

    async def course() -> None:
        bitmaps = await night(qemu)
        qemu.refused = "block-dirty-bitmap-merge"
        assert await bitmaps.keep() == []
        assert bitmaps.unrecorded == [("disk", "QEMU refuses: no such thing")]
        assert qemu.bitmaps == ["run-0-recording"]  # which goes with the run

    asyncio.run(course())


def test_many_that_stay_are_told() -> None:
    qemu = Told()
    others = [str(BitmapName(bytes([number] * 16), 1, None, "disk")) for number in range(2, 10)]

    async def course() -> None:
        bitmaps = await night(qemu)
        qemu.bitmaps += others
        assert await bitmaps.keep() == ["QEMU keeps 9 records of the changes of disk disk, for as many archives"]

    asyncio.run(course())
