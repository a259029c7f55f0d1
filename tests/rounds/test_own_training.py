"""Parts that clients of a language model train for themselves: kept where they help, used, and never sent."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import complete_recipe, parse_recipe
from fftmoe.evaluate import tally
from fftmoe.records import names
from fftmoe.setup.compose import compose
from fftmoe.setup.finished import load_client, load_federation, recipe_of
from fftmoe.setup.run import resume, run
from finished import Finished
from five_clients import changed
from interrupting import Killed, results, without_clocks
from run_fixtures import RunLanguage
from shared_fixtures import Cli

OWN: dict[str, Any] = {
    "partition": {"kind": "natural", "by": "author"},
    "data__validation": 0.2,
    "federation__own_training": 2.0,
    "evaluation": {
        "baselines": ["head_only", "alone"],
        "generate": {"examples": 7, "max_new_tokens": 5, "samples": 1},
    },
}
METHODS = (
    *("fft-moe", "fedit", "flame"),
    *(pytest.param(m, marks=pytest.mark.slow) for m in ("ffa-lora", "hetlora", "flexlora")),
)


def with_own(run_language: RunLanguage, **changes: Any) -> Finished:
    return run_language(**{**OWN, **changes})


def listed(finished: Finished) -> Mapping[str, list[Any]]:
    return finished.summary["clients"]


def on_own_rows(folder: Path, client: int) -> float:
    """The perplexity of a client's model, as it is used, on the client's own test rows."""
    recipe = recipe_of(folder)
    experiment = compose(
        recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"prefix_cache": "off"})}), measures=False
    )
    assert experiment.own_test is not None
    own = experiment.test.select(experiment.own_test[client])
    model = load_client(folder, client).trained.model
    return tally(model, experiment.task, own, 1 + int(own.labels.max())).metrics()["perplexity"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_measured_is_what_a_client_uses(run_language: RunLanguage, method: str):
    finished = with_own(run_language, method=method)
    clients = listed(finished)
    assert set(clients["answer"]) <= {"common", "private part"}
    assert "private part" in clients["answer"]
    for client, (answer, margin) in enumerate(zip(clients["answer"], clients["margin"], strict=True)):
        assert (margin > 0) == (answer == "private part")
        if answer == "private part":
            # FLAME multiplies the experts by its scalars, which training applies to their outputs.
            assert clients["personal"][client] == pytest.approx(on_own_rows(finished.folder, client), rel=1e-4)
        else:
            assert clients["personal"][client] == clients["perplexity"][client]


def test_the_scores_are_beside_the_others(run_language: RunLanguage):
    finished = with_own(run_language)
    summary, clients = finished.summary, listed(finished)
    kept = [name for name, answer in zip(clients["name"], clients["answer"], strict=True) if answer != "common"]
    assert [*summary["personal_by_client"]] == kept
    gain = summary["own_data"]["gain_over_alone"]
    better = [alone - own for alone, own in zip(clients["alone"], clients["personal"], strict=True)]
    assert gain["mean"] == pytest.approx(sum(better) / len(better), abs=1e-3)
    for name, stages in summary["before_and_after"].items():
        assert [*stages] == ["before", "alone", "together", "personal"]
        assert stages["personal"]["perplexity"] == clients["personal"][clients["name"].index(name)]


def test_the_common_model_is_the_same_to_the_byte(run_language: RunLanguage):
    folders = [with_own(run_language, federation__own_training=part).folder for part in (2.0, "off")]
    newest = max(path.name for path in (folders[0] / "checkpoints").glob("*.safetensors"))
    for name in ("adapter/adapter_model.safetensors", f"checkpoints/{newest}"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second
    assert not (folders[1] / "own-parts").exists()
    assert "answer" not in json.loads((folders[1] / "summary.json").read_text())["clients"]


def test_a_client_that_does_better_without_keeps_nothing(
    language_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every loss is higher than the one before."""
    losses = itertools.count()
    monkeypatch.setattr("fftmoe.client.own_part.loss_of_rows", lambda *_: float(next(losses)))
    finished = run(parse_recipe(changed(language_values, **OWN), "tiny"), tmp_path / "run")
    clients = finished.summary["clients"]
    assert set(clients["answer"]) == {"common"}
    assert set(clients["margin"]) == {0}
    assert clients["personal"] == clients["perplexity"]
    assert finished.summary["personal_by_client"] == {}
    federation = load_federation(finished.folder)
    assert federation.own_parts is not None
    found = [federation.own_parts.load(client, before=99) for client in range(3)]
    assert [[*part] for part in found] == [[names.OWN_MARGIN]] * 3
    assert clients["personal"][0] == pytest.approx(on_own_rows(finished.folder, 0), rel=1e-4)


