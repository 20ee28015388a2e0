"""Which archives belong together."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from nightly_archives import DAY, NIGHT, nights, put

from pybackup.core.history.catalog import read_catalog
from pybackup.core.history.prune import merged_name
from pybackup.core.history.series import pattern_of, series_of
from pybackup.core.places.kinds import LocalPath

CREATED = 1_795_832_100
"""2026-11-28 02:15 UTC."""
OWN = UUID("0f8fad5b-d9cb-469f-a165-70867728950e")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("web-20261128T021500.vma.zst", "web-*.vma.zst"),
        ("web-20261128.vma.zst", "web-*.vma.zst"),
        ("web-20261128-0215.vma.zst", "web-*.vma.zst"),
        ("web-20261128021500.vma.zst", "web-*.vma.zst"),
        ("web-2026-11-28.vma.zst", "web-*.vma.zst"),
        ("web-2026-11-28T02:15:00+01:00.vma.zst", "web-*.vma.zst"),
        ("web 2026-11-28 02:15.vma.zst", "web *.vma.zst"),
        ("2026.11.28_web.vma", "*_web.vma"),
        ("web-2026-11.vma.zst", "web-*.vma.zst"),
        ("web-202611.vma.zst", "web-*.vma.zst"),
        ("web-2026-W48-6.vma.zst", "web-*.vma.zst"),
        ("vzdump-qemu-100-2026_11_28-02_15_00.vma.zst", "vzdump-qemu-100-*.vma.zst"),
        ("web-20261128T021500.merged.vma.zst", "web-*.vma.zst"),
        (f"web-{CREATED}.vma.zst", "web-*.vma.zst"),
        ("web-261128.vma.zst", "web-*.vma.zst"),
        ("web-2026.vma.zst", "web-*.vma.zst"),
        ("web-0f8fad5b-d9cb-469f-a165-70867728950e.vma.zst", "web-*.vma.zst"),
        # What is no time tells machines apart.
        ("vm-100.vma.zst", "vm-100.vma.zst"),
        ("vm-101.vma.zst", "vm-101.vma.zst"),
        ("web-251128.vma.zst", "web-251128.vma.zst"),
        ("web-1795832101.vma.zst", "web-1795832101.vma.zst"),
        ("host-20269999.vma", "host-20269999.vma"),
        ("host-19216811.vma", "host-19216811.vma"),
        ("win-2019.vma.zst", "win-2019.vma.zst"),
        ("win2019-01-20261128T021500.vma.zst", "win2019-01-*.vma.zst"),
        ("win2019-02-20261128T021500.vma.zst", "win2019-02-*.vma.zst"),
        ("win2026-11-2026-11-28.vma.zst", "win2026-11-*.vma.zst"),
        ("win2025-11.vma.zst", "win2025-11.vma.zst"),
        ("web2026-20261128.vma.zst", "web2026-*.vma.zst"),
        ("rack.2001.12-2026.11.28.vma", "rack.2001.12-*.vma"),
        ("r2020-W12-2026-W48.vma", "r2020-W12-*.vma"),
        ("vzdump-qemu-200101-2026_11_28-02_15_00.vma.zst", "vzdump-qemu-200101-*.vma.zst"),
        ("vm-20010101-20261128T021500.vma.zst", "vm-20010101-*.vma.zst"),
        ("4c4c4544-0001-4000-8000-000000000001-20261128.vma", "4c4c4544-0001-4000-8000-000000000001-*.vma"),
        ("web-2026-02-31.vma.zst", "web-*-02-31.vma.zst"),
        ("win-2019-20261128.vma.zst", "win-2019-*.vma.zst"),
        ("disk.vma.zst", "disk.vma.zst"),
        ("unmerged.vma.zst", "unmerged.vma.zst"),
    ],
)
def test_times_in_names(name: str, pattern: str) -> None:
    assert pattern_of(name, CREATED, OWN.bytes) == pattern


def test_machines_are_series_of_their_own(tmp_path: Path) -> None:
    nights(tmp_path, 3, full_every=3, name="vm-100")
    nights(tmp_path, 2, full_every=3, name="vm-101")
    put(tmp_path / "other.vma.zst", NIGHT)
    found = series_of(read_catalog(LocalPath(str(tmp_path))))
    assert sorted(set(found.values())) == ["other.vma.zst", "vm-100-*.vma.zst", "vm-101-*.vma.zst"]


def test_only_names_tell_what_belongs_together(tmp_path: Path) -> None:
    """Of an image that machines were cloned from all are children; and a night with a name of its own has a reason."""
    golden = put(tmp_path / "golden-20251127.vma.zst", NIGHT)
    for name in ("one", "two"):
        put(tmp_path / f"{name}-20251128.vma.zst", NIGHT + DAY, golden, drive=name)
    put(tmp_path / "before-upgrade.vma.zst", NIGHT + DAY, golden)
    found = series_of(read_catalog(LocalPath(str(tmp_path))))
    assert sorted(found.values()) == [
        "before-upgrade.vma.zst",
        "golden-*.vma.zst",
        "one-*.vma.zst",
        "two-*.vma.zst",
    ]


def test_what_was_merged_is_of_the_series_by_its_name(tmp_path: Path) -> None:
    made = nights(tmp_path, 2, full_every=2)
    assert made[1].digest is not None
    path = tmp_path / merged_name(Path(made[1].name).name)
    put(path, made[1].created, uuid=made[1].uuid, replaces=[made[1].digest])
    (tmp_path / "copy.vma.zst").write_bytes(path.read_bytes())
    found = series_of(read_catalog(LocalPath(str(tmp_path))))
    assert sorted(found.values()) == ["copy.vma.zst", *["web-*.vma.zst"] * 3]
