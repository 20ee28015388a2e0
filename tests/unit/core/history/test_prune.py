"""Archives are removed: under locks, in order, and never what is needed."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nightly_archives import DAY, NIGHT, nights, put

from pybackup.core.archive.identity import ArchiveIdentity
from pybackup.core.errors import ArchiveError, BusyError, RequestError, TargetError
from pybackup.core.history import place_lock as place_lock_module
from pybackup.core.history import prune as prune_module
from pybackup.core.history.catalog import read_catalog
from pybackup.core.history.place_lock import place_lock
from pybackup.core.history.plan import Fate, Wishes
from pybackup.core.history.prune import MergeTools, Prune, Pruned, merged_name
from pybackup.core.history.retention import Rules
from pybackup.core.history.verified import RECORD
from pybackup.core.places.kinds import LocalPath, StoreUrl

NOW = NIGHT + 1000 * DAY


def prune(folder: Path, rules: Rules, tools: MergeTools | None = None, **wishes: Any) -> Prune:
    return Prune(LocalPath(str(folder)), Wishes(rules=rules, now=NOW, merge=tools is not None, **wishes), tools)


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if not one.name.startswith(".pybackup"))


def name_of(made: ArchiveIdentity) -> str:
    return Path(made.name).name


def reasons(pruned: Pruned, fate: Fate = Fate.KEEP) -> dict[str, str]:
    return {one.entry.name: ", ".join(one.reasons) for one in pruned.decisions if one.fate is fate}


@contextmanager
def locked(path: str, how: int = fcntl.LOCK_SH) -> Iterator[None]:
    """As a run holds its parent."""
    with open(path, "rb") as file:
        fcntl.flock(file, how)
        yield


def test_what_no_rule_keeps_is_removed_and_nothing_else(tmp_path: Path) -> None:
    made = nights(tmp_path, 7, full_every=3)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".web.vma.zst.partial").write_bytes(b"1")
    pruned = prune(tmp_path, Rules(last=1)).look()
    assert len(names(tmp_path)) == 9
    pruned = prune(tmp_path, Rules(last=2)).run()
    assert names(tmp_path) == [".web.vma.zst.partial", "notes.txt", *map(name_of, made[3:])]
    assert [entry.name for entry in pruned.removed] == [name_of(made[at]) for at in (2, 1, 0)]
    assert pruned.error is None and pruned.freed > 0
    assert not prune(tmp_path, Rules(last=2)).run().removed


def test_without_rules_nothing_begins(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no rule says what to keep"):
        prune(tmp_path, Rules())


def test_an_archive_that_cannot_be_read_keeps_all(tmp_path: Path) -> None:
    made = nights(tmp_path, 2, full_every=1)
    (tmp_path / "bad.vma.zst").write_bytes(bytes(100))
    with pytest.raises(ArchiveError, match=r"nothing is removed, for nobody knows what bad\.vma\.zst needs"):
        prune(tmp_path, Rules(last=1)).run()
    assert len(names(tmp_path)) == 3
    prune(tmp_path, Rules(last=1), ignored=frozenset({"bad.vma.zst"})).run()
    assert names(tmp_path) == ["bad.vma.zst", name_of(made[1])]


def test_what_a_run_builds_on_stays_with_all_that_it_needs(tmp_path: Path) -> None:
    made = nights(tmp_path, 5, full_every=4)
    with locked(made[2].name):
        pruned = prune(tmp_path, Rules(last=1)).run()
    found = reasons(pruned)
    assert found[name_of(made[2])] == "in use"
    assert found[name_of(made[1])] == f"needed by {name_of(made[2])}"
    assert found[name_of(made[0])] == f"needed by {name_of(made[1])}"
    assert names(tmp_path) == [name_of(made[at]) for at in (0, 1, 2, 4)]


def test_all_names_of_a_file_go_at_once(tmp_path: Path) -> None:
    """A lock belongs to the file: by its second name it is held already."""
    made = nights(tmp_path, 2, full_every=2)
    put(tmp_path / "web-20251201T020000.vma.zst", NIGHT + 4 * DAY)
    (tmp_path / "web-20251126T020000.vma.zst").hardlink_to(made[0].name)
    (tmp_path / "web-20251125T020000.vma.zst").hardlink_to(made[1].name)
    with locked(made[1].name):
        prune(tmp_path, Rules(last=1)).run()
        assert len(names(tmp_path)) == 5
    pruned = prune(tmp_path, Rules(last=1)).run()
    assert names(tmp_path) == ["web-20251201T020000.vma.zst"] and len(pruned.removed) == 4


def test_an_archive_that_appears_meanwhile_keeps_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nights(tmp_path, 5, full_every=4)
    real = prune_module.archives_in
    looks = 0

    def look(place: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 2:
            # A run that had chosen this parent long ago is done just now.
            put(tmp_path / "late.vma.zst", NIGHT + 9 * DAY, made[1])
        return real(place)

    monkeypatch.setattr(prune_module, "archives_in", look)
    pruned = prune(tmp_path, Rules(last=1)).run()
    assert names(tmp_path) == ["late.vma.zst", *(name_of(made[at]) for at in (0, 1, 4))]
    assert reasons(pruned)[name_of(made[1])] == "needed by late.vma.zst"


def test_what_appears_meanwhile_and_cannot_be_read_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nights(tmp_path, 3, full_every=1)
    real = prune_module.archives_in
    looks = 0

    def look(place: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 2:
            (tmp_path / "bad.vma.zst").write_bytes(bytes(100))
        return real(place)

    monkeypatch.setattr(prune_module, "archives_in", look)
    pruned = prune(tmp_path, Rules(last=1)).run()
    assert isinstance(pruned.error, ArchiveError)
    assert len(names(tmp_path)) == 4
    assert list(reasons(pruned).values()).count("not done") == 2


def test_what_is_replaced_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nights(tmp_path, 2, full_every=1)
    real = prune_module.read_entries

    def read(place: Any, listed: Any) -> Any:
        found = real(place, listed)
        other = tmp_path / "new"
        put(other, NIGHT + 7, size=9 << 16)
        os.rename(other, made[0].name)
        return found

    monkeypatch.setattr(prune_module, "read_entries", read)
    pruned = prune(tmp_path, Rules(last=1)).run()
    assert reasons(pruned)[name_of(made[0])] == "replaced meanwhile"
    assert len(names(tmp_path)) == 2


def test_two_prunes_exclude_each_other(tmp_path: Path) -> None:
    nights(tmp_path, 2, full_every=1)
    with place_lock(str(tmp_path)):
        with pytest.raises(BusyError, match="another prune is at work in"):
            prune(tmp_path, Rules(last=1)).run()
        # Who only looks disturbs nobody.
        assert prune(tmp_path, Rules(last=1)).look().decisions
    prune(tmp_path, Rules(last=1)).run()
    assert len(names(tmp_path)) == 1


def test_where_folders_cannot_be_locked_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(fd: int) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(place_lock_module, "lock", no_lock)
    with place_lock(str(tmp_path)):
        assert os.listdir(tmp_path) == [".pybackup-lock"]
        with pytest.raises(BusyError), place_lock(str(tmp_path)):
            raise AssertionError("two are in")
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_removed_is_told_and_its_parents_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = nights(tmp_path, 5, full_every=4)
    real = os.unlink

    def unlink(path: Any, **options: Any) -> None:
        if path == name_of(made[1]):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(path, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    pruned = prune(tmp_path, Rules(last=1)).run()
    assert isinstance(pruned.error, TargetError) and "Operation not permitted" in str(pruned.error)
    assert names(tmp_path) == [name_of(made[at]) for at in (0, 1, 4)]


def test_hundreds_at_once(tmp_path: Path) -> None:
    made = nights(tmp_path, 120, full_every=30)
    prune(tmp_path, Rules(last=1)).run()
    assert names(tmp_path) == list(map(name_of, made[90:]))


# -- merging --


def merge_tools(*, is_sound: bool = True, merge: Callable[[Any, Any], None] | None = None) -> MergeTools:
    """A merge that writes an archive which says that it is the merged one."""

    def write(newest: LocalPath | StoreUrl, out: LocalPath | StoreUrl) -> None:
        assert isinstance(newest, LocalPath) and isinstance(out, LocalPath)
        folder = Path(newest.path).parent
        identity = read_catalog(LocalPath(str(folder))).by_name[Path(newest.path).name].identity
        assert identity is not None and identity.digest is not None
        put(Path(out.path), identity.created, uuid=identity.uuid, replaces=[identity.digest], drive="web")

    return MergeTools(merge or write, lambda _: is_sound)


def test_a_chain_is_merged_and_its_parts_go(tmp_path: Path) -> None:
    made = nights(tmp_path, 6, full_every=6)
    pruned = prune(tmp_path, Rules(last=2), merge_tools()).run()
    # The merged one takes the name of the delta, so that others find it where they look first.
    assert names(tmp_path) == list(map(name_of, made[4:]))
    assert pruned.merged == {name_of(made[4]): name_of(made[4])}
    catalog = read_catalog(LocalPath(str(tmp_path)))
    assert [(entry.is_delta, catalog.broken(entry)) for entry in catalog.entries] == [(True, None), (False, None)]
    assert not prune(tmp_path, Rules(last=2), merge_tools()).run().removed
    nights(tmp_path, 1, full_every=1, begin=NIGHT + 6 * DAY)
    pruned = prune(tmp_path, Rules(last=1), merge_tools()).run()
    assert len(names(tmp_path)) == 1


def test_two_chains_that_share_parts(tmp_path: Path) -> None:
    made = nights(tmp_path, 4, full_every=4)
    put(tmp_path / "side.vma.zst", NIGHT + 9 * DAY, made[1], drive="web")
    prune(tmp_path, Rules(last=1), merge_tools()).run()
    assert names(tmp_path) == ["side.vma.zst", name_of(made[3])]
    catalog = read_catalog(LocalPath(str(tmp_path)))
    assert not any(entry.is_delta for entry in catalog.entries)


@pytest.mark.parametrize("how", ["unsound", "other", "nothing", "fails"])
def test_a_merge_that_went_wrong_removes_nothing(tmp_path: Path, how: str) -> None:
    made = nights(tmp_path, 3, full_every=3)

    def other(newest: Any, out: Any) -> None:
        put(Path(out.path), NIGHT + 2 * DAY, uuid=made[2].uuid)

    def fails(newest: Any, out: Any) -> None:
        raise TargetError("no space is left")

    tools = {
        "unsound": merge_tools(is_sound=False),
        "other": merge_tools(merge=other),
        "nothing": merge_tools(merge=lambda newest, out: None),
        "fails": merge_tools(merge=fails),
    }[how]
    pruned = prune(tmp_path, Rules(last=1), tools).run()
    assert isinstance(pruned.error, TargetError if how == "fails" else ArchiveError)
    assert {name_of(one) for one in made} <= set(names(tmp_path))
    assert reasons(pruned)[name_of(made[2])].endswith("not merged")


def test_an_interrupted_merge_is_read_before_its_parts_go(tmp_path: Path) -> None:
    made = nights(tmp_path, 3, full_every=3)
    assert made[2].digest is not None
    merged = merged_name(name_of(made[2]))
    put(tmp_path / merged, made[2].created, uuid=made[2].uuid, replaces=[made[2].digest], drive="web")
    before = names(tmp_path)
    assert not prune(tmp_path, Rules(last=1)).run().removed
    unsound = merge_tools(is_sound=False, merge=lambda newest, out: None)
    pruned = prune(tmp_path, Rules(last=1), unsound).run()
    assert names(tmp_path) == before and pruned.error is not None
    (tmp_path / RECORD).unlink()
    pruned = prune(tmp_path, Rules(last=1), merge_tools()).run()
    assert names(tmp_path) == [name_of(made[2])] and pruned.error is None
    catalog = read_catalog(LocalPath(str(tmp_path)))
    assert not catalog.entries[0].is_delta


def test_names_of_merged_archives() -> None:
    assert merged_name("web-1.vma.zst") == "web-1.merged.vma.zst"
    assert merged_name("web.vma") == "web.merged.vma"
    assert merged_name("web") == "web.merged"
    assert merged_name("a.vma.b") == "a.merged.vma.b"
