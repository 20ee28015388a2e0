"""What to do about a failure, in the words of the command line: `core` knows it, and here are the options for it."""

from __future__ import annotations

from pybackup.core.errors import Advice, PybackupError

_RAW = "--format raw takes it as it is, byte for byte"

WORDS = {
    Advice.REPLACE: "; --force replaces it",
    Advice.OVERWRITE: "; --force overwrites it",
    Advice.OVERWRITE_ALL: "; --force overwrites everything on it",
    Advice.RENAME: "; --to NAME=TARGET chooses another",
    Advice.EXACT_SIZE: "; --format raw has the exact size",
    Advice.SKIP_UNREADABLE: "; --skip-unreadable saves what can be read",
    Advice.RUN_SKIP_UNREADABLE: "; pybackup run --skip-unreadable saves what can be read",
    Advice.SKIP_DAMAGED: "; pybackup verify lists what is lost, and pybackup restore --skip-damaged saves the rest",
    Advice.SNAPSHOT: "; use a snapshot, or --allow-changing if that does not matter",
    Advice.RAW_BYTES: f"; {_RAW}",
    Advice.RAW_DAMAGE_AND_ALL: "; --format raw takes the file as it is, damage and all",
    Advice.DISK_IN_IMAGE: f": --format {{about}} reads the disk in it, {_RAW}",
    Advice.THIS_FORMAT_OR_RAW: f"; --format {{about}} reads it as that, {_RAW}",
    Advice.NAME_MAP: ": --map FILE names one",
    Advice.RESTORE_FIRST: f": `pybackup restore` gets the disks out of it; {_RAW}",
    Advice.FLEECE_ELSEWHERE: "; choose another --fleece",
    Advice.FLEECE_MORE: ", and --max-fleece allows {about}; a faster backup needs less",
    Advice.FLEECE_ANYWHERE: " (--cow-buffer), unless --fleece names another folder",
    Advice.MORE_ROOM: "; a larger --cow-buffer would help, or --fleece with a folder that has more room",
    Advice.SHARE_NBD_SERVER: (
        ": wait for its end (a migration, another backup), or say where it listens: --nbd-socket"
    ),
    Advice.ONE_DRIVE: "; choose one with --drive",
    Advice.DISK_IN_USE: (
        "; pybackup run qmp:SOCKET backs up a running QEMU, libvirt:DOMAIN a domain of libvirt, --force-share reads it"
        " all the same"
    ),
    Advice.SERVE_READ_ONLY: "; --read-only serves it as it is, and --force-share all the same",
    Advice.SHARE_READ_ONLY: ": --force-share serves only with --read-only",
    Advice.TELL_SIZE: ": --size",
    Advice.SIZE_SAYS: "; --size says {about}",
    Advice.ENCRYPT_OR_NOT: ": --recipient says for whom it is to be, --decrypt that it shall not be",
    Advice.NAME_PARENTS: "; --parents names another place to look in",
    Advice.KEEP_SOMETHING: ": --keep-last, --keep-daily...",
    Advice.IGNORE_ARCHIVE: "; pybackup prune --ignore {about} goes on without knowing",
    Advice.THAT_SIZE_SAYS: " that --size says",
    Advice.IDENTITY: "; --identity FILE names the file with the identity of a recipient",
    Advice.NO_FACTS: "; --no-public-facts leaves them out",
    Advice.PASSPHRASE: "; --passphrase-file FILE names the file with it",
}
"""By each advice the end of a sentence, in which {about} is replaced by the error's."""


def with_advice(error: BaseException) -> str:
    """The error's sentence, and what to do."""
    if not isinstance(error, PybackupError) or error.advice is None:
        return str(error)
    return f"{error}{WORDS[error.advice].format(about=error.about)}"
