"""How the folders of each kind of store are listed. All of this runs in fsspec's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import HTTP_SCHEMES, S3_SCHEMES, SFTP_SCHEMES, StoreUrl

from .failures import is_missing, status_of
from .filesystem import folder_path, open_folder
from .patience import Patience
from .s3_clients import SharedClient, give_back, take

T = TypeVar("T")
PAGE = 1000
"""Objects that are asked for at a time: as many as S3 tells."""
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""By what names filesystems tell when a file was written."""


@dataclass(frozen=True, slots=True)
class RemoteEntry:
    """A file in a folder: its name, bytes, and when it was written: seconds since 1970, None where nobody says."""

    name: str
    size: int
    modified: float | None


class FolderSource(Protocol):
    """One store's way to a folder. Its methods fail as the store's library does, and can be repeated.

    Fixed: ``is_serial``, whether one request waits for the other.
    """

    is_serial: bool

    async def open(self) -> None:
        """Connect."""
        ...

    async def entries(self) -> Sequence[RemoteEntry]:
        """The files in the folder, without folders and all else."""
        ...

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of a file; fewer at its end."""
        ...

    async def write(self, name: str, content: bytes) -> None:
        """Make or replace a file in one step."""
        ...

    async def remove(self, name: str) -> None:
        """Remove a file."""
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


def folder_of(url: StoreUrl, patience: Patience) -> FolderSource:
    """What lists this folder; nothing is opened yet (RequestError where none can)."""
    if url.scheme in HTTP_SCHEMES:
        raise RequestError(f"{url}: a web server does not tell what lies in a folder")
    if url.scheme in S3_SCHEMES:
        return S3Folder(url, patience)
    return SftpFolder(url, patience) if url.scheme in SFTP_SCHEMES else FilesystemFolder(url, patience)


class S3Folder:
    """A prefix of keys, up to the next slash. Fixed after open(): client, bucket, prefix."""

    is_serial = False

    def __init__(self, url: StoreUrl, patience: Patience) -> None:
        self._url, self._patience = url, patience
        self._shared: SharedClient | None = None
        self._client: Any = None
        self._bucket = self._prefix = ""

    async def open(self) -> None:
        """No request yet."""
        self._bucket, _, prefix = folder_path(self._url).partition("/")
        self._prefix = prefix + "/" if prefix else ""
        if self._shared is None:
            self._shared = await take(self._url, self._patience)
            self._client = self._shared.client

    async def entries(self) -> Sequence[RemoteEntry]:
        """A request for each thousand."""
        found: list[RemoteEntry] = []
        more: dict[str, str] = {}
        while True:
            page = await self._client.list_objects_v2(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/", MaxKeys=PAGE, **more
            )
            found.extend(
                RemoteEntry(name, int(one["Size"]), one["LastModified"].timestamp())
                for one in page.get("Contents", [])
                if (name := one["Key"].removeprefix(self._prefix))
            )
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """One GET request."""
        try:
            answer = await self._client.get_object(**self._place(name), Range=f"bytes={offset}-{offset + length - 1}")
        except Exception as error:
            if status_of(error) == 416:  # what S3 says of any range of an empty file
                return b""
            raise
        async with answer["Body"] as body:
            if answer["ContentLength"] > length:
                raise OSError(None, "the server does not offer ranges of it")
            return bytes(await body.read())

    async def write(self, name: str, content: bytes) -> None:
        """One PUT request, which is whole or nothing."""
        await self._client.put_object(**self._place(name), Body=content)

    async def remove(self, name: str) -> None:
        """One DELETE request."""
        await self._client.delete_object(**self._place(name))

    def _place(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    async def close(self) -> None:
        """Give the client back."""
        shared, self._shared = self._shared, None
        if shared is not None:
            await give_back(shared)


class SftpFolder:
    """A folder over SFTP. Changing, by one thread at a time: the connection, which is made anew after a failure."""

    is_serial = True

    def __init__(self, url: StoreUrl, patience: Patience) -> None:
        self._url, self._patience = url, patience
        self._turn = threading.Lock()
        self._filesystem: Any = None
        self._path = ""

    async def open(self) -> None:
        """Connect."""
        await self._call(lambda _: None)

    async def _call(self, call: Callable[[Any], T]) -> T:
        """What a call of paramiko's client gives, in a thread."""

        def connected() -> T:
            with self._turn:
                return in_turn()

        def in_turn() -> T:
            try:
                if self._filesystem is None:
                    self._filesystem, self._path = open_folder(self._url, self._patience)
                    self._filesystem.ftp.get_channel().settimeout(self._patience.stall)
                return call(self._filesystem.ftp)
            except OSError as error:
                if not is_missing(error):
                    self._disconnect()
                raise
            except BaseException:
                self._disconnect()
                raise

        return await asyncio.to_thread(connected)

    async def entries(self) -> Sequence[RemoteEntry]:
        """Regular files only: no links, nor what else a server may have."""
        return await self._call(
            lambda ftp: [
                RemoteEntry(one.filename, int(one.st_size or 0), float(one.st_mtime or 0) or None)
                for one in ftp.listdir_iter(self._path or "/")
                if stat.S_ISREG(one.st_mode or 0)
            ]
        )

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """In many small requests at once."""

        def read(ftp: Any) -> bytes:
            with ftp.open(self._at(name), "rb") as file:
                left = max(0, min(length, int(file.stat().st_size) - offset))
                return b"".join(file.readv([(offset, left)])) if left else b""

        return await self._call(read)

    async def write(self, name: str, content: bytes) -> None:
        """Write a file beside, and rename it."""

        def write(ftp: Any) -> None:
            partial = self._at(f".{name}.{secrets.token_hex(4)}.partial")
            try:
                with ftp.open(partial, "wx") as file:
                    file.write(content)
                ftp.posix_rename(partial, self._at(name))
            except BaseException:
                with contextlib.suppress(Exception):
                    ftp.remove(partial)
                raise

        await self._call(write)

    async def remove(self, name: str) -> None:
        """Remove a file."""
        await self._call(lambda ftp: ftp.remove(self._at(name)))

    def _at(self, name: str) -> str:
        return posixpath.join(self._path or "/", name)

    def _disconnect(self) -> None:
        filesystem, self._filesystem = self._filesystem, None
        if filesystem is not None:
            filesystem.client.close()

    async def close(self) -> None:
        """Close the connection."""
        await asyncio.to_thread(self._disconnect)


