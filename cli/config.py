"""pybackup config: print a stored configuration."""

from __future__ import annotations

import sys

import click

from pybackup.cli.command import Command, later
from pybackup.cli.elsewhere import archive_place
from pybackup.cli.options import json_option, key_options
from pybackup.cli.params import PlainPath
from pybackup.cli.printable import as_json as json_text
from pybackup.core.archive.drives import archive_header
from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import ArchivePlace
from pybackup.formats.vma import find_name


@click.command("config", cls=Command, short_help="Print a configuration that an archive holds.")
@click.argument("archive", type=PlainPath(archive_place))
@click.argument("name", required=False, shell_complete=later("config_names"))
@key_options
@json_option
def command(archive: ArchivePlace, name: str | None, as_json: bool) -> int:
    """Print a configuration that an archive holds, byte for byte.

    Without NAME the archive must hold just one; --json lists all, with their contents as text.
    """
    configs = dict(archive_header(archive).configs)
    if as_json:
        chosen = configs if name is None else {name: _pick(configs, name)}
        print(json_text({key: content.decode("utf-8", "replace") for key, content in chosen.items()}))
        return 0
    sys.stdout.buffer.write(_pick(configs, name))
    sys.stdout.buffer.flush()
    return 0


def _pick(configs: dict[str, bytes], name: str | None) -> bytes:
    known = ", ".join(configs) or "none"
    if name is not None:
        found = find_name(configs, name)
        if found is None:
            raise RequestError(f"the archive has no configuration {name}; it has {known}")
        return found
    if not configs:
        raise RequestError("the archive has no configuration")
    if len(configs) != 1:
        raise RequestError(f"the archive has {len(configs)} configurations ({known}): name one")
    return next(iter(configs.values()))
