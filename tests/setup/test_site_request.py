"""What a recipe asks of a site: a digest that changes with everything that matters there, and every column it reads."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.config import parse_recipe
from fftmoe.setup import splits
from fftmoe.setup.site_request import (
    EVALUATION,
    PROFILE,
    SERVER_ONLY,
    SUMS,
    TRAINING,
    SiteRows,
    canonical_values,
    columns_read,
    is_folder,
    recipe_digest,
    request_in,
    request_of,
    tasks_of,
)
from site_recipes import BASE, MODES, changed, recipe


def shuffled(value: Any, random: Any) -> Any:
    if not isinstance(value, dict):
        return [shuffled(one, random) for one in value] if isinstance(value, list) else value
    keys = list(value)
    random.shuffle(keys)
    return {key: shuffled(value[key], random) for key in keys}


@given(
    mode=st.sampled_from(sorted(MODES)),
    random=st.randoms(use_true_random=False),
    whole=st.booleans(),
    flow=st.booleans(),
)
@settings(max_examples=40)
def test_the_digest_does_not_depend_on_how_a_recipe_is_written(mode: str, random: Any, whole: bool, flow: bool):
    """On the order of its keys, on which defaults it states, on its notation, and on the places of one machine."""
    written = recipe(MODES[mode])
    values = written.model_dump(mode="json") if whole else changed(BASE, MODES[mode])
    values = {key: value for key, value in values.items() if value is not None}
    text = yaml.safe_dump(shuffled(values, random), default_flow_style=flow, sort_keys=False, width=40)
    read = yaml.safe_load(text)
    read["data"]["source"] = random.choice(["/srv/rows", "./here", "elsewhere"])
    read["name"], read["trackers"] = random.choice(["run", "study"]), random.choice([[], ["tensorboard"]])
    read["engine"] = {
        **read.get("engine", {}),
        "workers": random.choice([1, 3]),
        "kind": random.choice(["local", "flower"]),
    }
    again = parse_recipe(read, "test")
    assert recipe_digest(again) == recipe_digest(written)
    # What the server sends with its messages is read again by the site.
    sent = json.loads(json.dumps(again.model_dump(mode="json")))
    assert request_of(sent) == request_in(again)


@pytest.mark.parametrize("folder", ["/srv/model", "/model", "./model", "~/model", "../model", "a/b/c", "model/"])
def test_the_place_of_a_backbone_is_not_in_the_digest_and_its_name_is(folder: str):
    here = recipe({"backbone": {"model": folder}})
    assert is_folder(folder)
    assert recipe_digest(here) == recipe_digest(recipe({"backbone": {"model": "/elsewhere/model"}}))
    named = {recipe_digest(recipe({"backbone": {"model": name}})) for name in ("builtin:minilm", "org/model", "model")}
    assert len(named | {recipe_digest(here)}) == 4


def other(value: Any) -> Any:
    """Another value of the same type, without a check of any rule."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, *value[:1]] if value else ["x"]
    return "x" if value is None else value


def replaced(section: Any, path: Sequence[str], change: Callable[[Any], Any]) -> Any:
    name, *rest = path
    old = getattr(section, name)
    return section.model_copy(update={name: replaced(old, rest, change) if rest else change(old)})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # some values are of a wrong type on purpose
@pytest.mark.parametrize("mode", MODES)
def test_every_value_that_matters_at_a_site_is_in_the_digest(mode: str):
    """Values of another type too: a site must not take `true` for 1, or nothing for a text."""
    written = recipe(MODES[mode])
    digest, leaves = recipe_digest(written), {**canonical_values(written)}
    assert len(leaves) > 80
    for key in leaves:
        if key in ("privacy", "robustness"):  # a section that is off
            continue
        changes = [other] if key == "backbone.model" else [other, str, lambda old: [old]]
        different = [change for change in changes if change(leaves[key]) != leaves[key]]
        digests = {recipe_digest(replaced(written, key.split("."), change)) for change in different}
        assert digests
        assert digest not in digests, key
    for key in SERVER_ONLY:
        assert recipe_digest(replaced(written, key.split("."), other)) == digest, key
    assert len({recipe_digest(recipe(changes)) for changes in MODES.values()}) == len(MODES)


TASKS: dict[str, dict[str, Any]] = {
    "sequence-classification": {"data": {"text": "note", "label": "ward"}},
    "image-classification": {"data": {"image": "scan", "label": "ward"}},
    "token-classification": {"data": {"tokens": "words", "tags": "kinds", "label": "ward"}},
    "multi-label-classification": {"data": {"text": "note", "label": "wards"}},
    "regression": {"data": {"text": "note", "targets": ["age", "dose"], "label": "ward", "labels": None}},
    "causal-lm": {"data": {"text": "note", "label": "ward", "labels": None}, "head": None},
    "causal-lm that is divided by its text": {"data": {"text": "note", "label": "note", "labels": None}, "head": None},
    "causal-lm with prompts": {
        "data": {"prompt": "question", "completion": "answer", "label": "ward", "labels": None},
        "head": None,
    },
}


