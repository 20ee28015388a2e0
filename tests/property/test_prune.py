"""Pruning random histories, killed at random: what is kept can be restored, and the newest is never gone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nightly_archives import DAY, NIGHT, put

from pybackup.core.archive.identity import ArchiveIdentity, read_identity
from pybackup.core.history.plan import Decision, Fate, Wishes
from pybackup.core.history.prune import MergeTools, Prune
from pybackup.core.history.retention import Rules
from pybackup.core.places.kinds import LocalPath

NOW = NIGHT + 60 * DAY


class KilledError(BaseException):
    """As if by SIGKILL: nobody catches it."""


@dataclass(frozen=True)
class Made:
    """How one archive of a history is made. ``parent``: how many before it; 0 for a full one."""

    hours: int
    parent: int
    name: str
    lost: bool
    copied: bool


ARCHIVES = st.builds(
    Made,
    st.integers(1, 40),
    st.sampled_from([0, 1, 1, 1, 1, 2, 3]),
    st.sampled_from(["web", "web", "web", "db"]),
    st.sampled_from([False] * 9 + [True]),
    st.sampled_from([False] * 9 + [True]),
)
RULES = st.builds(
    Rules,
    within=st.sampled_from([0, 0, 2 * DAY]),
    last=st.integers(0, 3),
    daily=st.integers(0, 4),
    weekly=st.integers(0, 3),
).filter(lambda rules: not rules.is_empty)


def make(folder: Path, history: Sequence[Made]) -> None:
    created, made = NIGHT, list[ArchiveIdentity]()
    for number, one in enumerate(history):
        created += one.hours * 3600
        parent = made[-one.parent] if 0 < one.parent <= len(made) else None
        path = folder / f"{one.name}-{created}.vma.zst"
        made.append(put(path, created, parent, drive=one.name))
        if one.copied and made[-1].digest is not None:
            # A merge of it that was interrupted before its parts went.
            merged = folder / f"{one.name}-{created}.merged.vma.zst"
            put(merged, created, uuid=made[-1].uuid, replaces=[made[-1].digest], drive=one.name)
        if one.lost and number:
            path.unlink()


def look(folder: Path) -> dict[str, ArchiveIdentity]:
    return {
        path.name: read_identity(LocalPath(str(path))) for path in folder.iterdir() if not path.name.startswith(".")
    }


def restorable(archives: dict[str, ArchiveIdentity]) -> set[tuple[bytes, int]]:
    """The backups that can be restored."""
    return {(archives[name].uuid, archives[name].created) for name in sound_files(archives)}


def sound_files(archives: dict[str, ArchiveIdentity]) -> set[str]:
    """What can be restored, found out in another way than the program's: from the full ones upwards."""
    sound = {name: one for name, one in archives.items() if not one.is_delta}
    while True:
        more = {
            name: one
            for name, one in archives.items()
            if name not in sound and any(one.parent and parent.answers(one.parent) for parent in sound.values())
        }
        if not more:
            return set(sound)
        sound |= more


def merge_tools(folder: Path) -> MergeTools:
    def merge(newest: Any, out: Any) -> None:
        identity = read_identity(newest)
        assert identity.digest is not None
        put(Path(out.path), identity.created, uuid=identity.uuid, replaces=[identity.digest], drive="x")

    return MergeTools(merge, lambda place: os.path.exists(place.path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ARCHIVES, min_size=1, max_size=10), RULES, st.booleans(), st.integers(0, 30))
def test_what_is_kept_can_be_restored_whenever_it_is_killed(
    history: list[Made], rules: Rules, merge: bool, steps: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, history)
        wishes = Wishes(rules=rules, now=NOW, merge=merge)
        tools = merge_tools(folder) if merge else None
        before, files = restorable(look(folder)), sound_files(look(folder))
        plan = Prune(LocalPath(name), wishes, tools).look()
        wanted = {one.entry.backup for one in plan.decisions if _is_wanted(one)} & before
        _kill_after(steps, Prune(LocalPath(name), wishes, tools))
        after = restorable(look(folder))
        assert wanted <= after
        if before:
            newest = max(before, key=lambda one: one[1])
            assert newest in after
        # No delta has lost its parent.
        left = look(folder)
        assert files & left.keys() <= sound_files(left)
        # Whoever goes on ends where an undisturbed one would have.
        pruned = Prune(LocalPath(name), wishes, tools).run()
        assert pruned.error is None
        assert wanted <= restorable(look(folder))
        again = Prune(LocalPath(name), wishes, tools).look()
        assert {one.fate for one in again.decisions} == {Fate.KEEP}


def _is_wanted(decision: Decision) -> bool:
    """Whether a rule wants it. What is kept for others may go when a merged archive, once it is read, stands for these.

    And of what is broken, but kept, another file may be sound, and not kept.
    """
    return decision.fate is not Fate.REMOVE and not decision.reasons[0].startswith(("broken", "needed by"))


def _kill_after(steps: int, prune: Prune) -> None:
    """Run it until so many files were removed, renamed or merged."""
    left = steps
    real_unlink, real_rename, real_write = os.unlink, os.rename, Path.write_bytes

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError

    def unlink(*given: Any, **options: Any) -> None:
        step()
        real_unlink(*given, **options)

    def rename(*given: Any, **options: Any) -> None:
        step()
        real_rename(*given, **options)

    def write(*given: Any) -> int:
        step()
        return real_write(*given)

    os.unlink, os.rename, Path.write_bytes = unlink, rename, write  # type: ignore[assignment, method-assign]
    try:
        prune.run()
    except KilledError:
        pass
    finally:
        os.unlink, os.rename, Path.write_bytes = real_unlink, real_rename, real_write  # type: ignore[method-assign]
