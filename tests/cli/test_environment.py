"""The command line in environments that lack something: an encoding, a home folder, a name for the user."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fftmoe.backbones import resolve_model
from fftmoe.data import default_cache_dir
from fftmoe.errors import InputError
from run_fixtures import RunTiny

TEXT = "blue \u77f3\u6cb9 \U0001f600"


def fftmoe(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    run = "from fftmoe.cli.app import main; main()"
    command = [sys.executable, "-c", run, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment}, timeout=600)


@pytest.mark.parametrize("encoding", ["cp1252", *(pytest.param(e, marks=pytest.mark.slow) for e in ("ascii", "utf-8"))])
def test_json_means_the_same_in_every_encoding_of_the_output(run_tiny: RunTiny, encoding: str):
    found = fftmoe("predict", run_tiny().folder, TEXT, PYTHONIOENCODING=encoding)
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout.decode(encoding))
    assert answer["text"] == TEXT
    assert answer["label"]


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.slow)])
def test_what_an_encoding_lacks_is_shown_as_an_escape(recipe_file: Path, encoding: str):
    found = fftmoe("plan", recipe_file, "--set", f"name={TEXT}", PYTHONIOENCODING=encoding)
    assert found.returncode in (0, 2), found.stderr
    assert b"Traceback" not in found.stderr
    refused = fftmoe("run", TEXT, PYTHONIOENCODING=encoding)
    assert refused.returncode == 2
    assert b"\\u77f3" in refused.stderr


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch):
    def unknown(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    assert default_cache_dir({}) is None
    with pytest.raises(InputError, match="name it without ~"):
        resolve_model("~/model")


def shell(line: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a line of the shell in which `"$@"` stands for the command line with these arguments."""
    command = ["bash", "-c", line, "bash", sys.executable, "-c", "from fftmoe.cli.app import main; main()"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("arguments", [("--version",), ("--help",)])
def test_a_full_disk_below_standard_output_is_told_in_one_line(arguments: tuple[str, ...]):
    found = shell('"$@" > /dev/full', *arguments)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == (
        "fftmoe: standard output is not complete: No space left on device; send it to a disk that has space\n"
    )


@pytest.mark.parametrize("line", ['"$@" >&-', '"$@" <&- >&- 2>&-', '"$@" 2>&-', '"$@" 2> /dev/full'])
def test_a_closed_or_full_stream_changes_no_result(line: str):
    assert shell(line, "--version").returncode == 0
    assert shell(line, "run", "no-such.yaml").returncode == 2


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path: Path):
    script = "from fftmoe.cli.streams import endure; endure(); print('said'); file = open(0, 'rb', closefd=False)"
    opened = f"{script}; import os; assert os.open({str(tmp_path / 'a')!r}, os.O_CREAT) > 2; assert not file.read()"
    command = ["bash", "-c", '"$@" <&- >&-', "bash", sys.executable, "-c", opened]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (found.returncode, found.stderr) == (0, "")


def test_a_run_goes_on_when_nobody_reads_its_output(recipe_file: Path, tmp_path: Path):
    short = ("--set", "federation.rounds=1", "--set", "evaluation.local_only=false")
    line = '"$@" | head -n 1; exit "${PIPESTATUS[0]}"'
    found = shell(line, "run", recipe_file, "--output", tmp_path / "run", *short)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.count("\n") == 1
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize(("own", "then"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_environment_says_otherwise(own: dict[str, str], then: str):
    """The library of torch's threads shows what it has read, which it does only once."""
    script = "import fftmoe.cli.app as c; c.main(['--version']); import torch"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true", **own}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert re.findall(r"OMP_WAIT_POLICY\s*=\s*'(\w+)'", done.stderr) == [then]


def test_the_package_is_run_as_a_module():
    outcome = subprocess.run(
        [sys.executable, "-m", "fftmoe", "--version"], capture_output=True, text=True, check=True, timeout=600
    )
    assert outcome.stdout.startswith("fftmoe ")
