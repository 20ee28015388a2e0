"""What to do about a failure, in the words of the command line: `core` knows it, and here are the options for it."""

from __future__ import annotations

from pybackup.core.errors import Advice, PybackupError

WORDS = {
    Advice.REPLACE: "--force replaces it",
    Advice.OVERWRITE: "--force overwrites it",
    Advice.OVERWRITE_ALL: "--force overwrites everything on it",
    Advice.RENAME: "--to NAME=TARGET chooses another",
    Advice.EXACT_SIZE: "--format raw has the exact size",
}
"""By each advice the end of a sentence, in which {about} is replaced by the error's."""


def with_advice(error: PybackupError) -> str:
    """The error's sentence, and what to do."""
    if error.advice is None:
        return str(error)
    return f"{error}; {WORDS[error.advice].format(about=error.about)}"
