"""Runs killed just before libvirt begins their job: nobody knows for a while whether it will come."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from live.libvirt_daemon import Disk, daemon, make_image
from live.processes import ended

from pybackup.core.libvirt.guardian import LATE_SECONDS

ROUNDS = 3


def test_a_job_that_may_come_late_is_waited_for(tmp_path: Path) -> None:
    make_image(tmp_path / "a.qcow2", "qcow2", 1 << 20, "write -P 7 0 1M")
    (fleece := tmp_path / "fleece").mkdir()
    (folder := tmp_path / "libvirt").mkdir()
    with daemon(folder) as libvirt:
        domain = libvirt.define("web", [Disk("vda", tmp_path / "a.qcow2", "qcow2")])
        try:
            domain.start()
            for _ in range(ROUNDS):
                command = domain.run(tmp_path / "killed.vma", fleece, "--trace", "libvirt.folder")
                client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                assert client.stderr is not None and client.stderr.readline()
                client.send_signal(signal.SIGSTOP)
                client.kill()
                ended(client)
                until = time.monotonic() + 3 * LATE_SECONDS
                while domain.has_job() or list(fleece.iterdir()):
                    assert time.monotonic() < until
                    time.sleep(0.1)
                assert domain.state == "paused"
        finally:
            libvirt.forget()
