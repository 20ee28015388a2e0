"""Generates the manual pages of the commands from the commands themselves: `make man`.

Nothing is edited by hand, and nothing depends on the day: a test compares what is there with what would be generated.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import click
from pybackup.cli.group import group
from pybackup.cli.main import COMMANDS
from pybackup.cli.version import VERSION

FOLDER = Path(__file__).parent
EXIT_CODES = (
    ("0", "Done."),
    ("1", "Failed; for compare: the disks differ."),
    ("2", "Wrong usage; nothing was changed."),
    ("3", "The source changed, or cannot be read in places."),
    ("4", "The archive is damaged, or no archive."),
    ("5", "The target cannot be used: it exists, is full, too small, in use."),
    ("6", "Busy: somebody else holds the lock."),
    ("129, 130, 143", "Cancelled by SIGHUP, SIGINT, SIGTERM."),
)


def escaped(text: str) -> str:
    """Text for roff: no dash, backslash or leading dot means anything special."""
    text = text.replace("\\", "\\(rs").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return "\n".join("\\&" + line if line.startswith(".") else line for line in text.split("\n"))


def paragraphs(text: str) -> list[str]:
    """A help text as roff; a paragraph that begins with \\b keeps its lines."""
    lines: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        lines.append(".PP")
        if paragraph.startswith("\b"):
            lines += [".nf", escaped(paragraph.removeprefix("\b").strip("\n")), ".fi"]
        else:
            lines.append(escaped(" ".join(paragraph.split())))
    return lines


def option_lines(option: click.Option, context: click.Context) -> list[str]:
    """One option: its names and what it does."""
    record = option.get_help_record(context)
    if record is None:
        return []
    names, what = record
    return [".TP", f"\\fB{escaped(names)}\\fR", escaped(" ".join(what.split()))]


def page(name: str, summary: str, synopsis: str, body: list[str], others: list[str]) -> str:
    """A whole page."""
    lines = [
        f'.TH "{name.upper()}" "1" "" "pybackup {VERSION}" "pybackup"',
        ".SH NAME",
        f"{escaped(name)} \\- {escaped(summary)}",
        ".SH SYNOPSIS",
        escaped(synopsis),
        *body,
        ".SH EXIT STATUS",
        *(line for code, what in EXIT_CODES for line in (".TP", code, escaped(what))),
        ".SH SEE ALSO",
        ", ".join(f"\\fB{escaped(other)}\\fR({section})" for other, section in (one.split("/") for one in others)),
    ]
    return "\n".join(lines) + "\n"


def command_page(name: str) -> str:
    """The page of one command."""
    command: click.Command = import_module(f"pybackup.cli.{name}").command
    context = click.Context(command, info_name=f"pybackup {name}")
    options = [
        line
        for one in command.get_params(context)
        if isinstance(one, click.Option)
        for line in option_lines(one, context)
    ]
    body = [".SH DESCRIPTION", *paragraphs(command.help or "")[1:], ".SH OPTIONS", *options]
    usage = command.get_usage(context).removeprefix("Usage: ")
    return page(
        f"pybackup-{name}",
        COMMANDS[name].rstrip("."),
        " ".join(usage.split()),
        body,
        ["pybackup/1", "pybackup-archive/5"],
    )


def main_page() -> str:
    """The page of the program."""
    commands = [line for name, what in COMMANDS.items() for line in (".TP", f"\\fB{escaped(name)}\\fR", escaped(what))]
    body = [".SH DESCRIPTION", *paragraphs(group.help or "")[1:], ".SH COMMANDS", *commands]
    others = [*(f"pybackup-{name}/1" for name in COMMANDS), "pybackup-archive/5"]
    return page("pybackup", "back up disk images", "pybackup COMMAND [OPTIONS] ARGUMENTS...", body, others)


def pages() -> dict[str, str]:
    """Every page by its file name."""
    return {"pybackup.1": main_page(), **{f"pybackup-{name}.1": command_page(name) for name in COMMANDS}}


def main() -> None:
    """Write the pages."""
    for name, content in pages().items():
        (FOLDER / name).write_text(content)
    print(f"{len(pages())} pages", file=sys.stderr)


if __name__ == "__main__":
    main()
