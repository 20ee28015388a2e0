"""pybackup keygen: make a key for encrypted archives."""

from __future__ import annotations

import time

import click

from pybackup.cli.command import Command
from pybackup.cli.params import PlainPath


@click.command("keygen", cls=Command, short_help="Make a key for encrypted archives.")
@click.option(
    "-o",
    "--output",
    type=PlainPath(),
    default=None,
    metavar="FILE",
    help="Write the identity to FILE, which only you can read. A file that is there is not replaced.",
)
def command(output: str | None) -> int:
    """Make a key for encrypted archives: an identity, which is secret, and the recipient that belongs to it.

    The identity opens archives (--identity FILE); keep it where the archives are not made, and a copy in a safe:
    without it they are lost. The recipient, age1..., is public; `pybackup run --recipient` encrypts for it.
    The output is as that of age-keygen.
    """
    from pybackup.core.secrets.key_files import write_identity
    from pybackup.core.secrets.keys import missing_package
    from pybackup.formats.age_keys import X25519Identity

    identity = X25519Identity.new()
    try:
        recipient = identity.recipient()
    except ImportError as error:
        raise missing_package(error) from None
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = f"# created: {created}\n# public key: {recipient}\n{identity.secret_text()}\n"
    if output is None or output == "-":
        click.echo(text, nl=False)
    else:
        write_identity(output, text.encode())
    click.echo(f"Public key: {recipient}", err=True)
    return 0
