"""What an image means by the name of another file, as QEMU understands it: a path, file:PATH, or json:{...}.

Only names that lead to files and block devices are understood: what lies behind others, such as nbd://, can neither be
locked nor watched, and is refused.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from pybackup.core.errors import SourceError

PROTOCOLS = ("file", "host_device")
_NO_MATTER = ("auto-read-only", "discard", "detect-zeroes", "force-share", "node-name", "read-only")
_NO_MATTER_OF_FILES = (
    *_NO_MATTER,
    "aio",
    "cache",
    "check-cache-dropped",
    "drop-cache",
    "locking",
    "x-check-cache-dropped",
)
_MOST_LAYERS = 16


class Place(NamedTuple):
    """Bytes of a file: ``length`` of them from ``start`` on, None for all that follow."""

    path: str
    start: int = 0
    length: int | None = None

    @property
    def options(self) -> str:
        """In QEMU's words, as the file of an image: no protocol in its name is looked for, no format."""
        return self.options_of("file")

    def options_of(self, child: str, more: str = "") -> str:
        """As the child of that name; ``more`` is for the file itself. A comma is doubled."""
        driver = "file" if os.path.isfile(self.path) else "host_device"
        window = ""
        if self.start or self.length is not None:
            size = "" if self.length is None else f",{child}.size={self.length}"
            window = f"{child}.driver=raw,{child}.offset={self.start}{size},"
            child = f"{child}.file"
        name = os.path.abspath(self.path).replace(",", ",,")
        return f"{window}{child}.driver={driver},{child}.filename={name}" + (f",{child}.{more}" if more else "")

    def part(self, start: int, length: int | None) -> Place:
        """A part of it."""
        if length is None and self.length is not None:
            length = max(0, self.length - start)
        return Place(self.path, self.start + start, length)


class Named(NamedTuple):
    """A file that is meant by a name, and its format, None where neither the name nor the image tells."""

    place: Place
    image_format: str | None


def named_file(name: str, image_format: str | None, folder: str, *, of: str) -> Named:
    """What an image in ``folder`` means by a name and the format on record; ``of``: its own name (SourceError)."""
    if name.startswith("json:"):
        return _from_json(name.removeprefix("json:"), image_format, of)
    protocol, colon, rest = name.partition(":")
    if not colon or "/" in protocol:
        return Named(Place(os.path.join(folder, name)), image_format)
    if protocol not in PROTOCOLS:
        raise _refused(of, name)
    return Named(Place(os.path.abspath(rest)), image_format)  # QEMU does not look for it in the image's folder either


def _from_json(text: str, image_format: str | None, of: str) -> Named:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise SourceError(f"{of} names another file in a way that cannot be understood: json:{text[:200]}")
    options = dict(_flat(content, of))
    driver = options.get("driver")
    if image_format is not None and "driver" not in options:
        driver = options["driver"] = image_format
    if not isinstance(driver, str) or image_format not in (None, driver):
        raise _refused(of, f"json:{text[:200]}")
    if driver == "raw":
        return Named(_place(options, of), "raw")
    below = _below(options)
    _check_known({key for key in options if not key.startswith("file.")}, {"driver", *_NO_MATTER}, of)
    return Named(_place(below, of), driver)


def _flat(content: dict[str, Any], of: str, prefix: str = "", depth: int = 0) -> list[tuple[str, Any]]:
    """Options with dots, which QEMU takes for the same as objects within objects."""
    if depth > _MOST_LAYERS:
        raise SourceError(f"{of} names another file in too many layers")
    found: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            found += _flat(value, of, f"{prefix}{key}.", depth + 1)
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _place(options: dict[str, Any], of: str) -> Place:
    driver = options.get("driver")
    if driver in PROTOCOLS:
        known = {"driver", "filename", *_NO_MATTER_OF_FILES}
        _check_known({key.partition(".")[0] for key in options}, known, of)
        path = options.get("filename")
        if not isinstance(path, str) or not path or "\0" in path:
            raise SourceError(f"{of} names another file and does not say which")
        return Place(os.path.abspath(path))
    if driver != "raw":
        raise _refused(of, f"the driver {driver}")
    _check_known({key for key in options if not key.startswith("file.")}, {"driver", "offset", "size", *_NO_MATTER}, of)
    start, length = _number(options.get("offset", 0), of), options.get("size")
    return _place(_below(options), of).part(start or 0, None if length is None else _number(length, of))


def _below(options: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("file."): value for key, value in options.items() if key.startswith("file.")}


def _check_known(keys: set[str], known: set[str], of: str) -> None:
    if unknown := sorted(keys - known):
        raise SourceError(f"{of} names another file with the option {unknown[0]!r}, which is not understood")


def _number(value: object, of: str) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise SourceError(f"{of} names a part of another file in a way that cannot be understood: {text[:80]}")
    return int(text)


def _refused(of: str, name: str) -> SourceError:
    return SourceError(
        f"{of} reads from {name}: only files and block devices can be locked, and watched for changes, while a backup"
        " is made"
    )