class Stopped(Exception):
    """Enough has been read."""


@pytest.mark.parametrize("by", [None, "unit"])
@pytest.mark.parametrize("task", TASKS)
def test_every_column_that_a_loader_reads_is_asked_for(task: str, by: str | None, monkeypatch: pytest.MonkeyPatch):
    """`columns_read` says what the policy is compared with; the loaders say what is read."""
    changes = {**TASKS[task], "partition": {"by": by, "kind": "natural" if by else "iid", "num_clients": 3}}
    if by:
        changes["partition"].pop("num_clients")
    changes["backbone"] = {"task": task.split()[0]}
    asked = columns_read(recipe(changes))
    read: dict[str, list[str]] = {}

    def tables(source: str, content: Mapping[str, Sequence[str]], extra: Sequence[str], request: Any) -> Any:
        read.update({key: list(names) for key, names in content.items()})
        read["extra"] = list(extra)
        return {}

    def strata(tables: Any, names: Sequence[str]) -> Any:
        read["strata"] = list(names)
        raise Stopped

    def stop(*_: Any) -> Any:
        raise Stopped

    for name, fake in {"read_tables": tables, "number_strata": strata, "number_classes": stop}.items():
        monkeypatch.setattr(splits, name, fake)
    for name in ("load_tokenizer", "load_image_processor"):
        monkeypatch.setattr(splits, name, lambda *_: None)
    with pytest.raises(Stopped):
        splits.load_splits(recipe(changes), "rows", splits.SplitRequest(("train",)))
    answers = {"data.label", "data.tags", "data.targets"}
    inputs = {name for key, names in read.items() if key.startswith("data.") and key not in answers for name in names}
    assert inputs == set(asked.text)
    assert {name for key in answers for name in read.get(key, ())} == set(asked.label)
    assert set(read.get("strata", ())) | set(read["extra"]) == set(asked.strata)
    assert asked.client == (() if by is None else (by,))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", ["averaged", "one-vs-all", "closed-form"])
def test_under_noise_a_site_sends_nothing_but_noisy_updates(mode: str, head: str):
    """Whatever a recipe says: the rules of recipes are not the only guard."""
    written = recipe(MODES[mode])
    assert written.head is not None
    kind = {"kind": head, "update": "trained"}
    written = written.model_copy(update={"head": written.head.model_copy(update=kind)})
    exact = head == "closed-form" and mode in ("none", "sums")
    assert tasks_of(written) == (("train", "sums") if exact else ("train",))
    asked = request_in(written)
    assert asked.privacy.mode == mode
    assert ("feature-sums" in asked.tasks) == exact
    assert "evaluation" not in asked.tasks
    assert asked.sends_counts == (mode == "none" or head == "closed-form")


@pytest.mark.parametrize(("local", "counted"), [({"local_steps": 3}, False), ({"local_epochs": 1}, True)])
def test_a_pass_over_the_rows_tells_their_number(local: dict[str, int], counted: bool):
    """It takes a step for each batch, and the length of an update says how many steps were taken."""
    written = recipe(MODES["sums"])
    none = {"local_steps": None, "local_epochs": None}
    written = written.model_copy(update={"federation": written.federation.model_copy(update={**none, **local})})
    assert request_in(written).sends_counts == counted


def test_the_privacy_that_a_recipe_promises():
    assert request_in(recipe(MODES["clients"])).privacy.epsilon == 3.0
    found = request_in(recipe(MODES["examples"])).privacy
    assert (found.epsilon, found.delta, found.noise_multiplier, found.batch_size, found.steps) == (7.0, 1e-3, 2.0, 8, 4)


def test_the_rows_behind_an_answer_are_those_that_it_sums_over():
    rows = SiteRows(trained=11, aside=3, by_label=(5, 2, 4))
    assert rows.total == 14
    assert [rows.behind(task, 4) for task in (TRAINING, EVALUATION, PROFILE)] == [11, 3, 11]
    assert [rows.behind(SUMS, fewest) for fewest in (1, 4, 5, 6)] == [11, 9, 5, 0]


@pytest.mark.parametrize(
    ("task", "data", "in_rows"),
    [
        ("sequence-classification", {}, True),
        ("regression", {"targets": ["age"], "label": None, "labels": None}, False),
        ("causal-lm", {"label": None, "labels": None}, False),
    ],
)
def test_labels_are_values_of_rows_only_where_classes_are_learned(task: str, data: dict[str, Any], in_rows: bool):
    values = changed(BASE, {"data": data, "backbone": {"task": task}})
    if task == "causal-lm":
        values.pop("head")
    values["data"] = {name: value for name, value in values["data"].items() if value is not None}
    assert request_in(parse_recipe(values, "test")).labels_in_rows == in_rows
