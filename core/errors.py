"""What can go wrong, and on which side.

Each class owns the exit code that the command line ends with; the codes are the same for every command. A message says
what failed, where, and why; what could be done about it is an Advice, for which every program has words of its own.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto


class ExitCode(IntEnum):
    """The documented exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    SOURCE = 3
    ARCHIVE = 4
    TARGET = 5
    BUSY = 6
    NO_KEY = 7
    INTERRUPTED = 130
    TERMINATED = 143


class Advice(Enum):
    """What could be asked for instead, so that the same does not fail. `cli` turns it into its options."""

    REPLACE = auto()
    """Replace the file that is there."""
    OVERWRITE = auto()
    """Overwrite the data that is there."""
    OVERWRITE_ALL = auto()
    """Overwrite everything on a disk."""
    RENAME = auto()
    """Choose another name for the file of a drive."""
    EXACT_SIZE = auto()
    """Use a format whose images can have any size."""
    SKIP_UNREADABLE = auto()
    """Take what can be read."""
    RUN_SKIP_UNREADABLE = auto()
    """The same, of a backup, where the failure may be of another command."""
    SNAPSHOT = auto()
    """Back up a snapshot, or bear that the disk changes."""
    SKIP_DAMAGED = auto()
    """Look what is damaged in an archive, and restore what is not."""
    RAW_BYTES = auto()
    """Take a file byte for byte, whatever it looks like."""
    RAW_DAMAGE_AND_ALL = auto()
    """The same of a damaged image."""
    DISK_IN_IMAGE = auto()
    """Read the disk in an image of the format ``about``, or the file byte for byte."""
    THIS_FORMAT_OR_RAW = auto()
    """Read a file as what it looks like, the format ``about``, or byte for byte."""
    NAME_MAP = auto()
    """Name a file for the map of what is there of a disk that is being restored."""
    RESTORE_FIRST = auto()
    """Get the disks out of an archive, or take it byte for byte."""
    FLEECE_ELSEWHERE = auto()
    """Put old data, or QEMU's temporary images, into another folder."""
    FLEECE_MORE = auto()
    """Allow more old data than the ``about`` bytes, or be faster."""
    FLEECE_ANYWHERE = auto()
    """Name a folder for old data, which waits in memory alone."""
    MORE_ROOM = auto()
    """Have more room for old data."""
    SHARE_NBD_SERVER = auto()
    """Wait for the end of QEMU's NBD server, or share it."""
    ONE_DRIVE = auto()
    """Choose one disk."""
    DISK_IN_USE = auto()
    """Have the machine that uses a disk give it, or read it in spite of its other user."""
    SERVE_READ_ONLY = auto()
    """Serve a disk in use to be read, or in spite of its other user."""
    SHARE_READ_ONLY = auto()
    """Serve an image that others may write only to be read."""
    TELL_SIZE = auto()
    """Tell the size of a disk."""
    SIZE_SAYS = auto()
    """Tell the right size of a disk; ``about`` is what was told."""
    ENCRYPT_OR_NOT = auto()
    """Say for whom an archive is encrypted, or that it shall not be."""
    NAME_PARENTS = auto()
    """Say where the parents of a delta lie."""
    KEEP_SOMETHING = auto()
    """Say by which rules archives are kept."""
    IGNORE_ARCHIVE = auto()
    """Leave the archive ``about`` alone, whatever it may need."""
    THAT_SIZE_SAYS = auto()
    """Tell the right size of a disk, which the sentence has just named."""
    IDENTITY = auto()
    """Give the identity of a recipient."""
    NO_FACTS = auto()
    """Have the header of an encrypted archive tell nothing."""
    PASSPHRASE = auto()
    """Give the file with the passphrase."""


class PybackupError(Exception):
    """Any failure that is told to the user as one sentence.

    ``advice``: what could be done about it; ``about``: a word that belongs to the advice, such as a format's name.
    """

    exit_code: int = ExitCode.FAILED

    def __init__(self, *args: object, advice: Advice | None = None, about: str = "") -> None:
        super().__init__(*args)
        self.advice, self.about = advice, about


class RequestError(PybackupError):
    """What was asked makes no sense; nothing was changed."""

    exit_code = ExitCode.USAGE


class SourceError(PybackupError):
    """The disk to be read cannot be opened or read, or is not what it should be."""

    exit_code = ExitCode.SOURCE


class UnreadableError(SourceError):
    """A place of the source cannot be read, and perhaps the rest can."""


class SourceChangedError(SourceError):
    """The disk changed while it was read, so what was read is no backup."""


class ArchiveError(PybackupError):
    """The archive is damaged, incomplete, or no archive at all."""

    exit_code = ExitCode.ARCHIVE


class TargetError(PybackupError):
    """The place to write to exists already, is full, too small, or cannot be written."""

    exit_code = ExitCode.TARGET


class TargetFullError(TargetError):
    """No space is left where the output goes."""


class BusyError(PybackupError):
    """Somebody else holds the lock of a source, a target or a server."""

    exit_code = ExitCode.BUSY


class NoKeyError(ArchiveError):
    """The archive is encrypted, and no identity that was given opens it: it may be sound, and nobody here can tell."""

    exit_code = ExitCode.NO_KEY


class CancelledError(PybackupError):
    """The job was cancelled by a signal or by request; ``signal_number`` says which signal, 0 if none."""

    def __init__(self, message: str = "cancelled", signal_number: int = 2) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number if signal_number else int(ExitCode.FAILED)
