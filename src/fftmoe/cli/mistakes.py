"""Says what a person may have meant by a verb or an option that is not there."""

import re

import click

OTHER_VERBS = {
    "train": "run",
    "fit": "run",
    "start": "run",
    "finetune": "run",
    "fine-tune": "run",
    "continue": "resume",
    "restart": "resume",
    "new": "init",
    "create": "init",
    "estimate": "plan",
    "eval": "evaluate",
    "test": "evaluate",
    "score": "evaluate",
    "infer": "predict",
    "generate": "predict",
    "ask": "chat",
    "merge": "export",
    "convert": "export",
    "save": "export",
    "benchmark": "compare",
    "serve": "deploy",
    "server": "deploy",
    "client": "deploy",
}
"""Verbs of other programs, and the verb here that does the same."""
MOST_KEYS = 3  # that are named


def usage_text(error: click.UsageError) -> str:
    """Return the message of a command line that cannot be followed, with what to write instead."""
    message = error.format_message().split(" Did you mean")[0].rstrip(".")
    near = [str(name) for name in getattr(error, "possibilities", None) or ()]
    command = error.ctx.command if error.ctx else None
    if isinstance(error, click.NoSuchOption):
        exact, longer = _settings(error.option_name, command)
        near = exact or near or longer
    elif isinstance(command, click.Group):
        meant = OTHER_VERBS.get(str(getattr(error, "command_name", "")).lower())
        near = [meant] if meant in command.commands else near
    if (key := _bare_setting(message, command)) is not None:
        return f"{message}; write --set before every setting: --set {key}=VALUE"
    if near:
        return f"{message}; did you mean {' or '.join(map(repr, near[:MOST_KEYS]))}?"
    return f"{message}; see: {error.ctx.command_path} --help" if error.ctx else message


def _bare_setting(message: str, command: click.Command | None) -> str | None:
    """Return the key of the first argument too many if it is a setting of a recipe, as in `--set a.b=1 c.d=2`."""
    found = re.search(r"unexpected extra arguments? \(([^\s=()]+)=", message)
    if found is None or command is None or all(parameter.name != "set_" for parameter in command.params):
        return None
    from fftmoe.config.read import dotted_keys

    return found[1] if found[1] in dotted_keys() else None


def _settings(option: str, command: click.Command | None) -> tuple[list[str], list[str]]:
    """Return the settings of a recipe of this name, and those whose name ends with it, as options."""
    if command is None or all(parameter.name != "set_" for parameter in command.params):
        return [], []
    from fftmoe.config.read import dotted_keys

    name = option.lstrip("-").replace("-", "_").lower()
    found = {f"--set {key}=VALUE": key.rpartition(".")[2] for key in dotted_keys()}
    exact = [setting for setting, own in found.items() if own == name]
    return exact, [setting for setting, own in found.items() if own.endswith(f"_{name}")]
