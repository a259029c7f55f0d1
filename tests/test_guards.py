"""Whatever guard is taken away, a test turns red: nothing is checked that nobody would miss (see `guards.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

ROOT = Path(__file__).parents[1]
# By module, the files of tests that must notice.
GUARDED = {
    "fftmoe.server.screening": "test_screening.py test_private_runs.py",
    "fftmoe.client.screening": "test_plans.py",
    "fftmoe.records": "test_screening.py",
    "fftmoe.strict": "test_hostile_files.py",
    "fftmoe.backbones.trust": "test_hostile_models.py",
    "fftmoe.backbones.adapter_folder": "test_hostile_models.py",
    "fftmoe.engines.flower_objects": "test_flower_objects.py",
    "fftmoe.engines.flower_messages": "test_flower.py",
    "fftmoe.deploy.files": "test_deploy_folder.py",
    "fftmoe.deploy.folder": "test_deploy_folder.py",
    "fftmoe.store.privacy_ledger": "test_privacy.py test_example_privacy.py",
    "fftmoe.store.server_state": "test_hostile_files.py",
    "fftmoe.experiment.deployed": "test_sites.py",
    "fftmoe.experiment.site": "test_sites.py",
    "fftmoe.experiment.example_privacy": "test_example_privacy.py",
}


@pytest.mark.slow
@pytest.mark.parametrize("module", GUARDED)
def test_every_guard_would_be_missed(module: str):
    survivors: set[str] | None = None
    for name in GUARDED[module].split():  # one after the other: what tests of a file share is set up once
        found = run_without_guards(module, f"tests/{name}")
        assert found == {"status": 0, "killed": ANY, "survivors": ANY, "red without a change": []}, name
        assert found["killed"]
        own = set(found["survivors"])
        survivors = own if survivors is None else survivors & own
        if not survivors:
            return
    assert not survivors


def run_without_guards(module: str, tests: str) -> dict[str, Any]:
    command = [sys.executable, "tests/guards.py", module, tests, "-m", "not slow and not network"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"failed": done.stderr[-2000:]}
