"""What Prometheus is told of a run: a file for the textfile collector of its node exporter.

The format is https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4.
"""

from __future__ import annotations

import math
import os
import re
import stat
import time
from collections.abc import Mapping

from pybackup.core.errors import BusyError, PybackupError
from pybackup.core.sinks.partial_file import PartialFile
from pybackup.core.sinks.replaced import Replaced
from pybackup.core.system.file_io import write_fully

METRICS = {
    "pybackup_last_run_timestamp_seconds": "When the last run ended, in seconds since 1970.",
    "pybackup_last_success_timestamp_seconds": "When the last run that succeeded ended; 0 if none has.",
    "pybackup_duration_seconds": "How long the last run took, waiting for locks included.",
    "pybackup_size_bytes": "Size of all disks.",
    "pybackup_read_bytes": "Bytes that were read of the disks, holes not included.",
    "pybackup_zero_bytes": "Bytes of the disks that were found to be zeros.",
    "pybackup_stored_bytes": "Bytes of the disks that the archive holds, before compression.",
    "pybackup_written_bytes": "Bytes of the archive.",
    "pybackup_exit_code": "Exit code of the last run, 0 if it succeeded.",
}
"""Every metric, and its help. All are gauges."""

LAST_SUCCESS = "pybackup_last_success_timestamp_seconds"
_FIRST_LINE = "# HELP pybackup_"
PATIENCE, PAUSE = 10.0, 0.02
"""Seconds that are waited for another run that writes the same file, and between two looks."""
_MOST = 1 << 20
"""Bytes of an old file that are looked at."""


class MetricsFileError(PybackupError):
    """The metrics cannot be written; the backup does not suffer."""


def render(values: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """The content of the file, for a value for each of METRICS."""
    told = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(labels.items()))
    lines = []
    for name, what in METRICS.items():
        lines += [f"# HELP {name} {what}", f"# TYPE {name} gauge", f"{name}{{{told}}} {values[name]:.15g}"]
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def last_success(path: str, labels: Mapping[str, str]) -> float:
    """When the last run of the same job succeeded, as the file of an earlier run says; 0 where it does not."""
    old = _read(path)
    label = re.escape(f'job="{_escaped(labels["job"])}"')
    found = re.search(rf"^{LAST_SUCCESS}\{{(?:.*,)?{label}\}} (\S+)$", old, re.MULTILINE)
    try:
        value = float(found[1]) if found else 0.0
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0


def _read(path: str) -> str:
    """The beginning of a regular file, else nothing."""
    try:
        # A FIFO must not make us wait.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, encoding="utf-8", errors="replace", newline="\n") as file:
            return file.read(_MOST) if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    except OSError:
        return ""


def write(path: str, content: str) -> None:
    """Replace the file, in one step (MetricsFileError). A file that does not look like an older one is left alone."""
    # The collector reads *.prom, and the temporary file is called otherwise.
    file = PartialFile(path, replace=True, replaced=_OLDER)
    try:
        _open_patiently(file)
        write_fully(file.fd, 0, content.encode("utf-8", "replace"))
        os.fchmod(file.fd, 0o644)
        file.commit()
    except (OSError, PybackupError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        for beginning in (f"cannot create {path}: ", f"{path} exists already, and "):
            reason = reason.removeprefix(beginning)
        raise MetricsFileError(f"cannot write the metrics file {path}: {reason}") from error
    finally:
        file.abort()


def _open_patiently(file: PartialFile) -> None:
    """Another run may be writing its metrics just now."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            file.open()
            return
        except BusyError:
            if time.monotonic() > deadline:
                raise
        time.sleep(PAUSE)


def _no_older_one(fd: int, _name: str) -> str | None:
    start = os.pread(fd, len(_FIRST_LINE), 0)
    return None if start == _FIRST_LINE.encode() else "the file that is there is none of ours"


_OLDER = Replaced(_no_older_one, ", and no file replaces it")
