"""The account of a private run, replaced by an older copy of itself, or interrupted by rounds without its noise."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.rounds.counted import check_account
from fftmoe.setup import privacy as privacy_module
from fftmoe.setup.run import resume, run
from fftmoe.store.privacy_ledger import AskedLedger, PrivacyLedger
from finished import Finished
from private_runs import NOISY, PrivateRecipe

EXAMPLES = {"min_contributors": 2, "examples": {"clip_norm": 0.7, "noise_multiplier": 1.3, "delta": 0.001}}
KINDS = {"clients": (NOISY, PrivacyLedger), "examples": (EXAMPLES, AskedLedger)}
ROUNDS = 4


class Killed(Exception):
    """Stands in for a signal."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def copies(kind: str, private_recipe: PrivateRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A run in `tmp_path / "run"` that was killed in its last round; every account that it wrote, the oldest first."""
    privacy, ledger = KINDS[kind]
    written: list[bytes] = []

    class Copied(ledger):
        def write(self, values: Any) -> None:
            super().write(values)
            written.append(self.path.read_bytes())
            if len(written) > ROUNDS:
                raise Killed

    values = private_recipe("head-only", privacy, **{"federation.rounds": ROUNDS, "adapter.balance": "switch"})
    with monkeypatch.context() as patch:
        patch.setattr(privacy_module, ledger.__name__, Copied)
        with pytest.raises(Killed):
            run(parse_recipe(values, "tiny"), tmp_path / "run")
    return written


def restored(tmp_path: Path, kind: str, copy: bytes) -> Path:
    folder = tmp_path / "restored"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "run", folder)
    KINDS[kind][1](folder).path.write_bytes(copy)
    return folder


def test_no_older_copy_of_an_account_is_taken(tmp_path: Path, kind: str, copies: list[bytes]):
    """The last two are those before and in the round that was interrupted, of which no row tells."""
    for copy in copies[: ROUNDS - 1]:
        with pytest.raises(InputError, match=r"is an older copy: it counts .*restore the newest file"):
            resume(restored(tmp_path, kind, copy))
    resume(restored(tmp_path, kind, copies[-1]))
    key = "releases" if kind == "clients" else "clients_asked"
    counted = [row[key] for row in Finished(tmp_path / "restored").rows[1:]]
    assert counted == sorted(set(counted))
    assert counted[-1] - counted[-2] == 2 * (counted[1] - counted[0])  # the last round was counted twice


def test_an_older_copy_is_noticed_where_the_newest_checkpoint_is_damaged(
    tmp_path: Path, kind: str, copies: list[bytes]
):
    folder = restored(tmp_path, kind, copies[ROUNDS - 2])
    max((folder / "checkpoints").glob("round-*.safetensors")).write_bytes(b"")
    with pytest.raises(InputError, match="is an older copy"):
        resume(folder)


@pytest.mark.parametrize("other", ["off", {"min_contributors": 2}, NOISY, EXAMPLES])
def test_no_other_kind_of_privacy_is_accepted(tmp_path: Path, kind: str, copies: list[bytes], other: Any):
    """What one kind has counted says nothing of rounds that are made with another."""
    if other == KINDS[kind][0]:
        return
    folder = restored(tmp_path, kind, copies[-1])
    values = {**yaml.safe_load((folder / "config.yaml").read_text()), "privacy": other}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=f"the kind of privacy has changed \\({kind} then") as refused:
        resume(folder, accept_changes=True)
    assert "--accept-changes" not in str(refused.value)


def test_a_round_without_the_noise_is_covered_by_no_account(tmp_path: Path):
    """Versions that did not record the kind of privacy let it change."""
    rows = [{"round": 0}, {"round": 1, "epsilon": 0.5, "releases": 1}, {"round": 2}]
    check_account(rows[:2], 1, "releases", "epsilon", tmp_path / "privacy.json")
    with pytest.raises(InputError, match="round 2 of this run was made without the noise"):
        check_account(rows, 2, "releases", "epsilon", tmp_path / "privacy.json")


def test_an_accepted_change_of_the_noise_is_the_noise_that_is_made(tmp_path: Path, kind: str, copies: list[bytes]):
    folder = restored(tmp_path, kind, copies[-1])
    values = yaml.safe_load((folder / "config.yaml").read_text())
    changed = values["privacy"] if kind == "clients" else values["privacy"]["examples"]
    changed |= {"noise_multiplier": 13.0, "clip_norm": 0.3}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match="the recipe has changed"):
        resume(folder)
    resume(folder, accept_changes=True)
    found = Finished(folder).summary["privacy"]
    made = found if kind == "clients" else found["examples"]
    assert made["noise_multiplier"] == 13.0
    assert [part["noise_multiplier"] for part in made["history"]][-1] == 13.0
    assert made.get("clip_norm", 0.3) == 0.3
    assert len(made["history"]) == 2
