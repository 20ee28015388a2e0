"""One NBD client in the transmission phase.

The hot path: one read of the socket brings many requests; what the device can do at once is done right here, and all
answers leave in one write. What has to wait becomes a task. So that no client harms another, a turn of the event loop
does a bounded piece of work for each, and a connection has a bounded number of requests, and of bytes in memory (see
memory_shares.py): beyond them, or when its answers are not taken, its socket is not read any more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from typing import cast

from pybackup.core.device import BlockDevice, Buffer
from pybackup.core.errors import PybackupError
from pybackup.core.tasks import end
from pybackup.formats import nbd_replies
from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError
from pybackup.formats.nbd_handshake import Agreement
from pybackup.formats.nbd_replies import SimpleReplies, StructuredReplies
from pybackup.formats.nbd_transmission import (
    LONG,
    LONG_READ,
    WRITE_END,
    WRITE_PART,
    PayloadBuffers,
    Request,
    RequestReader,
    RequestRules,
)

from .few_lines import FewLines
from .long_requests import GoneError, LongWrite, pieces
from .memory_shares import MemoryPool, MemoryShare
from .missed_reads import MissedReads
from .requests import SlowRequest, SlowRequests, check_length
from .send_queue import SendQueue

BATCH_REQUESTS = 8
BATCH_BYTES = 1 << 20
"""What is answered before the answers are sent. A client with 16 requests in flight gets on with one half while we
do the other: fio's random writes went from 88k to 117k a second, for with batches of all 16 both sides took turns."""
TURN_SECONDS = 0.0005
"""How long one connection is worked for in one turn of the event loop, unless a single batch takes longer."""
SHORT_READ = 64 << 10
"""Bytes of the longest read that is tried again before a thread does it."""
MAX_REQUESTS = 256
"""What one connection may have in flight."""
OVERHEAD = 4096
"""Bytes that a request in flight takes beside its data: a task, and what it calls."""
_MOVES = frozenset({wire.CMD_READ, wire.CMD_WRITE, WRITE_PART, WRITE_END})
_COSTLY = frozenset({wire.CMD_BLOCK_STATUS, wire.CMD_CACHE})

_log = logging.getLogger(__name__)


