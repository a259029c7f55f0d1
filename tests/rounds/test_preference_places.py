"""Preference runs in workers and after an interruption give the bytes of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe.backbones import outputs
from fftmoe.config import parse_recipe
from fftmoe.setup.clients import NoStates, build_client, client_spec
from fftmoe.setup.compose import compose
from fftmoe.setup.run import resume, run
from finished import Finished
from interrupting import Killed, interrupt, results
from run_fixtures import RunLanguage

AUTHORS = {"partition": {"kind": "natural", "by": "author"}}
METRIC = "preference_accuracy"


def test_a_worker_runs_from_the_cached_states_of_pairs(preference_values: dict[str, Any]):
    """A new process builds its own model, and must prepare it for states below the adapter."""
    experiment = compose(parse_recipe(preference_values, "test"))
    client = build_client(client_spec(experiment, NoStates()))
    assert client.model is not experiment.model
    batch = experiment.train.batch([0, 3])
    with torch.inference_mode():
        there, here = (outputs(model, batch, next_token=True) for model in (client.model, experiment.model))
    assert "prefix_states" in batch
    assert torch.equal(there, here)


@pytest.mark.slow
def test_one_and_two_workers_give_the_same_bytes(run_preference: RunLanguage):
    one, two = (run_preference(engine={"workers": workers}) for workers in (1, 2))
    assert results(one.folder) == results(two.folder)
    assert one.rows[-1][METRIC] == two.rows[-1][METRIC]


def test_the_rest_of_a_run_gives_the_bytes_of_the_whole(
    preference_values: dict[str, Any], run_preference: RunLanguage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, "before the checkpoint", 1)
        with pytest.raises(Killed):
            run(parse_recipe(preference_values, "test"), folder)
    resume(folder)
    assert results(folder) == results(run_preference().folder)
    assert Finished(folder).summary[f"{METRIC}_by_round"] == run_preference().summary[f"{METRIC}_by_round"]
