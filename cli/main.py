"""The command line: its commands, and where it begins. group.py is where a failure becomes an exit code.

Start-up is part of speed: the version is answered before Click is loaded, and a command's module when it is called.
"""

from __future__ import annotations

import sys

from pybackup.cli.version import VERSION

COMMANDS = {
    "run": "Back up one or more disks into one archive.",
    "restore": "Write an archive's drives to files, a folder, a disk or a stream.",
    "verify": "Read everything of an archive and prove that it is sound.",
    "list": "Tell what archives there are, and which need which.",
    "prune": "Remove archives by rules: so many days, weeks, months.",
    "info": "Tell what an archive holds.",
    "config": "Print a configuration that an archive holds.",
    "compare": "Tell whether a disk is what an archive holds.",
    "merge": "Make one full archive of a chain of deltas, or of any archive.",
    "mount": "Show archives as files, until they are unmounted.",
    "files": "List and copy files out of an archive's disks.",
    "boot": "Start a machine from an archive, to see whether it boots.",
    "serve": "Offer disks in use, or what an archive holds, over NBD.",
    "keygen": "Make a key for encrypted archives.",
    "ctl": "Steer a running server.",
    "completion": "Print the completion script for a shell.",
    "help": "Explain the program, or a command.",
}
"""Every command and its one-line help; the command itself is in the module of its name."""


def main() -> None:
    """The entry point `pybackup`."""
    if sys.argv[1:] == ["--version"]:
        print(f"pybackup {VERSION}")
        return
    from pybackup.cli.group import invoke

    sys.exit(invoke(sys.argv[1:]))