class NbdConnection:
    """Answers one client until it goes away.

    Fixed: socket, device and what was agreed on. Changing, in the event loop only: the requests in flight and their
    bytes, the long write that is being received, who waits for room or to be alone, whether the socket is read, and how
    far the end has come:
    - ``_ending``: no more requests are taken; what is in flight is answered (DISC, end of file, stop());
    - ``_dead``: nothing is sent either (nonsense received, socket broken, abort()).
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        device: BlockDevice,
        agreement: Agreement,
        received: bytes,
        payloads: PayloadBuffers,
        memory: MemoryPool,
        lines: FewLines,
    ) -> None:
        """``peer``: the client's name in messages. ``received``: bytes behind the handshake."""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._device = device
        self._peer = peer
        self._lines = lines
        self._replies = StructuredReplies() if agreement.structured else SimpleReplies()
        rules = RequestRules(agreement.size, agreement.flags, block_status=agreement.block_status)
        self._payloads = payloads
        self._reader = RequestReader(rules, payloads, received)
        self._queue = SendQueue(sock, self._work, self._broken)
        self._slow = SlowRequests(device, self._replies, lambda: not self._dead)
        self._missed = MissedReads(device.read_now, self._loop.time)
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors_told: set[int] = set()
        self._share = MemoryShare(memory)
        self._bytes_in_flight = 0
        self._long_write: LongWrite | None = None
        self._wait_for_room: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._alone = asyncio.Lock()
        self._want_to_be_alone = 0
        self._is_alone: asyncio.Future[None] | None = None
        self._reading = self._wakes = self._ending = self._dead = False
        self._ended: asyncio.Future[None] = self._loop.create_future()

    @property
    def requests_in_flight(self) -> int:
        """Requests that the device works on."""
        return len(self._tasks) + len(self._missed)

    async def run(self) -> None:
        """Answer requests; return when the client has gone and nothing is in flight. The socket stays open."""
        self._wake()
        try:
            await self._ended
        finally:
            self.abort()
            await self._cancel_tasks()
            self._share.give_back()

    def stop(self) -> None:
        """Take no more requests: run() returns when those in flight are answered and the answers are sent."""
        self._ending = True
        self._wake()

    def abort(self) -> None:
        """Take and send nothing more: run() returns when the device has finished what is in flight."""
        self._ending = self._dead = True
        self._missed.clear()
        self._queue.close()
        self._serve_waiting()
        self._watch_socket()
        self._wake()

    # -- the hot path --

    def _on_readable(self) -> None:
        try:
            count = self._sock.recv_into(self._reader.buffer())
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._broken(error)
            return
        if not count:
            self.stop()
            return
        self._reader.received(count)
        self._work()

    def _work(self) -> None:
        """Answer what was received, as far as this turn and the limits allow, and send all answers there are."""
        turn_end = self._loop.time() + TURN_SECONDS
        if self._missed:
            self._answer_missed()
        # Before it is asked whether there is room: what the socket does not take now is held.
        self._queue.flush()
        if self._wait_for_room or self._is_alone is not None:
            self._serve_waiting()
        while self._may_work() and self._loop.time() < turn_end:
            self._answer(self._take())
            self._queue.flush()
        if self._missed or self._may_work():
            self._wake()
        self._queue.flush()
        self._watch_socket()
        self._check_end()

    def _take(self) -> list[Request]:
        most = min(BATCH_REQUESTS, MAX_REQUESTS - self.requests_in_flight)
        try:
            requests = self._reader.requests(most, min(BATCH_BYTES, self._room()))
        except FormatError as error:
            self._lines.warning("NBD client %s is cut off: %s", self._peer, error)
            self.abort()
            return []
        self._ending |= self._reader.closed
        return requests

    def _answer(self, requests: list[Request]) -> None:
        read_now, write_now, send = self._device.read_now, self._device.write_now, self._queue.pending.append
        done, cmd_read, cmd_write = nbd_replies.done, wire.CMD_READ, wire.CMD_WRITE
        for request in requests:
            command, flags, cookie, offset, length, payload, error = request
            try:
                if error:
                    send(self._replies.error(cookie, error))
                elif command == cmd_read:
                    data = read_now(offset, length)
                    if data is not None:
                        check_length(data, length)
                        send(self._replies.read_header(cookie, offset, length))
                        send(data)
                    elif length <= SHORT_READ and self._missed.add(request):
                        self._bytes_in_flight += length
                    else:
                        self._start(request)
                elif command == cmd_write and not flags and write_now(offset, payload):
                    send(done(cookie))
                elif command != wire.CMD_DISC:
                    self._start(request)
            except Exception as failure:
                send(self._failure(command, flags, cookie, failure))

    def _answer_missed(self) -> None:
        """Answer what has come into the cache since the last turn."""
        for request, outcome in self._missed.ask_again():
            command, flags, cookie, offset, length, _, _ = request
            self._bytes_in_flight -= length
            if outcome is None:
                self._start(request)
            elif isinstance(outcome, Exception):
                self._queue.pending.append(self._failure(command, flags, cookie, outcome))
            else:
                self._queue.pending += [self._replies.read_header(cookie, offset, length), outcome]

    # -- what has to wait --

    def _start(self, request: Request) -> None:
        command, flags, cookie, offset, length, payload, _ = request
        # The reader's buffer is about to be filled again.
        data = bytes(payload) if isinstance(payload, memoryview) else payload
        held = OVERHEAD + (length if command in _MOVES else LONG if command in _COSTLY else 0)
        self._bytes_in_flight += held
        slow = SlowRequest(command, flags, cookie, offset, length, data)
        long_write = self._part_of(command) if command in (WRITE_PART, WRITE_END) else None
        self._tasks.add(self._loop.create_task(self._do(slow, held, long_write)))

    def _part_of(self, command: int) -> LongWrite:
        """The long write to which the part that has just come belongs."""
        long_write = self._long_write or LongWrite()
        long_write.begin(last=command == WRITE_END)
        self._long_write = None if command == WRITE_END else long_write
        return long_write

    async def _do(self, request: SlowRequest, held: int, long_write: LongWrite | None) -> None:
        replies: list[Buffer] = []
        try:
            if long_write is not None:
                replies = await self._write_part(request, long_write)
            elif request.command == LONG_READ:
                await self._read_long(request)
            else:
                replies = await self._slow.reply(request)
            if isinstance(request.payload, bytearray):
                self._payloads.give_back(request.payload)
        except GoneError:
            pass
        except Exception as failure:
            replies = [self._failure(request.command, request.flags, request.cookie, failure)]
        finally:
            self._bytes_in_flight -= held
            self._tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            self._wake()
        if not self._dead:
            self._queue.pending += replies

    async def _write_part(self, request: SlowRequest, long_write: LongWrite) -> list[Buffer]:
        await long_write.write(self._device, request)
        if not long_write.end():
            return []
        if long_write.failure is not None:
            raise long_write.failure
        return await self._slow.changed(request)

    # -- reads that go piece by piece --

    async def _read_long(self, request: SlowRequest) -> None:
        if self._replies.can_split and not request.flags & wire.CMD_FLAG_DF:
            for offset, length, last in pieces(request):
                data = await self._read_piece(offset, length)
                self._send_piece([self._replies.read_header(request.cookie, offset, length, last), data])
            return
        self._want_to_be_alone += 1
        self._wake()  # for another one who waits for all others to wait
        try:
            async with self._alone:
                await self._until_alone()
                await self._read_in_one_reply(request)
        finally:
            self._want_to_be_alone -= 1

    async def _read_in_one_reply(self, request: SlowRequest) -> None:
        for offset, length, _ in pieces(request):
            await self._read_piece(offset, length)
            self._bytes_in_flight -= length
        header = self._replies.read_header(request.cookie, request.offset, request.length)
        for offset, length, _ in pieces(request):
            try:
                data = await self._read_piece(offset, length)
            except (OSError, PybackupError) as failure:
                if offset == request.offset:
                    raise
                self._lines.warning(
                    "NBD client %s is cut off: a read failed when half of it was sent: %s", self._peer, failure
                )
                self.abort()
                return
            self._send_piece([header, data] if offset == request.offset else [data])

    async def _read_piece(self, offset: int, length: int) -> Buffer:
        """Read when there is room, which the caller gives back."""
        await self._hold(length)
        read = False
        try:
            data = await self._device.pread(offset, length)
            check_length(data, length)
            read = True
        finally:
            if not read:
                self._bytes_in_flight -= length
        return data

    def _send_piece(self, buffers: list[Buffer]) -> None:
        self._bytes_in_flight -= len(buffers[-1])
        if not self._dead:
            self._queue.pending += buffers
            # At once: what the socket does not take counts as held, before the next piece is read.
            self._queue.flush()
            self._wake()

    async def _hold(self, size: int) -> None:
        """Return when so many bytes more may be held, in turn; GoneError when nobody wants them any more."""
        if self._wait_for_room or not self._room():
            waiter = self._loop.create_future()
            self._wait_for_room.append((size, waiter))
            await waiter
        else:
            self._bytes_in_flight += size
        if self._dead:
            self._bytes_in_flight -= size
            raise GoneError

    async def _until_alone(self) -> None:
        """Return when nothing else is in flight or to be sent; GoneError as above."""
        self._is_alone = self._loop.create_future()
        self._wake()
        try:
            await self._is_alone
        finally:
            self._is_alone = None
        if self._dead:
            raise GoneError

    def _serve_waiting(self) -> None:
        """Let those go on who wait for what there is by now."""
        while self._wait_for_room and (self._dead or self._room()):
            size, waiter = self._wait_for_room.popleft()
            if not waiter.done():
                self._bytes_in_flight += size
                waiter.set_result(None)
        quiet = self.requests_in_flight == self._want_to_be_alone and not self._queue.pending
        if self._is_alone is not None and not self._is_alone.done() and (quiet or self._dead):
            self._is_alone.set_result(None)

    def _failure(self, command: int, flags: int, cookie: int, failure: Exception) -> bytes:
        """The reply to a request that the device could not do."""
        command &= 0xFFFF  # that of the client
        if isinstance(failure, OSError):
            error, message = nbd_replies.nbd_error(failure.errno, flags), failure.strerror or str(failure)
        elif isinstance(failure, PybackupError):
            error, message = wire.NBD_EIO, str(failure)
        else:
            _log.error("NBD command %d on %s failed by a bug", command, self._device.name, exc_info=failure)
            error, message = wire.NBD_EIO, "internal error"
        if error != wire.NBD_ENOTSUP and error not in self._errors_told:
            self._errors_told.add(error)
            self._lines.warning(
                "%s: NBD command %d of client %s failed: %s", self._device.name, command, self._peer, message
            )
        return self._replies.error(cookie, error, message)

    async def _cancel_tasks(self) -> None:
        await end(self._tasks)

    # -- limits and the end --

    def _may_work(self) -> bool:
        reader = self._reader
        return not reader.starved and (self._may_take() or (reader.whole and not self._ending))

    def _may_take(self) -> bool:
        return (
            not self._ending
            and self.requests_in_flight < MAX_REQUESTS
            and not self._queue.is_full
            and not self._want_to_be_alone
            and not self._wait_for_room
            and self._room() > 0
        )

    def _room(self) -> int:
        """Bytes that may be taken now; of what is in the queue, those count that the socket has not taken."""
        held = self._bytes_in_flight + self._reader.receiving
        if self._queue.is_stuck:
            held += self._queue.stuck_bytes
        return self._share.room(held)

    def _wake(self) -> None:
        """Work soon, once, however often this is called before."""
        if not self._wakes:
            self._wakes = True
            self._loop.call_soon(self._woken)

    def _woken(self) -> None:
        self._wakes = False
        self._work()

    def _watch_socket(self) -> None:
        """Read the socket exactly while more requests are needed and may be taken."""
        wanted = self._reader.starved and (self._may_take() or (self._reader.receiving > 0 and not self._ending))
        if wanted == self._reading:
            return
        self._reading = wanted
        # By number: asked for a socket that it does not know yet, a selector describes it in full, which is two calls.
        if wanted:
            self._loop.add_reader(self._sock.fileno(), self._on_readable)
        else:
            self._loop.remove_reader(self._sock.fileno())

    def _broken(self, error: OSError) -> None:
        _log.info("NBD client %s has gone: %s", self._peer, error.strerror)
        self.abort()

    def _check_end(self) -> None:
        if self._ending and not self.requests_in_flight and not self._queue.pending and not self._ended.done():
            self._ended.set_result(None)
