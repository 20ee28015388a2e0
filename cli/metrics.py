"""What Prometheus is told of a run: a file for the textfile collector of its node exporter.

The format is https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping

from pybackup.core.devices.file_io import write_fully
from pybackup.core.errors import PybackupError
from pybackup.core.sinks.partial_file import PartialFile
from pybackup.core.sinks.replaced import Replaced

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
    # Under its temporary name the collector, which reads *.prom, does not see it; and what a killed run has left under
    # that, the next one removes.
    file = PartialFile(path, replace=True, replaced=_METRICS, mode=0o644)
    try:
        file.open()
        os.fchmod(file.fd, 0o644)  # for the collector, whatever our umask is
        write_fully(file.fd, 0, content.encode("utf-8", "replace"))
        file.commit()
    except (PybackupError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix(f"cannot create {path}: ")
        raise MetricsFileError(f"cannot write the metrics file {path}: {reason}") from error
    finally:
        if not file.committed:
            file.abort()


def _foreign(fd: int) -> str | None:
    return None if os.pread(fd, len(_FIRST_LINE), 0) == _FIRST_LINE.encode() else "it is none of ours"


_METRICS = Replaced(_foreign)
