"""Disks that are no files: loop devices, NBD servers, a store. They stay as long as a box does."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from kills.box import Box
from live.processes import until


def loop_device(box: Box, name: str) -> str:
    """A block device on a file."""
    device = box.program("losetup", "--find", "--show", name).strip()

    def detach() -> None:
        # Whoever has it open still would keep it from going.
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
        box.program("losetup", "--detach", device)

    box.cleaning.callback(detach)
    return device


def nbd_server(box: Box, name: str, *options: str) -> str:
    """The address of a raw file behind a qemu-nbd; its socket lies beside the box's folders."""
    path = box.folder / f"{name}.sock"
    box.stand("qemu-nbd", "--format=raw", "--persistent", "--shared=0", f"--socket={path}", *options, name)
    until(path.exists)
    return f"nbd+unix:///?socket={path}"


class Bucket:
    """A bucket of moto's server, one server for all boxes, started when it is first wanted."""

    _lock = threading.Lock()
    _servers: list[tuple[object, int]] = []  # noqa: RUF012 - one for all
    _count = 0

    def __init__(self, box: Box) -> None:
        from object_store import moto_server

        with Bucket._lock:
            if not Bucket._servers:
                server = moto_server()
                Bucket._servers.append((server, server.__enter__()))
            Bucket._count += 1
            self._take(box, Bucket._servers[0][1], f"kills-{Bucket._count}")

    def _take(self, box: Box, port: int, bucket: str) -> None:
        from object_store import Store

        class Direct:
            url = f"http://127.0.0.1:{port}"

        self.store = Store(port, Direct(), Path(box.folder), bucket)  # type: ignore[arg-type]
        ours = {key: value for key, value in self.store.environment.items() if key.startswith(("AWS_", "PYBACKUP_P"))}
        box.environment.update(ours)

    @classmethod
    def close(cls) -> None:
        """End the server."""
        for server, _ in cls._servers:
            server.__exit__(None, None, None)  # type: ignore[attr-defined]
        cls._servers.clear()
