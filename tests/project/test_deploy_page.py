"""docs/deploy.md does what it says when its commands are run unchanged."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from socket import create_server

import pytest
import typer
import yaml

from fftmoe.cli.app import INTERRUPTED, app
from fftmoe.config import parse_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text()
UNITS = sorted((ROOT / "examples" / "deploy").glob("*.service"))


def script() -> str:
    """The page's commands, on a port that is free."""
    with create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return "".join(re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)).replace("127.0.0.1:9092", f"127.0.0.1:{port}")


@pytest.mark.network
@pytest.mark.slow
def test_the_commands_of_the_page_run_unchanged(tmp_path: Path):
    """They run in one shell, in a new folder; processes that they leave running are ended."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(
        ["bash", "-e", "-c", script()],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            output, _ = shell.communicate(timeout=900)
        finally:
            try:
                os.killpg(shell.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    logs = "".join(path.read_text() for path in tmp_path.glob("hospital-*.log"))
    assert shell.returncode == 0, output + logs
    assert "nothing runs from federation/server" in output
    assert '"label": "lung"' in output
    assert "no code is taken from the server" in logs
    assert logs.count("left the federation") == 3


def test_the_recipe_of_the_page_is_valid():
    (text,) = re.findall(r"cat > recipe.yaml <<'EOF'\n(.*?)EOF", PAGE, flags=re.DOTALL)
    parse_recipe(yaml.safe_load(text), "docs/deploy.md")


def test_files_that_the_page_names_exist():
    paths = re.findall(r"`((?:docs|examples|tests)/[\w./-]+)`", PAGE)
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_a_command_that_exists(unit: Path):
    (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), flags=re.MULTILINE)
    _, group, verb, *arguments = shlex.split(line)
    command = typer.main.get_group(app).commands[group].commands[verb]  # type: ignore[attr-defined]
    command.make_context(verb, list(arguments))  # parses, and runs nothing


def test_the_unit_of_a_server_stays_down_when_somebody_stops_it():
    """`deploy stop` ends a server with the status of an interrupt, and a site with 0."""
    unit = (ROOT / "examples" / "deploy" / "fftmoe-server.service").read_text()
    assert f"\nSuccessExitStatus={INTERRUPTED}\n" in unit
    assert "\nRestart=on-failure\n" in unit
