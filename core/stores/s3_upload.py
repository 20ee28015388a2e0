"""An object in S3, or in a store that speaks its protocol: a multipart upload straight from the stream.

Parts are not visible. The object appears in one step, CompleteMultipartUpload, which names every part and its ETag; so
there is never a short object. What a failed or cancelled run sent is dropped by AbortMultipartUpload.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
from collections.abc import Sequence
from typing import Any

from pybackup.core.device import Buffer
from pybackup.core.errors import Advice, PybackupError, TargetError, TargetFullError
from pybackup.core.places.kinds import StoreUrl
from pybackup.core.sinks.archive_signs import HEAD_BYTES, begins_archive
from pybackup.core.sinks.replaced import NO_ARCHIVE
from pybackup.core.tasks import beside, end, end_within, wait_until_at_most

from .failures import StalledError, code_of, is_missing, reason, status_of
from .filesystem import open_filesystem
from .patience import Patience
from .upload_part import PLAN, PartReader, Step, UploadPart, steps_of
from .upload_record import UploadRecord

MARK = "pybackup-run"
"""Metadata of the object that tells our own from one that somebody else wrote meanwhile."""
ABORT_PATIENCE = 20.0
"""Seconds for the cleaning up after a failure; what remains is aborted by the next run."""
COMPLETE = "complete_multipart_upload"
COMPLETING = 10
"""Times the patience: putting thousands of parts together takes minutes, in which the server sends blanks."""
ABORTS = 3
"""So often an upload is aborted in which parts turn up."""
PART_FACTS = frozenset(
    {"ETag", "ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256"}
)


class S3Upload:
    """Writes one object.

    Fixed: the URL, the patience, the plan of parts, the mark. Changing, in the event loop only: the connection, the
    upload, the part that is filled, the parts on their way, and what the store said of those that arrived.
    """

    def __init__(
        self,
        url: StoreUrl,
        *,
        replace: bool = False,
        patience: Patience | None = None,
        plan: tuple[Step, ...] = PLAN,
    ) -> None:
        self.name = str(url)
        self._url, self._replace = url, replace
        self._patience = patience or Patience.of_environment()
        self._steps = steps_of(plan)
        self._mark = secrets.token_hex(16)
        self._client: Any = None
        self._place: dict[str, str] = {}
        self._record: UploadRecord | None = None
        self._left: str | None = None
        self._upload_id = ""
        self._size = self._parts = 0
        self._part: UploadPart | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._sent: dict[int, dict[str, Any]] = {}

    # -- begin --

    async def begin(self) -> None:
        """Begin an upload: TargetError where the object exists, BusyError where another run writes it."""
        try:
            await self._connect()
            await self._check_replaced()
            await self._take_record()
            await self._create()
        except PybackupError:
            raise
        except Exception as error:
            raise self._failure("create", error) from error

    async def _connect(self) -> None:
        filesystem, _ = open_filesystem(self._url, self._patience, asynchronous=True, loop=asyncio.get_running_loop())
        bucket, key, _ = filesystem.split_path(self._url.url)
        self._place = {"Bucket": bucket, "Key": key}
        self._client = await filesystem.set_session()

    async def _check_replaced(self) -> None:
        """Refuse to replace what is there, or what is no archive (TargetError). Who may only write, may not look."""
        try:
            found = await self._object_there()
            if found is None:
                return
            if found["ContentLength"] and not begins_archive(await self._head(), self._url.text):
                raise TargetError(f"{self.name} exists already, and {NO_ARCHIVE}")
        except Exception as error:
            if isinstance(error, PybackupError) or status_of(error) != 403 or not self._replace:
                raise
        if not self._replace:
            raise TargetError(f"{self.name} exists already", advice=Advice.REPLACE)

    async def _head(self) -> bytes:
        """The first bytes of the object that is there."""
        answer = await self._call("get_object", Range=f"bytes=0-{HEAD_BYTES - 1}")
        async with answer["Body"] as body:
            return bytes(await body.read())

    async def _take_record(self) -> None:
        server = self._client.meta.endpoint_url
        self._record = UploadRecord(self.name, f"{server} {self._place['Bucket']} {self._place['Key']}")
        self._left = self._record.take()
        if self._left is not None:
            await self._drop_upload(self._left, self._patience)
            self._record.remember("")
            self._left = None

    async def _create(self) -> None:
        """Wait for the answer even when cancelled: without it nobody could abort what was begun."""
        creating = asyncio.create_task(
            self._call("create_multipart_upload", Metadata={MARK: self._mark}, ContentType="application/octet-stream")
        )
        try:
            await asyncio.wait([creating])
        except asyncio.CancelledError:
            await end_within([creating], ABORT_PATIENCE)
            raise
        finally:
            if creating.done() and not creating.cancelled() and creating.exception() is None:
                self._upload_id = str(creating.result()["UploadId"])
                if self._record is not None:
                    self._record.remember(self._upload_id)
        creating.result()

    async def _call(self, method: str, patience: Patience | None = None, **arguments: Any) -> Any:
        """One request about the object, repeated while its failure may pass."""
        patience = patience or self._patience
        stall = patience.seconds * COMPLETING if method == COMPLETE else patience.stall
        return await patience.retry(lambda: self._attempt(method, stall, **arguments))

    async def _attempt(self, method: str, stall: float, part: UploadPart | None = None, **arguments: Any) -> Any:
        """One attempt; given up when it makes no progress, which the library does not see while it sends."""
        body = PartReader(part) if part is not None else None
        if body is not None:
            arguments["Body"] = body
        async with beside(getattr(self._client, method)(**self._place, **arguments)) as request:
            while True:
                reads = body.reads if body is not None else 0
                if (await asyncio.wait([request], timeout=stall))[0]:
                    return request.result()
                if body is None or body.reads == reads:
                    raise StalledError

    async def _object_there(self, patience: Patience | None = None) -> dict[str, Any] | None:
        """What the store says of the object that is there now, or None."""
        try:
            found: dict[str, Any] = await self._call("head_object", patience)
        except Exception as error:
            if is_missing(error):
                return None
            raise
        return found

    # -- parts --

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Append; waits while the store is slower than we are."""
        try:
            for buffer in buffers:
                view = memoryview(buffer)
                while len(view):
                    part = await self._open_part()
                    piece, view = view[: part.room], view[part.room :]
                    if part.on_disk:
                        await asyncio.to_thread(part.fill, piece)
                    else:
                        part.fill(piece)
        except PybackupError:
            raise
        except Exception as error:
            raise self._failure("write", error) from error

    async def _open_part(self) -> UploadPart:
        """The part that has room."""
        if self._part is not None and self._part.room:
            return self._part
        self._send_part()
        step = next(self._steps, None)
        if step is None:
            raise TargetError(f"cannot write {self.name}: it is larger than an object may be")
        await wait_until_at_most(self._sending, step.held - 1)
        self._part = UploadPart(step.size)
        return self._part

    def _send_part(self) -> None:
        part, self._part = self._part, None
        if part is None:
            return
        self._parts += 1
        self._size += part.filled
        sending = asyncio.create_task(self._send(self._parts, part))
        # Also of a task that is cancelled before it begins.
        sending.add_done_callback(lambda _: part.close())
        self._sending.add(sending)

    async def _send(self, number: int, part: UploadPart) -> None:
        answer = await self._call(
            "upload_part", part=part, UploadId=self._upload_id, PartNumber=number, ContentLength=part.filled
        )
        # What the store tells of the part, the ETag and maybe a checksum, is repeated when the upload is completed.
        told = {key: value for key, value in answer.items() if key in PART_FACTS}
        self._sent[number] = {"PartNumber": number, **told}

    # -- the end --

    async def commit(self) -> None:
        """Send the rest and let the object appear; what appeared is looked at once more."""
        try:
            self._send_part()
            await wait_until_at_most(self._sending, 0)
            await self._complete_or_not()
            await self._check_size()
        except PybackupError:
            raise
        except Exception as error:
            raise self._failure("finish", error) from error
        # It is there, however we part.
        if self._record is not None:
            self._record.forget()
        with contextlib.suppress(Exception):
            await self._disconnect()

    async def _complete_or_not(self) -> None:
        """Complete the upload. What has been asked for cannot be taken back: who cancels waits for what comes of it."""
        completing = asyncio.ensure_future(self._complete())
        try:
            await asyncio.shield(completing)
        except asyncio.CancelledError:
            if await end_within([completing], ABORT_PATIENCE):
                return completing.result()
            with contextlib.suppress(Exception):
                await self._drop_upload(self._upload_id, self._patience.at_most(ABORT_PATIENCE))
            if not await self._is_there():
                raise

    async def _complete(self) -> None:
        parts = [told for _, told in sorted(self._sent.items())]
        request: dict[str, Any] = {"UploadId": self._upload_id, "MultipartUpload": {"Parts": parts}}
        condition: dict[str, Any] = {} if self._replace else {"IfNoneMatch": "*"}
        try:
            await self._call(COMPLETE, **request, **condition)
        except Exception as error:
            if await self._is_there():
                return  # the answer that said so was lost, and the upload is no more
            if status_of(error) in (409, 412) and not self._replace:
                raise TargetError(f"{self.name} appeared while it was being written", advice=Advice.REPLACE) from None
            if status_of(error) != 501 or self._replace:
                raise
            # A store without conditions on writes: look just before instead.
            if await self._object_there() is not None:
                raise TargetError(f"{self.name} appeared while it was being written", advice=Advice.REPLACE) from None
            await self._call(COMPLETE, **request)

    async def _is_there(self) -> bool:
        """Whether the object is there, whole and ours."""
        with contextlib.suppress(Exception):
            found = await self._object_there(self._patience.at_most(ABORT_PATIENCE))
            return found is not None and self._is_ours(found) and found["ContentLength"] == self._size
        return False

    def _is_ours(self, found: dict[str, Any]) -> bool:
        return bool(found.get("Metadata", {}).get(MARK) == self._mark)

    async def _check_size(self) -> None:
        """An object of another length than was sent must not look whole (TargetError); it is removed.

        Being cancelled is too late here; and a store that has said that the object is there, and then does not let us
        look, or cannot be reached any more, is believed.
        """
        looking = asyncio.ensure_future(self._object_there())
        try:
            found = await asyncio.shield(looking)
        except asyncio.CancelledError:
            await end([looking])
            return
        except Exception:
            return
        if found is None:
            raise TargetError(f"cannot finish {self.name}: the server took it, and does not have it")
        if self._is_ours(found) and found["ContentLength"] != self._size:
            await self._call("delete_object")
            raise TargetError(
                f"cannot finish {self.name}: the server kept {found['ContentLength']} bytes of {self._size}"
            )

    async def abort(self) -> None:
        """Stop sending, and have the store drop what it has. Never raises."""
        sending, self._sending = list(self._sending), set()
        await end(sending)
        if self._part is not None:
            self._part.close()
        with contextlib.suppress(Exception):
            if self._upload_id:
                await self._drop_upload(self._upload_id, self._patience.at_most(ABORT_PATIENCE))
            if self._record is not None and self._left is None:
                self._record.forget()
        if self._record is not None:
            self._record.close()
        with contextlib.suppress(Exception):
            await self._disconnect()

    async def _drop_upload(self, upload_id: str, patience: Patience) -> None:
        """Abort an upload, and again while parts that were on their way turn up in it."""
        for _ in range(ABORTS):
            try:
                await self._call("abort_multipart_upload", patience, UploadId=upload_id)
                left = await self._call("list_parts", patience, UploadId=upload_id)
            except Exception as error:
                if is_missing(error):
                    return
                raise
            if not left.get("Parts"):
                return

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _failure(self, doing: str, error: Exception) -> TargetError:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return TargetFullError(f"cannot {doing} {self.name}: no space is left in the temporary folder for a part")
        full = code_of(error) in ("QuotaExceeded", "XMinioStorageFull")
        return (TargetFullError if full else TargetError)(f"cannot {doing} {self.name}: {reason(error)}")
