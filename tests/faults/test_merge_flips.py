"""A flipped bit anywhere in a chain: the merge is refused, or what it gives is right."""

from __future__ import annotations

import random

import pytest
from archives import open_layer, pool
from chains import Night, clusters_of, make_night
from merging import drives_of

from pybackup.core.archive.chain_clusters import ChainClusters
from pybackup.core.archive.identity import identity_of_index
from pybackup.core.archive.view import ArchiveView
from pybackup.core.errors import ArchiveError
from pybackup.formats.vma_layout import CLUSTER_SIZE

NOISE = random.Random(8)


def _cluster(number: int) -> bytes:
    return bytes([number]) * CLUSTER_SIZE


BASE = {"disk": b"".join(map(_cluster, range(6))), "vmstate": _cluster(9) + b"end"}
FIRST = {"disk": BASE["disk"][: 2 * CLUSTER_SIZE] + _cluster(7) + BASE["disk"][3 * CLUSTER_SIZE :], "vmstate": b"short"}
SECOND = {"disk": bytes(CLUSTER_SIZE) + FIRST["disk"][CLUSTER_SIZE:] + _cluster(8) + b"tail", "vmstate": b"other"}
CHAIN: list[Night] = []
for _seed, _disks in enumerate((BASE, FIRST, SECOND)):
    CHAIN.insert(0, make_night(_disks, CHAIN[0] if CHAIN else None, seed=_seed))
EXPECTED = {name: b"".join(clusters_of(disk)) for name, disk in SECOND.items()}


def merged(archives: list[bytes]) -> dict[str, bytes]:
    """The drives as a merge gives them, whole clusters (ArchiveError)."""
    indexes = [open_layer(archive, f"night-{number}.vma") for number, archive in enumerate(archives)]
    clusters = ChainClusters(ArchiveView(indexes), [identity_of_index(one) for one in indexes], pool, stop=lambda: None)
    return drives_of(clusters)


def test_the_chain_itself_is_merged() -> None:
    assert merged([night.archive for night in CHAIN]) == EXPECTED


@pytest.mark.parametrize("which", range(len(CHAIN)))
def test_a_flip_is_refused_or_harmless(which: int) -> None:
    archives = [night.archive for night in CHAIN]
    refused = 0
    for at in range(which, len(archives[which]), 3):
        flipped = bytearray(archives[which])
        flipped[at] ^= 1 << NOISE.randrange(8)
        try:
            found = merged([*archives[:which], bytes(flipped), *archives[which + 1 :]])
        except ArchiveError as error:
            refused += 1
            assert f"night-{which}.vma" in str(error), f"byte {at} of night-{which}: {error}"
            continue
        assert found == EXPECTED, f"byte {at} of night-{which}"
    assert refused > len(archives[which]) // 6


def test_damage_names_archive_drive_and_clusters() -> None:
    archives = [night.archive for night in CHAIN]
    index = open_layer(archives[-1], "base.vma")
    (place,) = index.directory.segments
    groups = list(index._read_segment(place).frame_groups(16))
    (frame,) = groups[3].frames
    damaged = bytearray(archives[-1])
    damaged[frame.file_offset + frame.compressed - 1] ^= 1
    with pytest.raises(ArchiveError, match=r"night-2.vma is damaged: .*: drive disk, clusters 4 to 4 "):
        merged([*archives[:-1], bytes(damaged)])


def test_damage_in_frames_of_which_nothing_is_left_does_not_matter() -> None:
    archives = [night.archive for night in CHAIN]
    index = open_layer(archives[-1], "base.vma")
    (place,) = index.directory.segments
    groups = list(index._read_segment(place).frame_groups(16))
    (frame,) = groups[1].frames
    assert groups[1].first == 1  # cluster 2 of the disk: cluster 0 is zero, and the first night has written to 2
    damaged = bytearray(archives[-1])
    damaged[frame.file_offset + 20] ^= 1
    assert merged([*archives[:-1], bytes(damaged)]) == EXPECTED


def test_a_missing_cluster_is_refused() -> None:
    """As if a delta had lost its parent's parent: the view is never filled up with zeros."""
    with pytest.raises(ArchiveError, match="missing in the indexes of the chain: drive disk"):
        merged([CHAIN[0].archive, CHAIN[1].archive])
