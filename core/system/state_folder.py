"""Where this user's programs keep what they have to remember."""

from __future__ import annotations

import os


def state_folder(name: str) -> str:
    """A folder of ours below $XDG_STATE_HOME, which is ~/.local/state unless it is set; it may not be there yet."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "pybackup", name)
