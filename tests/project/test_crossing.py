"""Features crossed: combinations of everything that the code declares are refused with a reason, or go all the way.

The axes come from registries and from the keys of a recipe (`crossed_features.py`), so that a new method, task, head,
export format or choice of a key is crossed without a change here. `crossed_rules.py` predicts from declared
capabilities what is refused; `crossed_runs.py` takes the rest through training, resuming or comparing or exporting,
measuring, predicting and the page. `make test` runs the `QUICK` rows with more than half of all pairs; a slow
test runs `MORE`. Nothing here runs every pair, and what is `COSTLY` is left out. With the gain of a metric taken the
wrong way round where lower is better, half of the quick rows fail; with a model card that calls every metric accuracy,
one of the slow rows.
"""

import os
import shutil
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging

from covering import Axes, Row, covering, groups, most_covering
from crossed_features import FURTHER, PRIVACY, STATED, TIERS, axes, keys, plainest
from crossed_inputs import Inputs, installed
from crossed_rules import LATER, RULES, Rule, can, reasons, refused_at_once
from crossed_runs import check
from fftmoe.config.privacy import ExamplePrivacySection, PrivacySection

COSTLY = {"engine.kind": ("flower",), "engine.workers": (2,), "use": ("export onnx", "export torch-export")}
"""What takes seconds in one combination: further processes, and tracing a graph."""
QUICK = 7  # rows in `make test`
MORE = 24  # rows of the slow test
REDUCE = "FFTMOE_REDUCE" in os.environ  # reduce the first row that fails to the values that matter; takes minutes
SEAMS = ("task", "method", "head", "partition", "privacy", "robustness", "federation.aggregation", "use", "head.update")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    logging.disable_progress_bar()
    made = Inputs.write(tmp_path_factory.mktemp("crossed"))
    with installed(made):
        yield made
    logging.enable_progress_bar()


def cheap(found: Axes) -> Axes:
    return {name: tuple(v for v in values if v not in COSTLY.get(name, ())) for name, values in found.items()}


def shown(row: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.items() if value != plain[name])


def check_all(rows: Sequence[Row], inputs: Inputs, folder: Path) -> Counter[str]:
    """Check every row, and report all that fail, each reduced to the values without which it does not fail."""
    plain, failed, counts = plainest(axes()), dict[str, str](), Counter[str]()
    for row in rows:
        outcome = attempt(row, inputs, folder)
        if outcome.startswith("failed") and outcome not in failed.values():
            row = reduced(row, plain, inputs, folder) if REDUCE and not failed else row
            failed[shown(row, plain)] = outcome
            print(f"{outcome}\n    {shown(row, plain)}", flush=True)
        counts[outcome.partition(":")[0]] += 1
    print(f"\n{dict(counts)}")
    assert not failed, "\n".join(f"{which}\n    {what}" for which, what in failed.items())
    return counts


def attempt(row: Mapping[str, Any], inputs: Inputs, folder: Path) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        return check(row, inputs, folder)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"failed: {type(error).__name__} in {last.name}, line {last.lineno}: {error!s:.400}"


def reduced(row: Row, plain: Mapping[str, Any], inputs: Inputs, folder: Path) -> Row:
    """The row with as many of the plainest values as leave it failing."""
    for name in row:
        simpler = {**row, name: plain[name]}
        if simpler != row and not refused_at_once(simpler) and attempt(simpler, inputs, folder).startswith("failed"):
            row = simpler
    return row


def test_every_key_of_a_recipe_is_crossed_or_stated():
    unknown = {key for key, choices in keys() if not choices and key not in STATED and key not in FURTHER}
    assert not unknown, "give each a second value in FURTHER, or write it into STATED"
    assert set(FURTHER) <= {key for key, _ in keys()}
    assert {name for name, values in axes().items() if len(set(values)) < 2} == set()
    modes = [settings for settings in PRIVACY.values() if isinstance(settings, dict)]
    assert {key for settings in modes for key in settings} == set(PrivacySection.model_fields)
    assert {key for settings in modes for key in settings.get("examples", ())} == set(
        ExamplePrivacySection.model_fields
    )
    assert {name for rule in (*RULES, *LATER) for name in rule.axes} <= set(axes())


@pytest.mark.parametrize(("number", "least"), [(QUICK, 0.55), pytest.param(MORE, 0.85, marks=pytest.mark.slow)])
def test_most_pairs_of_features_go_all_the_way(inputs: Inputs, tmp_path: Path, number: int, least: float):
    """The rows that contain most pairs; the others add few each."""
    rows, share = most_covering(covering(cheap(axes()), 2, refused_at_once), 2, number)
    counts = check_all(rows, inputs, tmp_path / "row")
    print(f"{share:.1%} of the pairs")
    assert counts == {"went through": number}
    assert share > least


def test_every_refusal_has_the_reason_that_was_predicted(inputs: Inputs, tmp_path: Path):
    """For every rule rows of which it is the only one that applies, as far as there are any, and rows drawn freely."""
    rows = [row for rule in RULES for row in only(rule)]
    rows += covering(cheap({name: axes()[name] for name in SEAMS[:5]}), 2, lambda row: False)
    plain = plainest(axes())
    refused = [row for made in rows if refused_at_once(row := {**plain, **made})]
    counts = check_all(refused, inputs, tmp_path / "row")
    assert counts == {"refused": len(refused)}
    assert len(refused) > len(RULES)


OWN_MODELS = [name for name in axes()["method"] if can(name).personal]
"""The methods whose clients have models of their own, plug-ins too."""


@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name == "local-only" else pytest.mark.slow) for name in OWN_MODELS]
)
def test_clients_of_every_tier_validate_their_own_models(inputs: Inputs, tmp_path: Path, method: str, tiers: str):
    """A triple, which pairs need not contain: they were asked with the largest tier's experts, blocks and top_k."""
    row = {**plainest(axes()), "method": method, "tiers": tiers, "data.validation": 0.2}
    check_all([row], inputs, tmp_path / "row")


HELPS: tuple[dict[str, Any], ...] = (
    {},
    {"adapter.residents": "balanced", "adapter.balance": "switch", "data.labels": "declared"},
    {"adapter.residents": "balanced", "adapter.balance": "switch"},
    {"task": "causal-lm", "head": "absent"},
    {"task": "regression"},
    {"task": "preference", "head": "absent"},
)
"""Values next to which a single reason can be the only one."""


def only(rule: Rule) -> list[Row]:
    """Up to three rows for which this is the only reason."""
    found: list[Row] = []
    for values in product(*(axes()[name] for name in rule.axes)):
        own = dict(zip(rule.axes, values, strict=True))
        if rule.applies(*values):
            rows = [{**plainest(axes()), **helped, **own} for helped in HELPS]
            found += [row for row in rows if set(reasons(RULES, row)) == {rule.words}][:1]
        if len(found) == 3:
            break
    return found


def test_a_covering_array_covers():
    found = {"a": (1, 2, 3), "b": ("x", "y"), "c": (True, False), "d": (0, 1, 2, 3)}

    def excluded(row: Mapping[str, Any]) -> bool:
        return row.get("a") == 3 and row.get("b") == "x"

    for strength in (2, 3):
        rows = covering(found, strength, excluded)
        assert not any(map(excluded, rows))
        covered = {group for row in rows for group in combinations(row.items(), strength)}
        possible = {group for group in groups(found, strength) if not excluded(dict(group))}
        assert covered == possible
        assert len(rows) <= {2: 16, 3: 30}[strength]
