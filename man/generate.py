"""Generates the manual pages of the commands from the commands themselves: `make man`.

Nothing of section 1 is edited by hand, and nothing depends on the day or on the version of Click: a test compares what
is there with what would be generated. Sections 5 and 7 are written by hand.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import click
from sections import ENVIRONMENT, FILES, GUIDES, SEE_ALSO

from pybackup.cli.examples import EXAMPLES, UNITS
from pybackup.cli.group import EXIT_CODES, group
from pybackup.cli.main import COMMANDS
from pybackup.cli.version import VERSION

FOLDER = Path(__file__).parent


# -- roff --


def escaped(text: str) -> str:
    """Text for roff: no dash, quote, backslash or leading dot means anything special."""
    text = text.replace("\\", "\\(rs").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join("\\&" + line if line.startswith(".") else line for line in text.split("\n"))


def bold(text: str) -> str:
    """Text in bold: what is typed as it stands."""
    return f"\\fB{escaped(text)}\\fR"


def italic(text: str) -> str:
    """Text in italics: what stands for something else."""
    return f"\\fI{escaped(text)}\\fR"


def prose(text: str) -> str:
    """Text of one paragraph, in which `this` is typed as it stands."""
    parts = re.split(r"`([^`]*)`", " ".join(text.split()))
    return "".join(bold(part) if number % 2 else escaped(part) for number, part in enumerate(parts))


def tagged(tag: str, text: str) -> list[str]:
    """A paragraph under a tag."""
    return [".TP", tag, text]


def paragraphs(text: str) -> list[str]:
    """A help text; a paragraph that begins with \\b keeps its lines."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines.append(".PP")
        if paragraph.startswith("\b"):
            lines += [".nf", escaped(paragraph.removeprefix("\b").strip("\n").replace("`", "")), ".fi"]
        else:
            lines.append(prose(paragraph))
    return lines


# -- what Click knows --


def _metavar(option: click.Option) -> str:
    """What stands for the option's value, or nothing for a flag."""
    if option.is_flag:
        return ""
    if option.metavar is None and isinstance(option.type, click.Choice):
        return "|".join(str(choice) for choice in option.type.choices)
    return option.metavar or option.type.name.upper()


def _limits(option: click.Option) -> str:
    if not isinstance(option.type, click.IntRange | click.FloatRange):
        return ""
    low, high = option.type.min, option.type.max
    return f"{low:g} or more" if high is None else f"{low:g} to {high:g}"


def _default(option: click.Option) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    if not option.show_default:
        return ""
    return f"{option.default:g}" if isinstance(option.default, float) else str(option.default)


def argument_of(argument: click.Argument) -> str:
    """An argument as the synopsis shows it."""
    text = argument.metavar or str(argument.name).upper()
    if argument.metavar is None and isinstance(argument.type, click.Choice):
        text = "|".join(str(choice) for choice in argument.type.choices)
    return italic(text) if argument.required or argument.metavar else f"[{italic(text)}]"


def option_lines(option: click.Option) -> list[str]:
    """One option: its names, what it does, its limits and its default."""
    if option.hidden:
        return []
    metavar = _metavar(option)
    names = ", ".join(map(bold, sorted(option.opts, key=len)))
    if metavar:
        names += " " + ("|".join(map(bold, metavar.split("|"))) if "|" in metavar else italic(metavar))
    sentences = [prose(option.help or "")]
    if _limits(option):
        sentences.append(escaped(f"{option.metavar}: {_limits(option)}."))
    if _default(option):
        sentences.append(f"Default: {escaped(_default(option))}.")
    return tagged(names, " ".join(sentences))


def options_of(command: click.Command, context: click.Context) -> list[str]:
    """The section of the options."""
    options = [one for one in command.get_params(context) if isinstance(one, click.Option)]
    metavars = {part for one in command.params for part in (one.metavar or "").split("=")}
    units = [(name, what) for name, what in UNITS.items() if name in metavars]
    return [
        ".SH OPTIONS",
        *(line for one in options for line in option_lines(one)),
        *([".SS Values"] if units else []),
        *(line for name, what in units for line in tagged(italic(name), escaped(f"{what[0].upper()}{what[1:]}"))),
    ]


# -- what Click does not know --


