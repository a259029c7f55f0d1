"""The command line in environments that lack something: an encoding, a home folder, a name for the user."""

import json
import os
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


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_json_means_the_same_in_every_encoding_of_the_output(run_tiny: RunTiny, encoding: str):
    found = fftmoe("predict", run_tiny().folder, TEXT, PYTHONIOENCODING=encoding)
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout.decode(encoding))
    assert answer["text"] == TEXT
    assert answer["label"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
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
