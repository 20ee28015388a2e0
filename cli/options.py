"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pybackup.cli.elsewhere import history_place
from pybackup.cli.params import PlainPath, Seconds, Size, Whole
from pybackup.core.images.formats import ALIASES, FORMATS
from pybackup.core.trace import EVENTS

MOST_FREEZE_SECONDS = 3600
"""In a guest whose agent freezes, whoever writes waits until all is frozen."""
F = TypeVar("F", bound=Callable[..., Any])


def _list_events(context: click.Context, _option: click.Parameter, value: str) -> str:
    """--trace help needs no other argument."""
    if value == "help" and not context.resilient_parsing:
        for name, what in EVENTS.items():
            click.echo(f"{name:20} {what}")
        context.exit()
    return value


def all_of(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator that does what all of these do."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def parents_option(function: F) -> F:
    """--parents, of commands that read archives."""
    return click.option(
        "--parents",
        type=PlainPath(history_place),
        multiple=True,
        metavar="PLACE",
        help="Where the archives lie that a delta needs, beside the folder or prefix that it lies in itself; may be"
        " given several times.",
    )(function)


def listening_options(begin: str = "") -> Callable[[F], F]:
    """Options of commands that offer disks: where NBD is spoken, and where they are steered."""
    return all_of(
        click.option(
            "--socket",
            type=PlainPath(),
            default=None,
            metavar="PATH",
            show_default="nbd.sock in a private folder",
            help=f"{begin}Listen on this Unix socket.",
        ),
        click.option(
            "--tcp",
            default=None,
            metavar="[HOST:]PORT",
            help=f"{begin}Listen on TCP instead; HOST is the loopback unless given. There is no encryption and no"
            " password.",
        ),
        click.option(
            "--control",
            type=PlainPath(),
            default=None,
            metavar="PATH",
            show_default="control.sock in a private folder",
            help=f"{begin}The control socket, for `pybackup ctl`.",
        ),
    )


def agent_options(begin: str = "") -> Callable[[F], F]:
    """Options of commands that take the instant of a guest's disks."""
    return all_of(
        click.option(
            "--guest-agent",
            type=PlainPath(),
            default=None,
            metavar="SOCKET",
            help=f"{begin}Freeze the guest's filesystems at the instant of a backup, through the QEMU guest agent whose"
            " channel ends at this Unix socket. Without an answer the backup goes on, and the archive says so.",
        ),
        click.option(
            "--freeze-timeout",
            type=Seconds(0, MOST_FREEZE_SECONDS, min_open=True),
            default=10.0,
            show_default=True,
            metavar="SECONDS",
            help="How long the guest may take to freeze its filesystems, which writes all that they have in memory.",
        ),
    )


libvirt_options = all_of(
    click.option(
        "--connect",
        default=None,
        show_default="$LIBVIRT_DEFAULT_URI, or what virsh chooses",
        metavar="URI",
        help="With libvirt: the hypervisor of this machine whose domains are meant, such as qemu:///system.",
    ),
    click.option(
        "--all",
        "all_domains",
        is_flag=True,
        help="With libvirt: and no name: every domain, one archive each, with {name} in ARCHIVE. One that fails"
        " does not stop the rest; the exit code is that of the worst.",
    ),
    click.option(
        "--freeze",
        type=click.Choice(["auto", "never", "require"]),
        default=None,
        show_default="auto",
        help="With libvirt: freeze the filesystems of a running domain at the instant, through its guest agent. auto"
        " does it where an agent answers, require makes no backup without.",
    ),
)

job_options = all_of(
    click.option(
        "--speed",
        type=Size(),
        default="0",
        metavar="RATE",
        help="At most RATE bytes a second, for example 50M; 0 means no limit.",
        show_default=True,
    ),
    click.option(
        "--progress",
        type=click.Choice(["auto", "rich", "plain", "json", "none"]),
        default="auto",
        show_default=True,
        help="How to show progress on stderr: rich draws bars on a terminal, plain prints lines for logs,"
        " json one JSON object a line. auto is rich on a terminal (plain where TERM is dumb), else none.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Neither progress nor summary, only failures."),
    click.option("-v", "--verbose", is_flag=True, help="Print the summary also where stderr is no terminal."),
    click.option(
        "--trace",
        metavar="EVENTS",
        default="",
        is_eager=True,
        callback=_list_events,
        help="Print trace events on stderr, one JSON object a line:"
        " names or patterns, separated by commas, such as 'copy.*,job.state'; 'help' lists them.",
    ),
)

format_option = click.option(
    "--format",
    "image_format",
    type=click.Choice(["raw", *FORMATS, *ALIASES]),
    default=None,
    show_default="by name and magic",
    help="Take every source that is a file or block device as an image of this format. Without it, a file whose name"
    " and first bytes say the same format is that, any other file must look raw, and a block device is raw.",
)
force_share_option = click.option(
    "--force-share", is_flag=True, help="Read an image that another program has locked, with a warning."
)
snapshot_option = click.option(
    "--snapshot",
    type=click.Choice(["auto", "reflink", "none"]),
    default="auto",
    show_default=True,
    help="Freeze a raw file in an instant, by a reflink clone that is gone afterwards (XFS, btrfs). A program may go on"
    " to write to the file, and what is read is what a power failure would have left; the filesystem needs room for"
    " what is written meanwhile. Where there is no snapshot, auto reads the file itself, under a lock, and reflink"
    " fails.",
)


def _give_keys(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """Have every archive that this command opens tried with what was given; the files are read when one needs it."""
    if context.resilient_parsing:
        return value
    from pybackup.core.secrets.keys import Keys, give

    found = context.meta.setdefault(_KEYS, {})
    if not found:
        context.call_on_close(lambda: give(Keys()))
    found[option.name] = value
    give(Keys(found.get("identities") or (), found.get("passphrase_file")))
    return value


_KEYS = "pybackup.keys"
identity_option = click.option(
    "--identity",
    "identities",
    type=PlainPath(),
    multiple=True,
    envvar="PYBACKUP_IDENTITY",
    metavar="FILE",
    expose_value=False,
    callback=_give_keys,
    help="Open encrypted archives with the identities in FILE, as `pybackup keygen` and age-keygen write it; may be"
    " given several times.",
)
key_options = all_of(
    identity_option,
    click.option(
        "--passphrase-file",
        type=PlainPath(),
        default=None,
        metavar="FILE",
        expose_value=False,
        callback=_give_keys,
        help="Open archives that are encrypted with a passphrase, which stands in FILE.",
    ),
)
encryption_options = all_of(
    click.option(
        "--recipient",
        "recipients",
        multiple=True,
        metavar="AGE1...",
        help="Encrypt the archive, so that only who has the identity of a recipient can read it; may be given several"
        " times. Two are good practice: one of them in a safe.",
    ),
    click.option(
        "--recipients-file",
        "recipients_files",
        type=PlainPath(),
        multiple=True,
        metavar="FILE",
        help="The same for all recipients in FILE, a line each.",
    ),
    click.option(
        "--passphrase-file",
        type=PlainPath(),
        default=None,
        metavar="FILE",
        callback=_give_keys,
        help="Encrypt the archive with the passphrase in FILE, instead of for recipients.",
    ),
    click.option(
        "--no-public-facts",
        is_flag=True,
        help="Have the header of an encrypted archive not tell its uuid, its parent's, its time, and the names and"
        " sizes of its drives, which `list` and `prune` need where there is no identity.",
    ),
    identity_option,
)
json_option = click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
threads_option = click.option(
    "--threads",
    type=Whole(1, 256),
    default=None,
    show_default="one for each processor",
    metavar="N",
    help="Threads that compress or decompress.",
)
