"""A test fails whichever guard is removed, so every check in these modules is tested (see `guards.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from guards import find_guards

ROOT = Path(__file__).parents[2]
# For each module, the files whose tests must fail when one of its guards is removed.
GUARDED = {
    "fftmoe.server.screening": "server/test_screening.py rounds/test_private_runs.py",
    "fftmoe.client.screening": "client/test_plans.py",
    "fftmoe.records.wire": "server/test_screening.py",
    "fftmoe.strict": "store/test_hostile_files.py",
    "fftmoe.backbones.trust": "backbones/test_hostile_models.py",
    "fftmoe.backbones.adapter_folder": "backbones/test_hostile_models.py",
    "fftmoe.deploy.link.objects": "deploy/test_flower_objects.py",
    "fftmoe.engines.flower_messages": "engines/test_flower.py",
    "fftmoe.deploy.files": "deploy/test_deploy_files.py deploy/test_deploy_init.py",
    "fftmoe.deploy.folder": "deploy/test_deploy_files.py deploy/test_deploy_keys.py deploy/test_deploy_init.py",
    "fftmoe.store.privacy_ledger": "store/test_privacy_ledger.py rounds/test_example_privacy.py",
    "fftmoe.store.server_state": "store/test_hostile_files.py",
    "fftmoe.deploy.job": "deploy/test_sites.py",
    "fftmoe.setup.deployment": "deploy/test_sites.py",
    "fftmoe.deploy.door": "deploy/test_door.py deploy/test_site_ledger.py",
    "fftmoe.deploy.ledger": "deploy/test_site_ledger.py",
    "fftmoe.deploy.review": "deploy/test_site_review.py",
    "fftmoe.setup.policy": "deploy/test_door.py",
    "fftmoe.store.chained_log": "store/test_chained_log.py",
    "fftmoe.rounds.example_cost": "rounds/test_example_privacy.py rounds/test_privacy_accounts.py",
    "fftmoe.records.release": "server/test_accountant.py",
    "fftmoe.config.declared": "rounds/test_private_recipes.py tasks/test_target_scales.py",
    "fftmoe.setup.privacy": "rounds/test_private_recipes.py",
}


@pytest.mark.parametrize("module", GUARDED)
def test_every_module_of_the_table_has_guards_and_every_file_of_tests_exists(module: str):
    source = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
    assert list(find_guards(source.read_text()))
    assert [name for name in GUARDED[module].split() if not (ROOT / "tests" / name).is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize("module", GUARDED)
def test_a_test_fails_whichever_guard_is_removed(module: str):
    survivors: set[str] | None = None
    for name in GUARDED[module].split():  # one file after the other, because the tests of a file share fixtures
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
