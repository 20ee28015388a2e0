"""A file in a remote filesystem that is no S3: it gets its name when it is whole.

Over SFTP it is written under a temporary name beside the final one, as a local file is. Other filesystems have a
transaction of their own, which shows the file at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import posixpath
import re
import secrets
from collections.abc import Sequence
from typing import Any, Protocol

from pybackup.core.device import Buffer
from pybackup.core.errors import Advice, PybackupError, TargetError
from pybackup.core.places.kinds import SFTP_SCHEMES, StoreUrl
from pybackup.core.sinks.archive_signs import HEAD_BYTES, begins_archive
from pybackup.core.sinks.replaced import NO_ARCHIVE
from pybackup.core.system.blocking_calls import BlockingCalls

from .failures import is_missing, reason
from .filesystem import open_filesystem
from .patience import Patience
from .upload_record import UploadRecord

WRITTEN_AT_ONCE = 1 << 20
"""Bytes that are passed on at a time."""


class RemoteOutput(Protocol):
    """One kind of filesystem's way to a whole file. Blocking calls, one at a time; they fail as the library does.

    Changing: ``is_there``, whether the whole file has its name.
    """

    is_there: bool

    def open(self) -> None:
        """Connect and get ready."""
        ...

    def exists(self) -> bool:
        """Whether there is something under the final name."""
        ...

    def head(self) -> bytes:
        """The first bytes of what is there, as many as begins_archive() wants."""
        ...

    def write(self, content: Buffer) -> None:
        """Append."""
        ...

    def commit(self, replace: bool) -> None:
        """Give the file its name; FileExistsError where something is there and is not to be replaced."""
        ...

    def discard(self) -> None:
        """Leave nothing behind, and disconnect."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


class RemoteFileSink:
    """Writes one file. A failure is not repeated: what a broken connection took is not known.

    Fixed: the URL, the output. Changing: whether the output has been opened.
    """

    def __init__(self, url: StoreUrl, *, replace: bool = False) -> None:
        self.name = str(url)
        self._name, self._replace = url.text, replace
        kind = SftpOutput if url.scheme in SFTP_SCHEMES else TransactionOutput
        self._output: RemoteOutput = kind(url, Patience.of_environment())
        self._calls = BlockingCalls(threads=1)

    async def begin(self) -> None:
        """Connect; TargetError where the file exists."""
        await self._run("create", self._output.open)
        if not await self._run("create", self._output.exists):
            return
        head = await self._run("look at", self._output.head)
        if head and not begins_archive(head, self._name):
            raise TargetError(f"{self.name} exists already, and {NO_ARCHIVE}")
        if not self._replace:
            raise TargetError(f"{self.name} exists already", advice=Advice.REPLACE)

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Append."""
        for buffer in buffers:
            view = memoryview(buffer)
            for at in range(0, len(view), WRITTEN_AT_ONCE):
                await self._run("write", self._output.write, view[at : at + WRITTEN_AT_ONCE])

    async def commit(self) -> None:
        """Give it its name."""
        try:
            await self._run("finish", self._output.commit, self._replace)
        except asyncio.CancelledError:
            if not self._output.is_there:
                raise
        with contextlib.suppress(Exception):  # it is there, however we part
            await self._calls.run(self._output.close)
        await self._calls.close()

    async def abort(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(Exception):
            await self._calls.run(self._output.discard)
        await self._calls.close()

    async def _run(self, doing: str, call: Any, *arguments: Any) -> Any:
        try:
            return await self._calls.run(call, *arguments)
        except PybackupError:
            raise
        except FileExistsError:
            raise TargetError(f"{self.name} appeared while it was being written", advice=Advice.REPLACE) from None
        except Exception as error:
            raise TargetError(f"cannot {doing} {self.name}: {reason(error)}") from error


class SftpOutput:
    """A file over SFTP. Changing: the connection, the temporary file, and how many bytes it should have.

    What its name is stays in a record on this machine (see upload_record.py), so that the next run removes what a
    killed one has left there, or one whose connection broke.
    """

    def __init__(self, url: StoreUrl, patience: Patience) -> None:
        self._url, self._patience = url, patience
        self._filesystem: Any = None
        self._file: Any = None
        self.is_there = False
        self._path = self._partial = ""
        self._last, self._size = b"", 0
        self._record = UploadRecord(str(url), str(url))

    def open(self) -> None:
        """Connect. The temporary name is nobody else's: there are no locks over SFTP, only on our side (BusyError)."""
        self._filesystem, self._path = open_filesystem(self._url, self._patience)
        folder, name = posixpath.split(self._path)
        self._partial = posixpath.join(folder, f".{name}.{secrets.token_hex(4)}.partial")
        self._filesystem.ftp.get_channel().settimeout(self._patience.stall)
        left = self._record.take()
        if left is not None and re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.partial", left):
            with contextlib.suppress(OSError):
                self._filesystem.ftp.remove(posixpath.join(folder, left))

    def exists(self) -> bool:
        """Whether the final name is taken."""
        try:
            self._filesystem.ftp.lstat(self._path)
        except OSError as error:
            if is_missing(error):
                return False
            raise
        return True

    def head(self) -> bytes:
        """The first bytes of what has the final name."""
        with self._filesystem.ftp.open(self._path, "rb") as file:
            return bytes(file.read(HEAD_BYTES))

    def write(self, content: Buffer) -> None:
        """Append, without waiting for each answer; the last piece is kept back for commit()."""
        if self._file is None:
            self._record.remember(posixpath.basename(self._partial))
            self._file = self._filesystem.ftp.open(self._partial, "wx")
            self._file.set_pipelined(True)
        self._file.write(self._last)
        self._last = bytes(content)
        self._size += len(content)

    def commit(self, replace: bool) -> None:
        """Wait for all answers, compare the sizes, rename."""
        # Only a write that is not pipelined waits: for its own answer, and for all before it.
        self._file.set_pipelined(False)
        self._file.write(self._last)
        self._file.close()
        kept = self._filesystem.ftp.stat(self._partial).st_size
        if kept != self._size:
            raise OSError(errno.EIO, f"the server kept {kept} bytes of {self._size}")
        if not replace and self.exists():
            raise FileExistsError(errno.EEXIST, "it exists")
        try:
            # rename() of SFTP refuses a name that is taken; posix_rename() replaces it.
            rename = self._filesystem.ftp.posix_rename if replace else self._filesystem.ftp.rename
            rename(self._partial, self._path)
        except Exception:
            if not self._is_renamed():
                raise
        self.is_there = True
        self._record.forget()

    def _is_renamed(self) -> bool:
        """Whether the file has its name although no answer says so: asked through a new connection."""
        try:
            again, _ = open_filesystem(self._url, self._patience)
            with contextlib.closing(again.client):
                again.ftp.get_channel().settimeout(self._patience.stall)
                return [_size_of(again, path) for path in (self._partial, self._path)] == [None, self._size]
        except Exception:
            return False

    def discard(self) -> None:
        """Remove the temporary file."""
        if self._filesystem is None:
            return
        try:
            if self._file is not None:
                self._filesystem.ftp.remove(self._partial)
            self._record.forget()
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        self._record.close()
        filesystem, self._filesystem = self._filesystem, None
        if filesystem is not None:
            filesystem.client.close()


