"""Defines the pages that `fftmoe --help` and `fftmoe VERB --help` print."""

from collections.abc import Callable
from typing import Any, get_type_hints

import click
from typer.core import TyperCommand, TyperGroup
from typer.models import ArgumentInfo

VERB_GROUPS = {
    "Start": ("init", "plan", "run", "resume"),
    "Use a finished run": ("evaluate", "predict", "personalize", "chat", "report", "export"),
    "Compare methods": ("compare",),
    "Deploy on many machines": ("deploy",),
}
MORE = "More"
EXAMPLES = ("fftmoe run", "fftmoe run mine.yaml --set federation.rounds=5")
STATUSES = ("0 done, 1 the run failed, 2 bad input (nothing written), 130 interrupted after a checkpoint",)
DOCS = ("README.md, docs/first-hour.md (from a clone to an adapter on your own data)",)


class HelpPage(TyperGroup):
    """Lists the verbs under the headings of `VERB_GROUPS`, then examples, exit statuses and the documentation."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Group`."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        grouped = {name for names in VERB_GROUPS.values() for name in names}
        groups = {**VERB_GROUPS, MORE: tuple(name for name in commands if name not in grouped)}
        width = max(map(len, commands))
        for heading, names in groups.items():
            room = formatter.width - 6 - width
            rows = [
                (name.ljust(width), command.get_short_help_str(room))
                for name in names
                if (command := commands.get(name)) is not None
            ]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Group`."""
        for heading, texts in (("Examples", EXAMPLES), ("Exit status", STATUSES), ("Documentation", DOCS)):
            with formatter.section(heading):
                for text in texts:
                    formatter.write_text(text)


class VerbPage(TyperCommand):
    """Lists the arguments and the options of a verb with their help.

    Typer 0.20 hands no help to click's `Argument`, and click 8.5 then forgets the help that typer had set. Typer also
    writes a backslash before "[required]", which only its pages in color remove.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        texts = argument_helps(self.callback) if self.callback else {}
        for parameter in self.params:
            if isinstance(parameter, click.Argument):
                parameter.help = texts.get(str(parameter.name))

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Do nothing where click 8.5 calls this: `format_options` lists the arguments, with every version of click."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Command`."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                heading = "Arguments" if isinstance(parameter, click.Argument) else "Options"
                sections[heading].append((record[0], record[1].replace("\\[", "[")))
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def argument_helps(verb: Callable[..., Any]) -> dict[str, str]:
    """Return the help texts of a verb's arguments, as its annotations declare them, by parameter."""
    hints = get_type_hints(verb, include_extras=True)
    declared = {name: info for name, hint in hints.items() for info in getattr(hint, "__metadata__", ())}
    return {name: info.help for name, info in declared.items() if isinstance(info, ArgumentInfo) and info.help}
