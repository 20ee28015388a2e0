"""QEMU's dirty bitmaps tell all that has changed, whatever happens between two nights; or it is known why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from live.guests import Guest, History
from live.qemu_processes import SIZES, Qemu, machine, make_disks, storage_daemon
from live.recorded_nights import Series, kept


@pytest.fixture(name="before")
def _before(tmp_path: Path) -> dict[str, bytes]:
    return make_disks(tmp_path)


def write(qemu: Qemu, device: str, offset: int, length: int, pattern: int = 99) -> None:
    """A write of a machine's guest."""
    line = f'qemu-io {device} "write -P {pattern} {offset} {length}"'
    said = qemu.ask("human-monitor-command", {"command-line": line})
    assert "rror" not in said, said


DEVICES = {"a": "-d a/virtio-backend", "b": "b", "c": "c"}


def test_twenty_nights_with_guests_that_write_all_the_while(tmp_path: Path, before: dict[str, bytes]) -> None:
    names = list(SIZES)
    with storage_daemon(tmp_path, guests=True) as qemu:
        nodes = qemu.nodes()
        series = Series(qemu, shared=True)
        history = History(1, names, 0, SIZES["b"])
        with Guest(qemu.guests, history, names) as guest:
            for number in range(20):
                done = guest.done
                night = series.night()
                assert night.said == []
                if number:
                    assert all(changed >= 0 for changed in series.check().values())
        assert done <= history.instant(before, {name: told.content for name, told in night.disks.items()})
        qemu.check_clean(nodes)
        assert {name: len(bitmaps) for name, bitmaps in kept(qemu).items()} == dict.fromkeys(names, 1)


def test_only_what_a_machine_wrote_is_told(tmp_path: Path, before: dict[str, bytes]) -> None:
    with machine(tmp_path) as qemu:
        series = Series(qemu)
        series.night()
        for name, device in DEVICES.items():
            write(qemu, device, 3 << 16, 100)
            write(qemu, device, SIZES[name] - 512, 512)
        series.night(lambda: write(qemu, "b", 7 << 16, 512))
        assert series.check() == {"a": 2, "b": 2, "c": 2}
        series.night()
        assert series.check() == {"a": 0, "b": 1, "c": 0}
