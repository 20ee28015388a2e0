"""The clients of S3 that are open, each shared by all that is read of a bucket.

To make one takes a third of a second of a processor, which is longer than all that is asked of one archive, and an
archive of a chain is one of thirty. All but kept() runs in fsspec's event loop, so no lock is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pybackup.core.places.kinds import StoreUrl

from .filesystem import io_loop, open_folder
from .patience import Patience

CLOSE_TIMEOUT = 5.0
"""Seconds that closing connections may take."""


@dataclass(slots=True)
class SharedClient:
    """A client, the filesystem that made it, and by how many it is used."""

    key: tuple[str, str]
    filesystem: Any
    client: Any
    users: int = 0


_open: dict[tuple[str, str], SharedClient] = {}
_making: dict[tuple[str, str], asyncio.Lock] = {}
_keepers = 0
_keepers_lock = threading.Lock()


def _key(url: StoreUrl) -> tuple[str, str]:
    return url.scheme, url.url.partition("://")[2].partition("/")[0]


async def take(url: StoreUrl, patience: Patience) -> SharedClient:
    """A client for the bucket of a URL, until it is given back; fails as the library does."""
    key = _key(url)
    async with _making.setdefault(key, asyncio.Lock()):
        found = _open.get(key)
        if found is None:
            loop = asyncio.get_running_loop()
            filesystem, _ = open_folder(url, patience, asynchronous=True, loop=loop)
            found = _open[key] = SharedClient(key, filesystem, await filesystem.set_session())
    found.users += 1
    return found


async def give_back(shared: SharedClient) -> None:
    """The client is not used any more: it is closed, unless somebody uses it, or keeps those that nobody uses."""
    shared.users -= 1
    if not shared.users and not _keepers:
        await _close(shared)


async def _close(shared: SharedClient) -> None:
    if _open.get(shared.key) is shared:
        del _open[shared.key]
    _making.pop(shared.key, None)
    await shared.client.close()


async def _close_idle() -> None:
    for shared in [one for one in _open.values() if not one.users]:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await _close(shared)


@contextlib.contextmanager
def kept(url: StoreUrl) -> Iterator[None]:
    """Within the body clients stay open between two files, in whatever thread they are read."""
    global _keepers
    with _keepers_lock:
        _keepers += 1
    try:
        yield
    finally:
        with _keepers_lock:
            _keepers -= 1
            last = not _keepers
        if last and _open:
            asyncio.run_coroutine_threadsafe(_close_idle(), io_loop(url)).result()
