"""The page that `fftmoe --help` prints."""

import click
from typer.core import TyperGroup

VERB_GROUPS = {
    "Start": ("init", "plan", "run", "resume"),
    "Use a finished run": ("evaluate", "predict", "report", "export"),
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
