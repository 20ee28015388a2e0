"""Numbers as people read them."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def short(size: float) -> str:
    """A size in three digits or so: 512 B, 1.50 GiB."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    digits = 0 if unit == 0 or size >= 100 else 1 if size >= 10 else 2
    return f"{size:.{digits}f} {_UNITS[unit]}"


def done_of(done: float, size: float) -> str:
    """Both in the same unit, which keeps them short: 703 of 3174 MiB."""
    unit = 0
    while size >= 10_000 and unit < len(_UNITS) - 1:
        done, size, unit = done / 1024, size / 1024, unit + 1
    digits = 0 if unit == 0 or size >= 100 else 1
    return f"{done:.{digits}f} of {size:.{digits}f} {_UNITS[unit]}"


def counted(number: int, what: str) -> str:
    """A number of things: 1 drive, 2 drives."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def percent(part: float, whole: float) -> str:
    """A share in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def duration(seconds: float) -> str:
    """Seconds as 4.2 s, 3 min 05 s or 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def remaining(seconds: float) -> str:
    """Seconds that are left, about: 35 s left, 3 min 05 s left, 2 h 03 min left, 3 d 04 h left."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s left"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s left"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min left"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h left"