def _size_of(filesystem: Any, path: str) -> int | None:
    """The size of a file in bytes, or None where there is none."""
    try:
        return int(filesystem.ftp.lstat(path).st_size)
    except OSError as error:
        if is_missing(error):
            return None
        raise


class TransactionOutput:
    """A file in a filesystem with transactions. Changing: the file, and whether the transaction is open."""

    def __init__(self, url: StoreUrl, patience: Patience) -> None:
        self._url, self._patience = url, patience
        self._filesystem: Any = None
        self._file: Any = None
        self.is_there = False
        self._path = ""

    def open(self) -> None:
        """Begin the transaction."""
        self._filesystem, self._path = open_filesystem(self._url, self._patience)

    def exists(self) -> bool:
        """Whether the name is taken."""
        self._filesystem.invalidate_cache()
        return bool(self._filesystem.exists(self._path))

    def head(self) -> bytes:
        """The first bytes of what has the name."""
        return bytes(self._filesystem.cat_file(self._path, 0, HEAD_BYTES))

    def write(self, content: Buffer) -> None:
        """Append; the library sends block by block."""
        if self._file is None:
            self._filesystem.start_transaction()
            self._file = self._filesystem.open(self._path, "wb")
        self._file.write(content)

    def commit(self, replace: bool) -> None:
        """End the transaction: the file appears."""
        if not replace and self.exists():
            raise FileExistsError(errno.EEXIST, "it exists")
        self._file.close()
        self._filesystem.end_transaction()
        self._file = None
        self.is_there = True

    def discard(self) -> None:
        """Give the transaction up."""
        if self._file is not None:
            self._filesystem.transaction.complete(commit=False)

    def close(self) -> None:
        """Nothing is kept open."""
