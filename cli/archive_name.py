"""Names of archives with fields in them, such as {host}-{name}-{now:%Y%m%d}.vma.zst."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import LocalPath, NewArchivePlace, ShellCommand, StoreUrl

FIELDS = {
    "host": "the name of this machine",
    "name": "the drives' names, joined by -; the domain's name with libvirt:",
    "job": "the name of the job file up to its last dot; without one as {name}",
    "now": "the archive's creation time, local; {now:FORMAT} as in strftime(3)",
    "uuid": "the archive's uuid",
}
"""Every field, and what stands in its place."""

DEFAULT_TIME = "%Y%m%dT%H%M%S"
"""ISO 8601 without the colons that no file name should have."""

_PLAIN = re.compile(r"[A-Za-z0-9_.,:+@%=][A-Za-z0-9_.,:+@%=-]*")
"""What means nothing to a shell, in no kind of quotes, and nothing in a URL."""


class ArchiveName:
    """What the fields of a name stand for. Nothing changes.

    ``created``: seconds since 1970.
    """

    def __init__(self, names: Sequence[str], job: str | None, created: int, uuid: bytes) -> None:
        name = "-".join(names)
        self._values = {
            "host": os.uname().nodename,
            "name": name,
            "job": job or name,
            "uuid": str(UUID(bytes=uuid)),
        }
        self._created = created

    def expand(self, place: NewArchivePlace) -> NewArchivePlace:
        """The place with every field replaced; RequestError for a field that is unknown or would leave the folder.

        It stays of the kind that it is: no field makes a command or a URL of a path.
        """
        expanded = type(place).of(self._expanded(place.text, isinstance(place, ShellCommand | StoreUrl)))
        assert expanded is not None
        return expanded

    def _expanded(self, template: str, is_plain_only: bool) -> str:
        parts = []
        for literal, field, form, conversion in _parsed(template):
            parts.append(literal)
            if field is None:
                continue
            if conversion is not None or "{" in (form or ""):
                raise RequestError(
                    f"{{{field}}} in {template!r} is written in a way that is not understood; {_known()}"
                )
            parts.append(self._value(field, form or "", template, is_plain_only))
        return "".join(parts)

    def _value(self, field: str, form: str, template: str, is_plain_only: bool) -> str:
        if field == "now":
            value = self._time(form or DEFAULT_TIME)
        elif field not in self._values:
            raise RequestError(f"{{{field}}} in {template!r} is no field; {_known()}")
        elif form:
            raise RequestError(f"{{{field}:{form}}} in {template!r}: only {{now}} has a format")
        else:
            value = self._values[field]
            if is_plain_only and not _PLAIN.fullmatch(value):
                raise RequestError(
                    f"{{{field}}} is {value!r} here, which is not safe in a command or URL; give it a plain name:"
                    " NAME=SOURCE"
                )
        if "/" in value or "\0" in value or value in ("", ".", ".."):
            raise RequestError(f"{{{field}}} is {value!r} here, which is not part of a file's name")
        return value

    def _time(self, form: str) -> str:
        try:
            return datetime.fromtimestamp(self._created).astimezone().strftime(form)
        except (ValueError, OverflowError, OSError) as error:
            raise RequestError(f"the time {self._created} cannot be written as {form!r}: {error}") from None


def fields_of(place: NewArchivePlace) -> set[str]:
    """The fields in a name (RequestError where its braces do not match)."""
    return {field for _, field, _, _ in _parsed(place.text) if field is not None}


def fixed_folder(place: NewArchivePlace) -> str | None:
    """The folder in a name before the first field, which must exist; None where there are no fields, or no files."""
    if not isinstance(place, LocalPath):
        return None
    before = ""
    for literal, field, _, _ in _parsed(place.path):
        before += literal
        if field is not None:
            return os.path.dirname(before)
    return None


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(template))
    except ValueError:
        raise RequestError(f"the braces in {template!r} do not match; {_known()}") from None


def _known() -> str:
    names = ", ".join(f"{{{name}}}" for name in FIELDS)
    return f"there are {names} and {{now:FORMAT}}, and {{{{ and }}}} stand for braces"
