"""pybackup completion: the script that makes a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from pybackup.cli.command import Command
from pybackup.core.errors import RequestError


@click.command("completion", cls=Command, short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Print the completion script for a shell. Write it to where the shell looks for it:

    \b
    bash  /etc/bash_completion.d/pybackup for all users, or for one
          ~/.local/share/bash-completion/completions/pybackup
    zsh   _pybackup in a folder of $fpath,
          such as /usr/local/share/zsh/site-functions
    fish  ~/.config/fish/completions/pybackup.fish

    It works in shells that are started after that.
    """
    from pybackup.cli.group import group
    from pybackup.cli.shell_completion import register

    register()
    kind = get_completion_class(shell)
    if kind is None:
        raise RequestError(f"there is no completion for {shell}")
    completion = kind(group, {}, "pybackup", "_PYBACKUP_COMPLETE")
    click.echo(kind.source_template % completion.source_vars())
    return 0
