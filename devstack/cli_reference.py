"""Writes down what `mailgenius … --help` says, for those who read before they install: python -m devstack.cli_reference."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from mailgenius.cli.main import cli

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "cli.md"
BEGIN: Final = "<!-- What follows is written by python -m devstack.cli_reference. -->\n"
WIDTH: Final = 100


def commands(group: click.Group = cli, path: tuple[str, ...] = ("mailgenius",)) -> Iterator[tuple[str, click.Command]]:
    """Each that does something, by its whole name."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def reference() -> str:
    sections = []
    for name, command in commands():
        context = click.Context(command, info_name=name, terminal_width=WIDTH, color=False, **cli.context_settings)
        sections.append(f"### {name.removeprefix('mailgenius ')}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(sections)


def main() -> None:
    before = DOCUMENT.read_text().partition(BEGIN)[0]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{reference()}")


if __name__ == "__main__":
    main()
