"""A run starts from the adapter of an earlier one, or says why it cannot."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.records import names
from fftmoe.setup.compose import compose
from fftmoe.setup.forecast import forecast
from fftmoe.setup.places import BEGAN_IN, from_its_place
from fftmoe.setup.run import resume, run
from fftmoe.setup.site_request import recipe_digest
from fftmoe.store import Bindings, RunFolder
from finished import Finished
from five_clients import AVERAGED, CLOSED, FOURIER
from interrupting import Killed, interrupt, results, without_clocks
from run_fixtures import FiveRecipe, RunFive

METHODS = ("fft-moe", "flame", "fedit", "hetlora", "flexlora", "head-only")


def last_state(done: Finished) -> Any:
    return RunFolder(done.folder).load_newest().state


def started(five_recipe: FiveRecipe, done: Finished, *arguments: Any, **changes: Any) -> dict[str, Any]:
    return five_recipe(*arguments, **{"start_from": str(done.folder), "seed": 5, **changes})


@pytest.mark.parametrize("method", METHODS)
def test_the_first_state_is_the_last_one_of_the_earlier_run(five_recipe: FiveRecipe, run_five: RunFive, method: str):
    done = run_five(method, AVERAGED, **{"federation.rounds": 1})
    begun = compose(parse_recipe(started(five_recipe, done, method, AVERAGED), "tiny")).first_state()
    expected = last_state(done)
    assert begun.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(begun.tensors[name], tensor, rtol=0.0, atol=0.0)
    assert begun.round == 0


@pytest.mark.parametrize("head", [AVERAGED, CLOSED, FOURIER], ids=["averaged", "closed-form", "fourier"])
def test_round_0_is_as_good_as_the_end_of_the_earlier_run(
    five_recipe: FiveRecipe, run_five: RunFive, tmp_path: Path, head: dict[str, Any]
):
    """With a closed-form head the clients take their statistics on the whole earlier adapter."""
    done = run_five("fft-moe", head, **{"federation.learning_rate": 0.05})
    recipe = parse_recipe(started(five_recipe, done, "fft-moe", head, **{"federation.rounds": 1}), "tiny")
    summary = run(recipe, tmp_path / "run").summary
    assert summary["accuracy_by_round"]["0"] == done.summary["accuracy"]
    bindings = json.loads((tmp_path / "run" / "bindings.json").read_text())["values"]
    assert len(bindings["start"]) == 64
    assert "start_from" not in bindings["recipe"]


def test_a_start_in_the_home_of_an_unknown_user_is_refused_in_one_sentence(five_recipe: FiveRecipe, tmp_path: Path):
    recipe = parse_recipe(five_recipe("fft-moe", AVERAGED, start_from="~nobody-of-this-name/first"), "tiny")
    with pytest.raises(InputError, match=r"start_from=.* cannot be looked up .*name it without ~"):
        run(recipe, tmp_path / "run")


def test_a_run_that_was_started_so_is_resumed_to_the_byte(
    five_recipe: FiveRecipe, run_five: RunFive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = run_five("fft-moe", AVERAGED, **{"federation.rounds": 1})
    shutil.copytree(first.folder, tmp_path / "first")
    recipe = parse_recipe(five_recipe("fft-moe", AVERAGED, start_from=str(tmp_path / "first" / "adapter")), "tiny")
    run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, "in training", 2)
        with pytest.raises(Killed):
            run(recipe, tmp_path / "cut")
    resume(tmp_path / "cut")
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert without_clocks(tmp_path / "cut") == without_clocks(tmp_path / "whole")
    (tmp_path / "cut" / "summary.json").unlink()
    other = run_five("fft-moe", AVERAGED, **{"federation.rounds": 1, "seed": 11})
    shutil.rmtree(tmp_path / "first" / "adapter")
    shutil.copytree(other.folder / "adapter", tmp_path / "first" / "adapter")
    with pytest.raises(InputError, match="the adapter that the run starts from has changed"):
        resume(tmp_path / "cut")


def test_a_head_with_other_labels_is_a_new_one(five_recipe: FiveRecipe, run_five: RunFive):
    done = run_five("fft-moe", AVERAGED, **{"federation.rounds": 1})
    values = started(five_recipe, done, "fft-moe", AVERAGED, **{"data.labels": ["red", "green", "blue"]})
    experiment = compose(parse_recipe(values, "tiny"))
    begun, fresh = experiment.first_state(), experiment.method.init(experiment.model)
    for name, tensor in begun.tensors.items():
        source = fresh if names.is_head(name) else last_state(done)
        assert torch.equal(tensor, source.tensors[name])
    assert any("the head is a new one, because that of" in note for note in experiment.notes)


def test_plan_knows_the_start_and_a_site_is_not_asked_about_it(five_recipe: FiveRecipe, run_five: RunFive):
    done = run_five("fft-moe", AVERAGED, **{"federation.rounds": 1})
    plain = parse_recipe(five_recipe("fft-moe", AVERAGED, seed=5), "tiny")
    warm = parse_recipe(started(five_recipe, done, "fft-moe", AVERAGED), "tiny")
    assert forecast(warm).notes == forecast(plain).notes
    assert recipe_digest(warm) == recipe_digest(plain)


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("fedit", {}, "method fft-moe trained that run, and this recipe has method fedit"),
        ("fft-moe", {"adapter.num_experts": 7}, r"has the shape \[5, .*\], and \[7, .*\] is needed"),
        ("fft-moe", {"adapter.blocks": "last-1"}, "has a tensor blocks.1.down, which the server .* does not hold"),
        ("fft-moe", {"adapter.shared_dim": 0}, "has a tensor shared.1.down, which"),
        ("fft-moe", {"adapter.activation": "silu"}, "computes something else .adapter.activation was gelu and is silu"),
        ("fft-moe", {"start_from": "nowhere"}, "nowhere is no finished run and no adapter"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_difference(
    five_recipe: FiveRecipe, run_five: RunFive, method: str, changes: dict[str, Any], reason: str
):
    done = run_five("fft-moe", AVERAGED, **{"federation.rounds": 1})
    values = started(five_recipe, done, method, AVERAGED, **changes)
    if "adapter.blocks" in changes:
        del values["budgets"][0]["blocks"]
    with pytest.raises(InputError, match=reason):
        compose(parse_recipe(values, "tiny")).first_state()


@pytest.mark.parametrize("method", ["ffa-lora", "flora"])
def test_a_method_whose_server_holds_a_part_of_the_adapter_is_refused(
    five_recipe: FiveRecipe, run_five: RunFive, method: str
):
    done = run_five(method, AVERAGED, **{"federation.rounds": 1})
    with pytest.raises(InputError, match=r"has a tensor lora\.\S+, which the server of this method does not hold"):
        compose(parse_recipe(started(five_recipe, done, method, AVERAGED), "tiny")).first_state()


def test_a_relative_name_means_the_folder_where_the_run_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("then/first", "then/run", "now"):
        (tmp_path / name).mkdir(parents=True)
    Bindings({BEGAN_IN: str(tmp_path / "then")}).write(tmp_path / "then" / "run")
    monkeypatch.chdir(tmp_path / "now")
    found = from_its_place(tmp_path / "then" / "run", {"start_from": "first"})
    assert found == {"start_from": str(tmp_path / "then" / "first")}
    assert from_its_place(tmp_path / "then" / "run", {"start_from": "off"}) == {"start_from": "off"}
