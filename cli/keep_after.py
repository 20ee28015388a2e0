"""`run --keep-...`: what a successful run has added to is pruned."""

from __future__ import annotations

import os
import time
from typing import Any

from pybackup.cli.advice import with_advice
from pybackup.cli.keep import Keeping, rules_of
from pybackup.core.archive.chain import folder_of
from pybackup.core.errors import PybackupError
from pybackup.core.history.plan import Fate, Wishes
from pybackup.core.history.prune import Prune, Pruned
from pybackup.core.places.kinds import LocalPath, NewArchivePlace, StoreUrl


def prune_after(request: Keeping, archive: NewArchivePlace, created: int | None) -> tuple[dict[str, Any], str]:
    """What was removed of the archive's own series, as JSON, and a sentence where that failed; the archive is complete.

    ``created``: the time that was given for the archive, which is now for the rules too.
    """
    assert isinstance(archive, LocalPath | StoreUrl)
    name = os.path.basename(archive.path if isinstance(archive, LocalPath) else archive.url)
    now = float(created) if created is not None else time.time()
    try:
        pruned = Prune(folder_of(archive), Wishes(rules=rules_of(request), now=now, series_of=name)).run()
    except PybackupError as error:
        return {"error": str(error)}, _sentence(archive, error)
    return _told(pruned), _sentence(archive, pruned.error) if pruned.error is not None else ""


def _sentence(archive: NewArchivePlace, error: PybackupError) -> str:
    return f"the archive {archive} is complete, but old ones could not be removed: {with_advice(error)}"


def _told(pruned: Pruned) -> dict[str, Any]:
    own = [one for one in pruned.decisions if one.reasons != ("another series",)]
    return {
        "removed": [entry.name for entry in pruned.removed],
        "freed": pruned.freed,
        "kept": [one.entry.name for one in own if one.fate is Fate.KEEP],
        "error": str(pruned.error) if pruned.error is not None else None,
    }
