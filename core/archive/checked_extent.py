"""An extent whose digests were computed, and compared with what the archive says of them."""

from __future__ import annotations

from typing import NamedTuple

from pybackup.formats.vma_stream import DecodedExtent


class CheckedExtent(NamedTuple):
    """An extent and the digests of its non-zero clusters; ``sound`` says whether they agree with the archive's."""

    extent: DecodedExtent
    digests: list[bytes]
    sound: bool


def check(extent: DecodedExtent) -> CheckedExtent:
    """Compute the digests; takes a while."""
    digests = extent.digests()
    return CheckedExtent(extent, digests, extent.matches(digests))


def stored_runs(extent: DecodedExtent) -> list[tuple[int, int, int]]:
    """(drive id, first cluster, number) of the stored clusters of an extent, neighbours joined whatever they store."""
    found: list[tuple[int, int, int]] = []
    for drive_id, first, count, mask in extent.header.runs:
        if not mask:
            continue
        if found and found[-1][0] == drive_id and sum(found[-1][1:]) == first:
            _, first, before = found.pop()
            count += before
        found.append((drive_id, first, count))
    return found
