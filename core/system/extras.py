"""Packages that only some of pybackup's users need: how to get them where they are missing."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from shlex import quote
from urllib.parse import unquote

DISTRIBUTION = "pybackup-vma"
"""What the package is called where packages are listed; `pybackup` is somebody else's there."""


def how_to_install(extra: str) -> str:
    """The command that installs an extra, as a clause."""
    return f"{quote(sys.executable)} -m pip install {_place(extra)}"


def _place(extra: str) -> str:
    """What pip installs us from, with an extra: the clone that we came from, where it is still there.

    No name stands there that a package index may know: whose package it would fetch, nobody can tell.
    """
    from importlib.metadata import PackageNotFoundError, distribution  # takes longer to load than all of ours here

    clone = "."
    with contextlib.suppress(PackageNotFoundError, ValueError, TypeError, KeyError):
        told = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
        path = unquote(told["url"].removeprefix("file://"))
        clone = path if os.path.isfile(os.path.join(path, "pyproject.toml")) else "."
    return quote(f"{clone}[{extra}]") + (" in a clone of pybackup" if clone == "." else "")
