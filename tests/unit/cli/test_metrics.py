"""The metrics file, as Prometheus' own parsers read it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pybackup.cli import metrics

VALUES = {name: float(number) for number, name in enumerate(metrics.METRICS)}
LABELS = {"archive": "/b/x.vma", "job": "vm1"}


def parsed(text: str) -> dict[str, tuple[dict[str, str], float]]:
    """(labels, value) of each metric, each of which must have help, a type and one sample."""
    found = {}
    for family in text_string_to_metric_families(text):
        (sample,) = family.samples
        assert (family.type, bool(family.documentation), sample.name) == ("gauge", True, family.name)
        found[family.name] = (sample.labels, sample.value)
    return found


def test_the_format() -> None:
    text = metrics.render(VALUES, LABELS)
    assert parsed(text) == {name: (LABELS, value) for name, value in VALUES.items()}
    promtool = shutil.which("promtool")
    if promtool is not None:
        subprocess.run([promtool, "check", "metrics"], input=text.encode(), check=True)


@given(st.text(), st.text())
def test_labels_hold_any_text(archive: str, job: str) -> None:
    labels = {"archive": archive, "job": job}
    assert parsed(metrics.render(VALUES, labels))["pybackup_exit_code"][0] == labels


def test_large_numbers_are_exact() -> None:
    values = {**VALUES, "pybackup_size_bytes": 123_456_789_012_345, metrics.LAST_SUCCESS: 1795410213.94}
    found = parsed(metrics.render(values, LABELS))
    assert found["pybackup_size_bytes"][1] == 123_456_789_012_345
    assert found[metrics.LAST_SUCCESS][1] == 1795410213.94


def test_the_file_is_replaced_and_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "vm1.prom"
    before = os.umask(0o077)
    try:
        metrics.write(str(path), metrics.render(VALUES, LABELS))
        inode = path.stat().st_ino
        metrics.write(str(path), metrics.render(VALUES, {**LABELS, "archive": "\udcff"}))
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == ["vm1.prom"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.stat().st_ino != inode
    assert parsed(path.read_text())["pybackup_exit_code"][0]["archive"] == "?"


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    disk, fifo = tmp_path / "disk.img", tmp_path / "fifo"
    disk.write_bytes(b"\xff disk")
    os.mkfifo(fifo)
    for path, sentence in [
        (disk, "none of ours"),
        (fifo, "it is a FIFO, and no file replaces it"),
        (tmp_path, "it is a folder, and no file replaces it"),
        (tmp_path / "nowhere" / "x", "the folder .*nowhere does not exist"),
    ]:
        with pytest.raises(metrics.MetricsFileError, match=sentence):
            metrics.write(str(path), "")
    assert disk.read_bytes() == b"\xff disk"
    assert sorted(os.listdir(tmp_path)) == ["disk.img", "fifo"]
    disk.write_bytes(b"")
    metrics.write(str(disk), "# HELP pybackup_")


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".vm1.prom.partial").touch(mode=0o644)
    metrics.write(str(tmp_path / "vm1.prom"), metrics.render(VALUES, LABELS))
    assert os.listdir(tmp_path) == ["vm1.prom"]


def test_the_last_success_is_found_again(tmp_path: Path) -> None:
    path = str(tmp_path / "vm1.prom")
    assert metrics.last_success(path, LABELS) == 0
    for job in ("vm1", 'a"b\\c\nd', "x,y} 3", ""):
        labels = {"archive": 'odd",job="vm1"} 7', "job": job}
        metrics.write(path, metrics.render({**VALUES, metrics.LAST_SUCCESS: 1795410213.5}, labels))
        assert metrics.last_success(path, {**labels, "archive": "another"}) == 1795410213.5
        assert metrics.last_success(path, {**labels, "job": "another"}) == 0


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-3", "x", "", "0x10", "1e999"])
def test_nonsense_in_an_old_file_is_no_success(tmp_path: Path, value: str) -> None:
    path = tmp_path / "vm1.prom"
    path.write_text(f'{metrics.LAST_SUCCESS}{{archive="a",job="vm1"}} {value}\n')
    assert metrics.last_success(str(path), LABELS) == 0


def test_an_old_file_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert metrics.last_success(str(tmp_path / "fifo"), LABELS) == 0
    assert metrics.last_success(str(tmp_path), LABELS) == 0
