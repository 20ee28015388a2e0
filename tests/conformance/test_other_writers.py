"""Archives made by other writers work everywhere, plain or compressed by any program."""

from __future__ import annotations

import gzip
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import foreign_vma
import pytest
from archives import decode
from command_line import listing, pybackup
from conftest import need
from foreign_vma import Style

NOISE = random.Random(11)
DISKS = {
    "drive-scsi0": NOISE.randbytes(9 << 20) + bytes(5 << 20) + b"end".ljust(512, b"\0"),
    "drive-efidisk0": bytes(4096) + NOISE.randbytes(4096 * 3) + bytes(512 * 9),
    "vmstate": NOISE.randbytes(200_192),
}
CONFIGS = {"qemu-server.conf": b"cores: 1\n", "qemu-server.fw": b""}
STYLES = {
    "proxmox": Style(),
    "59 entries": Style(entries=59),
    "one entry": Style(entries=1),
    "one drive after the other": Style(mixed=False),
    "backwards": Style(backwards=True),
    "fillers": Style(filler=5),
    "whole clusters": Style(whole_clusters=True),
}


def through(*command: str) -> Callable[[bytes], bytes]:
    """A filter: the program's output for this input."""

    def run(content: bytes) -> bytes:
        need(command[0])
        return subprocess.run(command, input=content, stdout=subprocess.PIPE, check=True).stdout

    return run


WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda content: content,
    "zstd from a pipe": through("zstd", "-1", "-c"),
    "zstd without checksum": through("zstd", "-1", "-c", "--no-check"),
    "zstd --long": through("zstd", "-1", "-c", "--long=27"),
    "zstd two frames": lambda content: (
        through("zstd", "-1")(content[:1_000_000]) + through("zstd", "-1")(content[1_000_000:])
    ),
    "zstd of known size": lambda content: through("zstd", "-1", f"--stream-size={len(content)}", "-c")(content),
    "gzip": lambda content: gzip.compress(content, 1),
    "two gzip members": lambda content: gzip.compress(content[:777], 1) + gzip.compress(content[777:], 1),
}


@pytest.mark.parametrize("style", STYLES)
def test_every_layout(style: str) -> None:
    archive = foreign_vma.write(DISKS, CONFIGS, STYLES[style])
    for tolerant in (False, True):
        read = decode(archive, tolerant=tolerant)
        assert read.drives == DISKS
        assert read.damage == []
    assert dict(read.stream.header.configs) == CONFIGS


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_command_works_on_every_wrapping(wrapping: str, tmp_path: Path) -> None:
    content = WRAPPINGS[wrapping](foreign_vma.write(DISKS, CONFIGS, Style(entries=59, backwards=True)))
    archive = tmp_path / "archive.vma"
    archive.write_bytes(content)
    for name, stdin in ((str(archive), None), ("-", content)):
        assert pybackup("verify", "--json", name, stdin=stdin).json["sound"] is True
        facts = pybackup("info", "--json", name, stdin=stdin).json
        assert {drive["name"]: drive["size"] for drive in facts["drives"]} == {n: len(d) for n, d in DISKS.items()}
        assert facts["index"] is False
        assert pybackup("config", name, "qemu-server.conf", stdin=stdin).out == CONFIGS["qemu-server.conf"]
        assert pybackup("restore", name, "-", "--drive", "drive-scsi0", stdin=stdin).out == DISKS["drive-scsi0"]
    assert pybackup("info", archive).code == 0
    (tmp_path / "all").mkdir()
    assert pybackup("restore", archive, tmp_path / "all", "--with-config").code == 0
    assert listing(tmp_path / "all") == {f"{name}.raw": disk for name, disk in DISKS.items()} | CONFIGS
    sources = [f"{name}={tmp_path / 'all' / name}.raw" for name in DISKS]
    assert pybackup("compare", archive, *sources).code == 0


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_damage_in_every_wrapping_is_told(wrapping: str) -> None:
    if wrapping in ("plain", "zstd without checksum"):
        pytest.skip("nothing there guards the data")
    broken = bytearray(WRAPPINGS[wrapping](foreign_vma.write(DISKS, CONFIGS)))
    cut = decode(bytes(broken[: len(broken) // 3]), tolerant=True)
    assert any(one.what == "missing" for one in cut.damage)
    broken[len(broken) // 2] ^= 0xFF
    assert decode(bytes(broken), tolerant=True).damage


def test_memory_may_end_before_its_recorded_size() -> None:
    whole = foreign_vma.write({"vmstate": DISKS["vmstate"]}, style=Style(entries=1))
    last = foreign_vma.extent([foreign_vma._entry(1, 3, DISKS["vmstate"][3 * 65536 :].ljust(65536, b"\0"), Style())])
    assert whole.endswith(last)
    assert decode(whole[: -len(last)]).damage == []


def test_memory_out_of_order_is_told() -> None:
    whole = foreign_vma.write({"vmstate": DISKS["vmstate"]}, style=Style(entries=1))
    header = foreign_vma.header({"vmstate": DISKS["vmstate"]}, {})
    first = foreign_vma.extent([foreign_vma._entry(1, 0, DISKS["vmstate"][:65536], Style())])
    swapped = header + whole[len(header) + len(first) :] + first
    assert any("out of order" in one.what for one in decode(swapped, tolerant=True).damage)
