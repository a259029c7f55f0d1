"""The names of the package and the verbs of the command line do not change unnoticed, since others build on them."""

from typing import Any

import typer

import fftmoe
from fftmoe.cli.app import app

API = [
    "FftmoeError",
    "InputError",
    "MoeAdapterConfig",
    "OutputError",
    "Plugins",
    "Recipe",
    "Result",
    "RunError",
    "attach_adapter",
    "export",
    "load_backbone",
    "load_recipe",
    "predict",
    "record_routing",
    "resume",
    "run",
]
VERBS = {
    "init": {
        "data",
        "--output",
        "--text",
        "--label",
        "--prompt",
        "--completion",
        "--encoding",
        "--list-separator",
        "--by",
        "--model",
        "--force",
    },
    "run": {"recipe", "--output", "--set", "--workers", "--engine"},
    "resume": {"run", "--set", "--workers", "--accept-changes"},
    "plan": {
        "recipe",
        "--set",
        "--clients",
        "--verbose",
        "--json",
        "--measure",
        "--deadline",
        "--memory-mib",
        "--uplink-mbit",
        "--write",
        "--force",
    },
    "compare": {
        "recipe",
        "--methods",
        "--heads",
        "--partitions",
        "--seeds",
        "--target",
        "--output",
        "--workers",
        "--set",
        "--variant",
        "--keep",
        "--accept-changes",
    },
    "deploy init": {"folder", "--sites", "--address", "--days"},
    "deploy server": {"folder", "--recipe", "--output", "--set", "--wait", "--accept-changes"},
    "deploy client": {"folder", "--data", "--encoding", "--budget", "--model", "--accept-changes"},
    "deploy site ledger": {"--site", "--begin"},
    "deploy site review": {"recipe", "--site", "--set", "--epsilon", "--yes"},
    "deploy status": {"folder"},
    "deploy stop": {"folder", "--seconds"},
    "evaluate": {
        "run",
        "--data",
        "--encoding",
        "--split",
        "--top-k",
        "--harness",
        "--harness-limit",
        "--client",
        "--prior",
        "--round",
        "--accept-changes",
    },
    "predict": {
        "run",
        "inputs",
        "--file",
        "--column",
        "--encoding",
        "--output",
        "--scores",
        "--top-k",
        "--client",
        "--prior",
        "--batch-size",
        "--max-new-tokens",
        "--temperature",
        "--top-p",
        "--seed",
        "--round",
        "--accept-changes",
    },
    "personalize": {"run", "--data", "--output", "--split", "--encoding", "--round", "--accept-changes"},
    "chat": {
        "run",
        "--prompt",
        "--client",
        "--max-new-tokens",
        "--temperature",
        "--top-p",
        "--seed",
        "--round",
        "--accept-changes",
    },
    "export": {
        "run",
        "--to",
        "--output",
        "--top-k",
        "--client",
        "--tier",
        "--experts",
        "--rank",
        "--data",
        "--encoding",
        "--steps",
        "--round",
        "--accept-changes",
    },
    "report": {"run", "--output"},
}


def test_the_package_exports_exactly_these_names():
    exported: dict[str, Any] = {}
    exec("from fftmoe import *", exported)
    assert sorted(exported.keys() - {"__builtins__"}) == API
    assert [name for name in API if not callable(exported[name]) or not exported[name].__doc__] == []


def test_the_command_line_has_exactly_these_verbs_and_options():
    group = typer.main.get_group(app)
    found = {
        name: {
            part
            for parameter in command.params
            for part in (parameter.opts if parameter.param_type_name == "option" else [parameter.name])
        }
        for name, command in verbs(group).items()
    }
    assert found == VERBS


def verbs(group: Any, prefix: str = "") -> dict[str, Any]:
    """The commands of a group, those of groups within it under both names."""
    found = {}
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= verbs(command, f"{prefix}{name} ") if inner else {prefix + name: command}
    return found


def test_bad_input_is_a_value_error_and_a_failed_run_a_runtime_error():
    assert issubclass(fftmoe.InputError, ValueError)
    assert issubclass(fftmoe.RunError, RuntimeError)
    assert (fftmoe.InputError.exit_status, fftmoe.RunError.exit_status) == (2, 1)
