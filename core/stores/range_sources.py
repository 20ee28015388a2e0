"""How each kind of store is read by ranges. All of this runs in fsspec's event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Protocol

from pybackup.core.places.kinds import HTTP_SCHEMES, S3_SCHEMES, SFTP_SCHEMES, StoreUrl

from .failures import ReplacedError, is_missing
from .filesystem import check_names_file, open_filesystem
from .patience import Patience
from .s3_clients import SharedClient, give_back, take


class RangeSource(Protocol):
    """One store's way to read a file. Its methods fail as the store's library does."""

    async def open(self) -> int:
        """Connect and look the file up; its size in bytes."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """The range, in one attempt."""
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...

    def interrupt(self) -> None:
        """Make calls that cannot be cancelled fail, from any thread."""
        ...


def source_of(url: StoreUrl, patience: Patience) -> RangeSource:
    """What reads this URL; nothing is opened yet."""
    scheme = url.scheme
    if scheme in S3_SCHEMES:
        return S3Object(url, patience)
    if scheme in HTTP_SCHEMES:
        return HttpFile(url, patience)
    return SftpFile(url, patience) if scheme in SFTP_SCHEMES else FilesystemFile(url, patience)


class S3Object:
    """An object, or one version of it. Fixed after open(): client, place, and the ETag that every answer must have."""

    def __init__(self, url: StoreUrl, patience: Patience) -> None:
        self._url, self._patience = url, patience
        self._shared: SharedClient | None = None
        self._client: Any = None
        self._place: dict[str, str] = {}
        self._etag = ""

    async def open(self) -> int:
        """One HEAD request."""
        if self._shared is None:
            check_names_file(self._url)
            self._shared = await take(self._url, self._patience)
            bucket, key, version = self._shared.filesystem.split_path(self._url.url)
            self._place = {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}
            self._client = self._shared.client
        try:
            found = await self._client.head_object(**self._place)
        except Exception as error:
            if is_missing(error):
                # An answer to HEAD has no body that would say what is missing: the bucket, or the object.
                await self._client.get_object(**self._place, Range="bytes=0-0")
            raise
        self._etag = found["ETag"]
        return int(found["ContentLength"])

    async def read(self, offset: int, length: int) -> bytes:
        """One GET request."""
        answer = await self._client.get_object(**self._place, Range=f"bytes={offset}-{offset + length - 1}")
        async with answer["Body"] as body:
            if answer["ETag"] != self._etag:
                raise ReplacedError
            if answer["ContentLength"] != length:
                # A server that knows no ranges sends everything.
                return b""
            content: bytes = await body.read()
            return content

    async def close(self) -> None:
        """Give the client back."""
        shared, self._shared = self._shared, None
        if shared is not None:
            await give_back(shared)

    def interrupt(self) -> None:
        """Nothing to do: its calls can be cancelled."""


class HttpFile:
    """A file of a web server, which may be asked to sign nothing but GET. Fixed after open()."""

    def __init__(self, url: StoreUrl, patience: Patience) -> None:
        self._url, self._patience = url, patience
        self._session: Any = None
        self._etag: str | None = None

    async def open(self) -> int:
        """Fetch the first byte: the answer tells the size, and whether the server knows ranges."""
        if self._session is None:
            loop = asyncio.get_running_loop()
            filesystem, _ = open_filesystem(self._url, self._patience, asynchronous=True, loop=loop)
            self._session = await filesystem.set_session()
        async with self._get(0, 1) as answer:
            if answer.status == 416:
                return 0
            size = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status != 206 or not size.isdecimal():
                raise OSError(None, "the server does not offer ranges of it")
            self._etag = answer.headers.get("ETag")
            return int(size)

    def _get(self, offset: int, length: int) -> Any:
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(sock_connect=self._patience.stall, sock_read=self._patience.stall)
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        return self._session.get(self._url.url, headers=headers, timeout=timeout, raise_for_status=_refuse)

    async def read(self, offset: int, length: int) -> bytes:
        """One range."""
        async with self._get(offset, length) as answer:
            if answer.headers.get("ETag") != self._etag:
                raise ReplacedError
            if answer.status != 206 or answer.content_length != length:
                return b""
            content: bytes = await answer.read()
            return content

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def interrupt(self) -> None:
        """Nothing to do: its calls can be cancelled."""


async def _refuse(answer: Any) -> None:
    """416 is what a server says of any range of an empty file."""
    if answer.status != 416:
        answer.raise_for_status()


class FilesystemFile:
    """A file of any filesystem that fsspec knows. Fixed after open()."""

    def __init__(self, url: StoreUrl, patience: Patience) -> None:
        self._url, self._patience = url, patience
        self._filesystem: Any = None
        self._path = ""

    async def open(self) -> int:
        """Ask for its size."""
        if self._filesystem is None:
            self._filesystem, self._path = open_filesystem(
                self._url, self._patience, asynchronous=True, loop=asyncio.get_running_loop()
            )
        if self._filesystem.async_impl:
            found = await self._filesystem._info(self._path)  # noqa: SLF001 - how fsspec calls its coroutines
        else:
            found = await asyncio.to_thread(self._filesystem.info, self._path)
        if found.get("type") == "directory":
            raise IsADirectoryError(None, "it is a folder")
        if found.get("size") is None:
            raise OSError(None, "the server does not tell its size")
        return int(found["size"])

    async def read(self, offset: int, length: int) -> bytes:
        """One range."""
        end = offset + length
        content: bytes
        if self._filesystem.async_impl:
            content = await self._filesystem._cat_file(self._path, start=offset, end=end)  # noqa: SLF001 - likewise
        else:
            content = await asyncio.to_thread(self._filesystem.cat_file, self._path, start=offset, end=end)
        return content

    async def close(self) -> None:
        """Close the session, where the filesystem has one to close."""
        session = getattr(self._filesystem, "_session", None)
        if session is not None and asyncio.iscoroutinefunction(getattr(session, "close", None)):
            await session.close()

    def interrupt(self) -> None:
        """Nothing to do."""


class SftpFile:
    """A file over SFTP. Changing, by one thread at a time: the connection, which is made anew after a failure."""

    def __init__(self, url: StoreUrl, patience: Patience) -> None:
        self._url, self._patience = url, patience
        self._turn = threading.Lock()
        self._filesystem: Any = None
        self._file: Any = None
        self._identity: tuple[int, int] | None = None

    async def open(self) -> int:
        """Connect, and look at the file."""
        return await asyncio.to_thread(self._connect)

    def _connect(self) -> int:
        self._disconnect()
        self._filesystem, path = open_filesystem(self._url, self._patience)
        self._filesystem.ftp.get_channel().settimeout(self._patience.stall)
        self._file = self._filesystem.ftp.open(path, "rb")
        found = self._file.stat()
        identity = int(found.st_size), int(found.st_mtime)
        if self._identity not in (None, identity):
            raise ReplacedError
        self._identity = identity
        return identity[0]

    async def read(self, offset: int, length: int) -> bytes:
        """One range, in many small requests at once."""
        return await asyncio.to_thread(self._read, offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        with self._turn:
            try:
                if self._file is None:
                    self._connect()
                return b"".join(self._file.readv([(offset, length)]))
            except BaseException:
                self._disconnect()
                raise

    def _disconnect(self) -> None:
        filesystem, self._filesystem, self._file = self._filesystem, None, None
        if filesystem is not None:
            filesystem.client.close()

    async def close(self) -> None:
        """Close the connection."""
        await asyncio.to_thread(self._disconnect)

    def interrupt(self) -> None:
        """Close the connection under the thread that waits for it."""
        filesystem = self._filesystem
        if filesystem is not None:
            filesystem.client.close()