def killed(*_: object) -> None:
    raise Killed


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("own-parts/*/*.safetensors")}


def test_a_run_that_is_killed_after_the_parts_ends_with_the_same(
    run_language: RunLanguage, language_values: dict[str, Any], tmp_path: Path
):
    whole, folder = with_own(run_language), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fftmoe.setup.carry_out.measure_baselines", killed)
        with pytest.raises(Killed):
            run(parse_recipe(changed(language_values, **OWN), "tiny"), folder)
    assert parts(folder) == parts(whole.folder)
    resume(folder)
    assert parts(folder) == parts(whole.folder) != {}
    assert results(folder) == results(whole.folder)
    assert without_clocks(folder) == without_clocks(whole.folder)


def test_worker_processes_train_the_same_parts(run_language: RunLanguage):
    one, two = with_own(run_language), with_own(run_language, engine__workers=2)
    assert parts(one.folder) == parts(two.folder)
    assert listed(one) == listed(two)


def test_parts_of_an_earlier_model_are_not_used(run_language: RunLanguage):
    finished = with_own(run_language)
    kept, last = (load_federation(finished.folder, round=which).own_parts for which in ("kept", "last"))
    assert (kept is None, last is None) == (False, True)


def test_a_client_is_exported_with_its_part(run_language: RunLanguage, cli: Cli, tmp_path: Path):
    finished = with_own(run_language)
    client = listed(finished)["answer"].index("private part")
    folder = tmp_path / "exported"
    outcome = cli("export", finished.folder, "--to", "personal", "--client", client, "--output", folder)
    assert outcome.status == 0, outcome.err
    exported = (folder / "adapter_model.safetensors").read_bytes()
    assert exported != (finished.folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__validation": "off"}, ("data.validation", "0.1")),
        ({"method": "flora"}, ("flora", "new factors", "own_training=off")),
        ({"method": "local-only"}, ("local-only", "models of their own", "own_training=off")),
        ({"method": "centralized"}, ("centralized", "one client", "own_training=off")),
        ({"privacy": {"min_contributors": 2}}, ("own_training=2", "privacy")),
    ],
)
def test_what_cannot_train_for_itself_is_refused(
    language_values: dict[str, Any], changes: dict[str, Any], words: tuple[str, ...]
):
    values = changed(language_values, **{**OWN, "evaluation": {"keep": "last"}, **changes})
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - its words are checked
        complete_recipe(values, "tiny")
    assert all(word in str(refused.value) for word in words)


def test_other_tasks_are_refused(recipe_values: dict[str, Any]):
    values = changed(recipe_values, federation__own_training=0.5)
    with pytest.raises(ValueError, match="for language models"):
        complete_recipe(values, "tiny")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0.5),
        ({"data__validation": "off"}, None),
        ({"method": "flora"}, None),
        ({"method": "local-only", "evaluation": {"keep": "last"}}, None),
        ({"partition": {"kind": "iid", "num_clients": 201}}, None),
    ],
)
def test_the_default_follows_from_the_recipe(
    language_values: dict[str, Any], changes: dict[str, Any], expected: float | None
):
    values = changed(language_values, **{**OWN, "federation__own_training": None, **changes})
    del values["federation"]["own_training"]
    assert complete_recipe(values, "tiny")[0].federation.own_training == expected
