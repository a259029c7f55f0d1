"""Whatever guard is taken away, a test turns red: nothing is checked that nobody would miss (see `guards.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

ROOT = Path(__file__).parents[2]
# By module, the files of tests that must notice.
GUARDED = {
    "fftmoe.server.screening": "server/test_screening.py rounds/test_private_runs.py",
    "fftmoe.client.screening": "client/test_plans.py",
    "fftmoe.records.wire": "server/test_screening.py",
    "fftmoe.strict": "store/test_hostile_files.py",
    "fftmoe.backbones.trust": "backbones/test_hostile_models.py",
    "fftmoe.backbones.adapter_folder": "backbones/test_hostile_models.py",
    "fftmoe.deploy.link.objects": "deploy/test_flower_objects.py",
    "fftmoe.engines.flower_messages": "engines/test_flower.py",
    "fftmoe.deploy.files": "deploy/test_deploy_folder.py",
    "fftmoe.deploy.folder": "deploy/test_deploy_folder.py",
    "fftmoe.store.privacy_ledger": "server/test_privacy.py rounds/test_example_privacy.py",
    "fftmoe.store.server_state": "store/test_hostile_files.py",
    "fftmoe.deploy.job": "deploy/test_sites.py",
    "fftmoe.setup.deployment": "deploy/test_sites.py",
    "fftmoe.setup.site": "deploy/test_sites.py",
    "fftmoe.rounds.private_examples": "rounds/test_example_privacy.py",
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