def examples_of(name: str) -> list[str]:
    """The section of the examples."""
    lines = [".SH EXAMPLES"]
    for what, commands in EXAMPLES[name].items():
        lines += [".PP", escaped(f"{what}:"), ".PP", ".in +2n", ".nf", escaped(commands), ".fi", ".in"]
    return lines


def list_of(title: str, entries: dict[str, str] | None) -> list[str]:
    """A section that explains one thing after another; none where there is nothing."""
    if not entries:
        return []
    return [f".SH {title}", *(line for name, what in entries.items() for line in tagged(bold(name), prose(what)))]


def references(pages: Iterable[str]) -> str:
    """Names of other pages, given as NAME/SECTION."""
    return ",\n".join(f"{bold(name)}({section})" for name, _, section in (one.partition("/") for one in pages))


# -- pages --


def _main_context() -> click.Context:
    return click.Context(group, info_name="pybackup", **group.context_settings)


def page(name: str, summary: str, synopsis: str, body: list[str], others: Iterable[str]) -> str:
    """A whole page; ``others`` are NAME/SECTION."""
    lines = [
        f'.TH "{escaped(name.upper())}" "1" "" "pybackup {VERSION}" "pybackup"',
        ".nh",
        ".ad l",
        ".SH NAME",
        f"{escaped(name)} \\- {escaped(summary)}",
        ".SH SYNOPSIS",
        synopsis,
        *body,
        ".SH EXIT STATUS",
        *(line for code, what in EXIT_CODES.items() for line in tagged(code, escaped(f"{what[0].upper()}{what[1:]}."))),
        ".SH SEE ALSO",
        references(others),
    ]
    return "\n".join(lines) + "\n"


def command_page(name: str) -> str:
    """The page of one command."""
    command: click.Command = import_module(f"pybackup.cli.{name}").command
    context = click.Context(command, info_name=name, parent=_main_context())
    body = [
        ".SH DESCRIPTION",
        *paragraphs(command.help or "")[1:],
        *options_of(command, context),
        *examples_of(name),
        *list_of("ENVIRONMENT", ENVIRONMENT[name]),
        *list_of("FILES", FILES.get(name)),
    ]
    arguments = [argument_of(one) for one in command.params if isinstance(one, click.Argument)]
    synopsis = " ".join((bold(f"pybackup {name}"), f"[{italic('OPTIONS')}]", *arguments))
    summary = COMMANDS[name].rstrip(".")
    others = ["pybackup/1", *SEE_ALSO[name]]
    return page(f"pybackup-{name}", summary[0].lower() + summary[1:], synopsis, body, others)


def main_page() -> str:
    """The page of the program."""
    body = [
        ".SH DESCRIPTION",
        *paragraphs(group.help or "")[1:],
        ".SH COMMANDS",
        *_listed({f"pybackup-{name}/1": what for name, what in COMMANDS.items()}),
        ".SH GUIDES AND FORMATS",
        *_listed(GUIDES),
        *options_of(group, _main_context()),
        *first_examples(),
        *list_of("ENVIRONMENT", ENVIRONMENT["pybackup"]),
        ".SH FILES",
        "Each command's page names those that it makes or looks for.",
    ]
    others = [*(f"pybackup-{name}/1" for name in COMMANDS), *GUIDES, "zstd/1"]
    synopsis = f"{bold('pybackup')} {italic('COMMAND')} [{italic('OPTIONS')}] {italic('ARGUMENTS')}..."
    return page("pybackup", "back up disk images, also while they are in use", synopsis, body, others)


def _listed(pages: dict[str, str]) -> list[str]:
    return [line for one, what in pages.items() for line in tagged(references([one]), prose(what))]


def first_examples() -> list[str]:
    """The first example of the commands that one begins with."""
    lines = [next(iter(EXAMPLES[name].values())) for name in ("run", "info", "verify", "compare", "restore")]
    return [".SH EXAMPLES", ".in +2n", ".nf", *map(escaped, lines), ".fi", ".in"]


def pages() -> dict[str, str]:
    """Every page by its file name."""
    return {"pybackup.1": main_page(), **{f"pybackup-{name}.1": command_page(name) for name in COMMANDS}}


def main() -> None:
    """Write the pages, and remove those of commands that are no more."""
    made = pages()
    for path in FOLDER.glob("*.1"):
        if path.name not in made:
            path.unlink()
    for name, content in made.items():
        (FOLDER / name).write_text(content)
    print(f"{len(made)} pages", file=sys.stderr)


if __name__ == "__main__":
    main()
