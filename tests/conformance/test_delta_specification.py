"""The second reader, which follows pybackup-archive(5) and shares no code with ours, reads chains of deltas."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from command_line import pybackup
from conformance.test_format_specification import CLUSTER, Directory, Header, frames_of, read_cluster, read_header


class Archive:
    """One archive of a chain, opened by its end and its beginning."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.header: Header = read_header(next(frames_of(self.content)).content)
        self.directory = Directory(self.content)
        self.ids = {drive.name: number for number, drive in self.header.drives.items()}

    @property
    def digest(self) -> bytes:
        """Of its index: of the directory's frame, which the last row of the seek table tells the length of."""
        length, _, _, rows, _, _ = struct.unpack("<IIIIBI", self.content[-21:])
        end = len(self.content) - (8 + 12 * rows + 9)
        return blake3(self.content[end - length : end]).digest()[:16]

    def answers(self, parent: tuple[bytes, bytes]) -> bool:
        """Section "Who is the parent"."""
        uuid, digest = parent
        replaced = self.directory.about.get("replaces", [])
        return uuid == self.header.uuid and (digest == self.digest or digest.hex() in replaced)

    def find(self, name: str, cluster: int) -> bytes | None:
        """A cluster of a drive, None where the archive has no slot for it."""
        speaks = (segment.find(self.ids[name], cluster) is not None for segment, _ in self.directory.segments)
        return read_cluster(self.content, self.directory, self.ids[name], cluster) if any(speaks) else None


def chain_of(paths: Sequence[Path]) -> list[Archive]:
    """The archives of a chain, newest first; each must be the parent of the one before."""
    chain = [Archive(path) for path in paths]
    for child, parent in itertools.pairwise(chain):
        assert child.header.flags == 3
        assert parent.answers(child.header.parent)
        told = child.directory.about["parent"]
        assert (bytes.fromhex(told["uuid"]), bytes.fromhex(told["index"])) == child.header.parent
    assert chain[-1].header.flags == 1
    return chain


def view_of(chain: Sequence[Archive], name: str) -> bytes:
    """Section "The view of a chain"."""
    newest = chain[0].header.drives[chain[0].ids[name]]
    return b"".join(look_up(chain, name, cluster) for cluster in range(newest.clusters))[: newest.size]


def look_up(chain: Sequence[Archive], name: str, cluster: int) -> bytes:
    for archive in chain:
        assert name in archive.ids, "missing"
        assert cluster < archive.header.drives[archive.ids[name]].clusters, "missing"
        found = archive.find(name, cluster)
        if found is not None:
            return found
    raise AssertionError("missing")


def listed(archive: Archive, name: str) -> set[int]:
    """The clusters that an archive has slots for, by its index."""
    number, found = archive.ids[name], []
    for segment, _ in archive.directory.segments:
        for drive, _, _, first, count in segment.runs:
            found += range(first, first + count) if drive == number else ()
    assert len(found) == len(set(found))
    return set(found)


def clusters_of(disk: bytes) -> list[bytes]:
    return [disk[at : at + CLUSTER].ljust(CLUSTER, b"\0") for at in range(0, len(disk), CLUSTER)]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, bytes]]]:
    """A folder with n0.vma to n3.vma, and what the disks were; they grow, shrink, come, and become zeros."""
    folder, chance = tmp_path_factory.mktemp("nights"), random.Random(3)
    first = {"a": chance.randbytes(40 * CLUSTER), "b": chance.randbytes(3 * CLUSTER + 5)}
    emptied = first["a"][: 9 * CLUSTER] + bytes(4 * CLUSTER) + first["a"][13 * CLUSTER :]
    second = {"a": emptied, "b": first["b"] + b"grown"}
    third = {"b": second["b"][:CLUSTER], "new": b"n" * 2 * CLUSTER, "a": second["a"][: 20 * CLUSTER + 3]}
    fourth = {"a": third["a"] + bytes(9 * CLUSTER), "new": third["new"], "b": third["b"]}
    history: list[dict[str, bytes]] = [first, second, third, fourth]
    for number, disks in enumerate(history):
        for name, content in disks.items():
            (folder / name).write_bytes(content)
        options = ["--time", str(1000 + number), *(["--base", f"n{number - 1}.vma"] if number else [])]
        done = pybackup("run", *options, *disks, f"n{number}.vma", cwd=folder)
        assert done.code == 0, done.err
    return folder, history


def test_every_night_is_read(nights: tuple[Path, list[dict[str, bytes]]]) -> None:
    folder, history = nights
    for last, disks in enumerate(history):
        chain = chain_of([folder / f"n{number}.vma" for number in range(last, -1, -1)])
        assert chain[0].directory.about.get("chain", 0) == last
        assert {name: view_of(chain, name) for name in chain[0].ids} == disks


def test_a_delta_lists_what_it_must_and_nothing_else(nights: tuple[Path, list[dict[str, bytes]]]) -> None:
    folder, history = nights
    for number, (before, after) in enumerate(itertools.pairwise(history), 1):
        archive = Archive(folder / f"n{number}.vma")
        for name, disk in after.items():
            old = clusters_of(before.get(name, b""))
            expected = {
                cluster
                for cluster, content in enumerate(clusters_of(disk))
                if cluster >= len(old) or content != old[cluster]
            }
            assert listed(archive, name) == expected
    ways = [{one["name"]: one["way"] for one in Archive(folder / f"n{n}.vma").directory.about["ways"]} for n in (1, 2)]
    assert ways == [{"a": "digest", "b": "digest"}, {"a": "digest", "b": "digest", "new": "full"}]


def test_the_merged_chain_takes_the_place_of_its_newest(nights: tuple[Path, list[dict[str, bytes]]]) -> None:
    folder, history = nights
    assert pybackup("merge", "n2.vma", "merged.vma", cwd=folder).code == 0
    chain = chain_of([folder / "n3.vma", folder / "merged.vma"])
    assert {name: view_of(chain, name) for name in chain[0].ids} == history[3]
    merged: Any = chain[1]
    assert merged.header.uuid == Archive(folder / "n2.vma").header.uuid
    assert merged.directory.about["replaces"] == [Archive(folder / "n2.vma").digest.hex()]
