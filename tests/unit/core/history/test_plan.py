"""What is kept, and why."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from archives import encode
from nightly_archives import DAY, NIGHT, nights, put

from pybackup.core.history.catalog import Entry, read_catalog
from pybackup.core.history.plan import Wishes, in_order, make_plan
from pybackup.core.history.retention import Rules
from pybackup.core.places.kinds import LocalPath

NOW = NIGHT + 1000 * DAY


def fates(folder: Path, rules: Rules, **wishes: Any) -> dict[str, str]:
    """By the name of each archive, or its day, what is done and why."""
    catalog = read_catalog(LocalPath(str(folder)))
    plan = make_plan(catalog, Wishes(rules=rules, now=wishes.pop("now", NOW), **wishes))
    return {short(one.entry): f"{one.fate.value}: {', '.join(map(days, one.reasons))}" for one in plan}


def short(entry: Entry) -> str:
    return days(entry.name)


def days(text: str) -> str:
    """Names of nights() as the number of the night."""
    for number in range(60):
        text = text.replace(f"web-{stamp(number)}.vma.zst", str(number))
        text = text.replace(f"web-{stamp(number)}.merged.vma.zst", "merged")
    return text


def stamp(number: int) -> str:
    import time

    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(NIGHT + number * DAY))


def test_what_a_kept_archive_needs_is_kept(tmp_path: Path) -> None:
    nights(tmp_path, 7, full_every=3)
    found = fates(tmp_path, Rules(last=2))
    assert found == {
        "6": "keep: last 1 of 2, newest",
        "5": "keep: last 2 of 2",
        "4": "keep: needed by 5",
        "3": "keep: needed by 4",
        **{str(number): "remove: no rule keeps it" for number in range(3)},
    }


def test_rules_hold_for_each_series(tmp_path: Path) -> None:
    nights(tmp_path, 2, full_every=1)
    nights(tmp_path, 3, full_every=1, name="other")
    found = fates(tmp_path, Rules(last=1))
    assert sorted(one for one in found.values() if one.startswith("keep")) == ["keep: last 1 of 1, newest"] * 2
    only = fates(tmp_path, Rules(last=1), series_of=f"web-{stamp(0)}.vma.zst")
    assert sorted(only.values()) == ["keep: another series"] * 3 + [
        "keep: last 1 of 1, newest",
        "remove: no rule keeps it",
    ]


def test_the_newest_stays_though_a_clock_was_wrong(tmp_path: Path) -> None:
    nights(tmp_path, 3, full_every=1)
    found = fates(tmp_path, Rules(last=1), now=NIGHT + DAY)
    assert found == {"2": "keep: later than now, newest", "1": "keep: last 1 of 1", "0": "remove: no rule keeps it"}


def test_what_cannot_be_judged_stays_and_so_does_what_it_needs(tmp_path: Path) -> None:
    made = nights(tmp_path, 5, full_every=5)
    nights(tmp_path, 2, full_every=1, begin=NIGHT + 10 * DAY)
    Path(made[2].name).unlink()
    (tmp_path / "dump.vma.lzo").write_bytes(b"\x89LZO\0\r\n\x1a\n" + bytes(100))
    (tmp_path / "bad.vma").write_bytes(bytes(9))
    found = fates(tmp_path, Rules(last=1))
    assert found.pop("3").startswith("keep: broken: its parent is missing")
    assert found == {
        "11": "keep: last 1 of 1, newest",
        "10": "remove: no rule keeps it",
        "4": "keep: broken: its parent 3 is broken",
        "1": "remove: no rule keeps it",
        "0": "remove: no rule keeps it",
        "dump.vma.lzo": "keep: not understood",
        "bad.vma": "keep: cannot be read",
    }
    # A broken one may be whole together with archives that are elsewhere: what it needs of these stays.
    Path(made[0].name).unlink()
    Path(made[3].name).unlink()
    found = fates(tmp_path, Rules(last=1))
    assert found["1"].startswith("keep: broken")


def test_a_link_and_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    made = nights(tmp_path, 3, full_every=2)
    os.rename(made[1].name, tmp_path / "elsewhere" / "x")
    Path(made[1].name).symlink_to("elsewhere/x")
    found = fates(tmp_path, Rules(last=1))
    assert found == {"2": "keep: last 1 of 1, newest", "1": "keep: a link", "0": "keep: needed by 1"}


def test_without_an_index_nobody_knows_whether_the_newest_is_whole(tmp_path: Path) -> None:
    nights(tmp_path, 2, full_every=1)
    (tmp_path / f"web-{stamp(3)}.vma.zst").write_bytes(plain(NIGHT + 3 * DAY))
    found = fates(tmp_path, Rules(last=1))
    assert found == {
        "3": "keep: last 1 of 1, newest",
        "1": "keep: newest with an index",
        "0": "remove: no rule keeps it",
    }


def plain(created: int) -> bytes:
    """An archive without an index, made at that time."""
    from pybackup.formats.vma import decode_header, encode_header, header_length

    whole = encode({"disk": b"x" * 5000}, level=None)
    size = header_length(whole)
    return encode_header(replace(decode_header(whole[:size]), created=created)) + whole[size:]


def test_a_merged_archive_and_its_parts_are_one_backup(tmp_path: Path) -> None:
    made = nights(tmp_path, 4, full_every=4)
    assert made[2].digest is not None
    merged = put(
        tmp_path / f"web-{stamp(2)}.merged.vma.zst", made[2].created, uuid=made[2].uuid, replaces=[made[2].digest]
    )
    # Until somebody has read all of it, its parts stay.
    found = fates(tmp_path, Rules(last=2))
    assert found == {
        "3": "keep: last 1 of 2, newest",
        "merged": "keep: last 2 of 2",
        "2": "keep: last 2 of 2",
        "1": "keep: needed by 2",
        "0": "keep: needed by 1",
    }

    def is_trusted(entry: Entry) -> bool:
        return entry.identity is not None and entry.identity.digest == merged.digest

    found = fates(tmp_path, Rules(last=2), is_trusted=is_trusted)
    assert found == {
        "3": "keep: last 1 of 2, newest",
        "merged": "keep: last 2 of 2",
        "2": "remove: merged is the same backup",
        "1": "remove: no rule keeps it",
        "0": "remove: no rule keeps it",
    }


def test_the_first_that_is_kept_of_a_chain_is_merged(tmp_path: Path) -> None:
    nights(tmp_path, 6, full_every=6)
    rules = Rules(last=2, monthly=1)
    found = fates(tmp_path, rules, merge=True)
    assert found == {
        "5": "keep: last 1 of 2, newest",
        "4": "keep: last 2 of 2",
        "3": "merge: monthly 2025-11",
        **{str(number): "remove: merged into 3" for number in range(3)},
    }
    # Nothing is merged that would free nothing.
    for name in (0, 1, 2):
        Path(tmp_path / f"web-{stamp(name)}.vma.zst").rename(tmp_path / f"x{name}.vma.zst")
    nights(tmp_path, 1, full_every=1)
    assert fates(tmp_path, Rules(last=20), merge=True)["5"].startswith("keep: last 1")


def test_what_lies_between_two_kept_ones_stays(tmp_path: Path) -> None:
    made = nights(tmp_path, 6, full_every=6)
    put(tmp_path / "branch-20251201.vma.zst", NIGHT + 4 * DAY, made[1], drive="branch")
    # The branch is a series of its own, whose newest is kept: two chains are merged, and share what goes.
    found = fates(tmp_path, Rules(weekly=2), merge=True)
    assert found == {
        "5": "keep: weekly 2025-W49, newest",
        "4": "keep: needed by 5",
        "3": "merge: weekly 2025-W48",
        "branch-20251201.vma.zst": "merge: weekly 2025-W49, newest",
        "2": "remove: merged into 3",
        "1": "remove: merged into branch-20251201.vma.zst",
        "0": "remove: merged into branch-20251201.vma.zst",
    }


def test_in_stores_stays_what_was_the_newest_within_a_day(tmp_path: Path) -> None:
    made = nights(tmp_path, 4, full_every=1)
    for one in made:
        os.utime(one.name, (one.created, one.created))
    now = NIGHT + 3 * DAY + 3600
    assert fates(tmp_path, Rules(last=1), now=now, grace=True) == {
        "3": "keep: last 1 of 1, newest, newest within a day",
        "2": "keep: newest within a day",
        "1": "remove: no rule keeps it",
        "0": "remove: no rule keeps it",
    }
    # However old a backup is, what has just come there stays.
    os.utime(made[0].name, (now - 60, now - 60))
    assert fates(tmp_path, Rules(last=1), now=now, grace=True)["0"] == "keep: newest within a day"


def test_children_go_before_their_parents(tmp_path: Path) -> None:
    made = nights(tmp_path, 5, full_every=5)
    put(tmp_path / "x.vma.zst", NIGHT - DAY, made[1])
    catalog = read_catalog(LocalPath(str(tmp_path)))
    names = [short(entry) for entry in in_order(catalog, list(catalog.by_name))]
    for child, parent in (("4", "3"), ("3", "2"), ("2", "1"), ("1", "0"), ("x.vma.zst", "1")):
        assert names.index(child) < names.index(parent)
