"""The last steps of an output, each of which fails once, or is the last thing before a kill -9.

Whatever fails: either the new file has the name, whole, or what was there is there still; and nothing else is left.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pybackup.core.errors import TargetError
from pybackup.core.sinks import rename
from pybackup.core.sinks.partial_file import PartialFile

NAMES = ("link", "rename", "unlink", "mkdir", "stat", "lstat")
CALLS = (*NAMES, "fsync", "open", "close", "fstat", "write", "setxattr", "getxattr", "removexattr")
OLD, NEW = b"what was there before", b"what is written"


class UnknownCall:
    """A C library without renameat2()."""


class NoRenameat2:
    """A kernel or filesystem without the flags of renameat2()."""

    def renameat2(self, *arguments: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1


@contextmanager
def calls_seen(step: Callable[[int, str], None], *, without: str = "") -> Iterator[None]:
    """Within the body ``step`` is told of each call, by number and name, before it is made; nothing is synced."""
    count = -1
    before: dict[str, Any] = {name: getattr(os, name) for name in CALLS}
    libc = {"renameat2": NoRenameat2(), "libc": UnknownCall()}.get(without.partition("+")[0], rename._libc)

    def seen(name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if without.endswith("+link") and name == "link":
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            if name == "close":
                real(*arguments)
            step(count, name)
            return None if name in ("close", "fsync") else real(*arguments, **options)

        return call

    class Libc:
        def __getattr__(self, name: str) -> Any:
            return seen(name, getattr(libc, name))

    kept = rename._libc
    try:
        for name, real in before.items():
            setattr(os, name, seen(name, real))
        rename._libc = Libc()  # type: ignore[assignment]
        yield
    finally:
        rename._libc = kept
        for name, real in before.items():
            setattr(os, name, real)


def write(folder: Path, *, replace: bool) -> None:
    """One output from its beginning to its end, aborted if it fails."""
    file = PartialFile(str(folder / "year" / "out"), replace=replace, folders_from=str(folder))
    try:
        file.open()
        os.write(file.fd, NEW)
        file.commit()
    except BaseException:
        file.abort()
        raise
    assert file.committed


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*/*")}


def prepare(folder: Path, *, replace: bool) -> dict[str, bytes]:
    (folder / "year").mkdir(parents=True)
    if replace:
        (folder / "year" / "out").write_bytes(OLD)
    return contents(folder)


WAYS = ["", "renameat2", "libc", "renameat2+link"]


@pytest.mark.parametrize("without", WAYS)
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_any_call_that_fails(tmp_path: Path, code: int, replace: bool, without: str) -> None:
    failed = number = 0
    while True:
        folder = tmp_path / str(number)
        before = prepare(folder, replace=replace)
        reached = False

        def step(count: int, name: str, number: int = number) -> None:
            nonlocal reached
            if count == number:
                reached = True
                raise OSError(code, os.strerror(code))

        try:
            with calls_seen(step, without=without):
                write(folder, replace=replace)
        except (TargetError, OSError) as error:
            assert not isinstance(error, OSError) or error.errno == code
            assert contents(folder) == before
            failed += 1
        else:
            assert contents(folder) == {"out": NEW}
            assert (folder / "year" / "out").stat().st_nlink == 1
            if not reached:
                break
        number += 1
    assert failed > 8


@pytest.mark.parametrize("without", WAYS)
@pytest.mark.parametrize("replace", [False, True])
def test_kill_at_any_call_and_the_next_run_heals(tmp_path: Path, replace: bool, without: str) -> None:
    killed = number = 0
    while True:
        folder = tmp_path / str(number)
        before = prepare(folder, replace=replace)
        child = os.fork()
        if child == 0:

            def step(count: int, name: str, number: int = number) -> None:
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                with calls_seen(step, without=without):
                    write(folder, replace=replace)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert contents(folder).get("out") in (before.get("out"), NEW)
        write(folder, replace=True)
        assert contents(folder) == {"out": NEW}
        assert (folder / "year" / "out").stat().st_nlink == 1
        if status == 0:
            break
        killed += 1
        number += 1
    assert killed > 15


def test_a_folder_that_was_made_is_removed_when_the_output_fails(tmp_path: Path) -> None:
    file = PartialFile(str(tmp_path / "2026" / "11" / "out"), replace=False, folders_from=str(tmp_path))
    file.open()
    assert (tmp_path / "2026" / "11").is_dir()
    file.abort()
    assert list(tmp_path.iterdir()) == []
