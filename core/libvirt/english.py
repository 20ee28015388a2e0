"""In which language virsh speaks. What libvirt's daemon says, and virsh passes on, is in the language of the daemon."""

from __future__ import annotations

import os


def in_english() -> dict[str, str]:
    """The environment for a virsh that is to be understood, with names of domains in UTF-8.

    LANGUAGE would have its way against LC_ALL, in all locales but plain C.
    """
    return {key: value for key, value in os.environ.items() if key != "LANGUAGE"} | {"LC_ALL": "C.UTF-8"}
