"""pybackup help: what --help says, for those who ask the other way round."""

from __future__ import annotations

import click

from pybackup.cli.command import Command


@click.command("help", cls=Command, short_help="Explain the program, or a command.")
@click.argument("name", metavar="[COMMAND]", required=False)
def command(name: str | None) -> int:
    """Explain the program, or a command, as `pybackup COMMAND --help` does."""
    from pybackup.cli.group import group

    whole = click.Context(group, info_name="pybackup", **group.context_settings)
    if name is None:
        click.echo(group.get_help(whole))
        return 0
    found = group.resolve_command(whole, [name])[1]
    assert found is not None
    click.echo(found.get_help(click.Context(found, info_name=name, parent=whole)))
    return 0