class FilesystemFolder:
    """A folder of any filesystem that fsspec knows. Fixed after open()."""

    is_serial = False

    def __init__(self, url: StoreUrl, patience: Patience) -> None:
        self._url, self._patience = url, patience
        self._filesystem: Any = None
        self._path = ""

    async def open(self) -> None:
        """Make the filesystem."""
        self._filesystem, self._path = open_folder(
            self._url, self._patience, asynchronous=True, loop=asyncio.get_running_loop()
        )

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        self._filesystem.invalidate_cache()
        if self._filesystem.async_impl:
            return await getattr(self._filesystem, f"_{method}")(*arguments, **options)
        return await asyncio.to_thread(getattr(self._filesystem, method), *arguments, **options)

    async def entries(self) -> Sequence[RemoteEntry]:
        """As the filesystem tells; what has no size is no file."""
        found = await self._call("ls", self._path, detail=True)
        return list(self._files(found))

    def _files(self, found: Iterable[dict[str, Any]]) -> Iterable[RemoteEntry]:
        for one in found:
            name = posixpath.basename(str(one.get("name", "")))
            if one.get("type") == "file" and name and isinstance(one.get("size"), int):
                yield RemoteEntry(name, one["size"], _time_of(one))

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """One range."""
        return bytes(await self._call("cat_file", f"{self._path}/{name}", start=offset, end=offset + length))

    async def write(self, name: str, content: bytes) -> None:
        """Such stores show a file when it is whole."""
        await self._call("pipe_file", f"{self._path}/{name}", content)

    async def remove(self, name: str) -> None:
        """Remove a file."""
        await self._call("rm_file", f"{self._path}/{name}")

    async def close(self) -> None:
        """Close the session, where the filesystem has one to close."""
        session = getattr(self._filesystem, "_session", None)
        if session is not None and asyncio.iscoroutinefunction(getattr(session, "close", None)):
            await session.close()


def _time_of(found: dict[str, Any]) -> float | None:
    """When a file was written, of what a filesystem tells in one of several ways."""
    for name in _TIMES:
        told = found.get(name)
        if isinstance(told, datetime):
            return told.timestamp()
        if isinstance(told, int | float) and not isinstance(told, bool):
            return float(told)
        if isinstance(told, str):
            with contextlib.suppress(ValueError):
                return datetime.fromisoformat(told).timestamp()
    return None
