"""Whatever guard is taken away, a test turns red: nothing is checked that nobody would miss (see `guards.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    "fftmoe.store.server_state": "test_hostile_files.py",
    "fftmoe.experiment.deployed": "test_sites.py",
    "fftmoe.experiment.site": "test_sites.py",
    "fftmoe.experiment.example_privacy": "test_example_privacy.py",
}


@pytest.mark.slow
@pytest.mark.parametrize("module", GUARDED)
def test_every_guard_would_be_missed(module: str):
    files = [f"tests/{name}" for name in GUARDED[module].split()]
    command = [sys.executable, "tests/guards.py", module, *files, "-m", "not slow and not network"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"failed": done.stderr[-2000:]}
    assert found == {"status": 0, "killed": found.get("killed"), "survivors": [], "red without a change": []}
    assert found["killed"]
