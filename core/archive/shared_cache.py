"""What is kept of an archive, or of a chain of them, while it is read at any place: bounded, and for all threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SharedCache(Generic[Value]):
    """Values by their keys, of which the last used are kept. Each is made once, however many threads wait for it.

    Fixed: ``most`` bytes that they may take together; the last one made is always kept. Changing, under a lock: what
    is kept, and what is being made.
    """

    def __init__(self, most: int, size_of: Callable[[Value], int]) -> None:
        self._most, self._size_of = most, size_of
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[int, Value]] = OrderedDict()
        self._making: dict[Hashable, Future[Value]] = {}
        self._size = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value; made now, if it is not kept. What make() raises, everybody gets who waited for it."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found[1]
            others = self._making.get(key)
            if others is None:
                ours: Future[Value] = Future()
                self._making[key] = ours
        if others is not None:
            return others.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            ours.set_exception(error)
            raise
        self._keep(key, value)
        ours.set_result(value)
        return value

    def peek(self, key: Hashable) -> Value | None:
        """The value, where it is kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[1]

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value that was made elsewhere."""
        with self._lock:
            if key in self._kept or key in self._making:
                return
            self._insert(key, value)

    def _keep(self, key: Hashable, value: Value) -> None:
        with self._lock:
            del self._making[key]
            self._insert(key, value)

    def _insert(self, key: Hashable, value: Value) -> None:
        size = self._size_of(value)
        self._kept[key] = size, value
        self._size += size
        while self._size > self._most and len(self._kept) > 1:
            self._size -= self._kept.popitem(last=False)[1][0]
