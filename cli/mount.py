"""pybackup mount: archives as files."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import click

from pybackup.cli.command import Command
from pybackup.cli.elsewhere import history_place
from pybackup.cli.options import key_options, parents_option
from pybackup.cli.params import PlainPath
from pybackup.cli.printable import say
from pybackup.cli.request import takes
from pybackup.core.errors import TargetError
from pybackup.core.places.kinds import HistoryPlace, LocalPath

READY = b"ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What was asked of `mount`."""

    place: HistoryPlace
    folder: str
    background: bool
    allow_other: bool
    parents: Sequence[HistoryPlace]


@click.command("mount", cls=Command, short_help="Show archives as files, until they are unmounted.")
@click.argument("place", type=PlainPath(history_place), metavar="ARCHIVE|PLACE")
@click.argument("folder", type=PlainPath(), metavar="DIR")
@click.option("--background", is_flag=True, help="Come back when the mount is there, and go on in the background.")
@click.option(
    "--allow-other",
    is_flag=True,
    help="Let other users read it too, root among them; /etc/fuse.conf has to allow that (user_allow_other).",
)
@parents_option
@key_options
@takes(_Request)
def command(request: _Request) -> int:
    """Show archives as files in the folder DIR, to be read, until `fusermount3 -u DIR`, Ctrl-C or SIGTERM.

    Of an ARCHIVE, each drive is a file NAME.raw, sparse and as large as the disk, and each configuration a file of its
    name. A delta shows whole disks: the archives that it needs are looked for beside it, and in --parents. PLACE is a
    folder of archives, or a prefix of an object store: each archive becomes a folder, and is opened when it is looked
    at; links are left out. Only what is read is fetched and decompressed, and every cluster is checked; damage is an
    I/O error.

    It needs the package mfusepy, an extra: python3 -m pip install '.[mount]' in a clone; and FUSE's fusermount3. After
    --background nobody is there to tell why a file cannot be read: without it, that is told on stderr.

    What a guest has written is not to be trusted: rather look into a disk with guestfish than have this machine's
    kernel mount it, see pybackup-recover(7).
    """
    _check_folder(request)
    if request.background:
        return _in_background(lambda ready: _mount(request, ready))
    _mount(request, lambda: None)
    return 0


def _check_folder(request: _Request) -> None:
    folder = request.folder
    try:
        in_the_way = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise TargetError(f"cannot mount at {folder}: there is no such folder") from None
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise TargetError(
                f"cannot mount at {folder}: what was mounted there has died; `fusermount3 -u {shlex.quote(folder)}`"
                " makes it a folder again"
            ) from error
        raise TargetError(f"cannot mount at {folder}: {error.strerror}") from error
    for place in (request.place, *request.parents):
        if isinstance(place, LocalPath) and os.path.isdir(place.path) and os.path.samefile(place.path, folder):
            raise TargetError(f"cannot mount at {folder}: the archives are looked for there, and it would hide them")
    if in_the_way:
        raise TargetError(f"cannot mount at {folder}: it is not empty")


def _mount(request: _Request, ready: Callable[[], None]) -> None:
    from pybackup.core.mount.filesystem import mount
    from pybackup.core.mount.opened import OpenedArchives
    from pybackup.core.mount.tree import root_of

    # FUSE leaves the folder that we were started in.
    parents = [_absolute(parent) for parent in request.parents]
    with contextlib.closing(OpenedArchives(parents)) as archives:
        root = root_of(_absolute(request.place), archives)
        name = request.place.text if isinstance(request.place, LocalPath) else str(request.place)
        mount(root, request.folder, name=name, allow_other=request.allow_other, ready=ready, tell=_tell)


def _tell(why: str) -> None:
    say(f"pybackup: {why}", err=True)


def _absolute(place: HistoryPlace) -> HistoryPlace:
    return LocalPath(os.path.abspath(place.path)) if isinstance(place, LocalPath) else place


def _in_background(work: Callable[[Callable[[], None]], None]) -> int:
    """Do the work in a process of its own; return when it is ready, or has failed."""
    receiving, sending = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # No thread runs yet, so nothing is lost by forking.
    child = os.fork()
    if child:
        os.close(sending)
        with open(receiving, "rb") as pipe, _ended_with_us(child):
            if pipe.read() == READY:
                return 0
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    os.close(receiving)
    os.setsid()
    given = _given_files() - {sending}

    def ready() -> None:
        with contextlib.suppress(OSError):
            os.write(sending, READY)
        os.close(sending)
        _leave_the_terminal(given)

    work(ready)
    return 0


@contextlib.contextmanager
def _ended_with_us(child: int) -> Iterator[None]:
    """Whoever is interrupted while it waits for the mount wants none."""
    try:
        yield
    except BaseException:
        os.kill(child, signal.SIGTERM)
        raise


def _given_files() -> set[int]:
    """What is open from the start, besides the standard streams: pipes and locks of whoever started us."""
    found = {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2}
    return {number for number in found if os.path.lexists(f"/proc/self/fd/{number}")}


def _leave_the_terminal(given: Iterable[int]) -> None:
    """Nobody reads what is said from now on, and nobody waits for the end of what we were given."""
    for number in given:
        with contextlib.suppress(OSError):
            os.close(number)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
