"""A run in which nothing was learned is no success, and a result that is worse than its start is said first."""

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fftmoe.errors import RunError
from fftmoe.records import ServerState
from fftmoe.report.metric import LOWER_IS_BETTER
from fftmoe.report.verdict import ended_badly, sentence, verdict
from fftmoe.rounds.outcome import check_learned
from finished import Finished
from run_fixtures import RunLanguage, RunTiny
from shared_fixtures import Cli, assert_refused

START = ServerState(round=0, tensors={"adapter": torch.zeros(3), "head.weight": torch.ones(2)})
MEASURED = {"round": 0}
VOID = {"round": 1, "void": True, "faults": [{"client_id": 7, "kind": "late", "reason": "slow"}]}
TRAINED = [MEASURED, {"round": 1}]


def _learned(**tensors: torch.Tensor) -> ServerState:
    return replace(START, round=1, tensors=START.tensors | tensors)


def test_a_run_that_changed_a_trained_tensor_has_learned():
    check_learned([MEASURED, {"round": 1}], START, _learned(adapter=torch.ones(3)), ["adapter"])
    check_learned([MEASURED, VOID, {"round": 2}], START, _learned(adapter=torch.ones(3)), ["adapter"])
    check_learned([MEASURED], START, START, ["adapter"])  # it has no rounds
    check_learned([MEASURED, {"round": 1}], START, START, [])  # its clients keep what they train


@pytest.mark.parametrize(
    ("rows", "final", "words"),
    [
        ([MEASURED, VOID], START, "no round of 1 had enough valid updates .*client 7 late: slow"),
        (TRAINED, _learned(**{"head.weight": torch.zeros(2)}), "after 1 round each of 1 trained tensor is as it was"),
        (TRAINED, _learned(adapter=torch.tensor([0.0, math.nan, 1.0])), "not finite in 1 of its 2 tensors .*adapter"),
        (TRAINED, _learned(adapter=torch.tensor([0.0, math.inf, 1.0])), "not finite in 1 of its 2 tensors .*adapter"),
    ],
    ids=["void", "unchanged", "nan", "infinite"],
)
def test_other_runs_are_refused_with_the_reason(rows: Any, final: ServerState, words: str):
    with pytest.raises(RunError, match=words):
        check_learned(rows, START, final, ["adapter"])


@pytest.mark.parametrize(
    ("rates", "words"),
    [((1e-60, 1e-60), "nothing was learned: after 2 rounds"), ((2e-3, 1e30), "nothing was learned|broken|diverged")],
    ids=["too small", "too large"],
)
def test_a_run_that_learns_nothing_ends_with_1_and_is_no_finished_run(
    cli: Cli, recipe_file: Path, tmp_path: Path, rates: tuple[float, float], words: str
):
    settings = ("head.kind=averaged", f"federation.learning_rate={rates[0]}", f"head.learning_rate={rates[1]}")
    flags = [flag for setting in settings for flag in ("--set", setting)]
    outcome = cli("run", recipe_file, *flags, "--output", tmp_path / "run")
    assert outcome.status == 1, outcome.err
    assert re.search(words, outcome.err)
    assert "learning_rate" in outcome.err
    assert not (tmp_path / "run" / "summary.json").exists()
    assert_refused(cli("predict", tmp_path / "run", "a text"), "did not finish")


# The verdict


def _values(metric: str, value: float, half_width: float) -> dict[str, Any]:
    return {"metric": metric, metric: value, f"{metric}_interval": [value - half_width, value + half_width]}


@pytest.mark.parametrize(("metric", "end"), [*itertools.product(("accuracy", "perplexity"), (0.2, 0.45, 0.55, 0.8))])
def test_the_verdict_depends_on_the_direction_of_the_metric_and_on_its_interval(metric: str, end: float):
    """Both half widths are .1, so that differences up to .1414 are chance."""
    found = verdict([{"round": 0, **_values(metric, 0.5, 0.1)}], _values(metric, end, 0.1))["verdict"]
    better = (end > 0.5) != (metric in LOWER_IS_BETTER)
    assert found["result"] == ("level" if abs(end - 0.5) < 0.1 else "better" if better else "worse")
    assert (found["gain"] > 0) == better
    assert found["margin"] == pytest.approx(math.sqrt(0.02))


@pytest.mark.parametrize("spoil", [{"accuracy": None}, {"accuracy": math.nan}, {"accuracy_interval": [0.1, math.nan]}])
def test_there_is_no_verdict_without_numbers(spoil: dict[str, Any]):
    good = _values("accuracy", 0.5, 0.1)
    assert verdict([good], good)["verdict"]["result"] == "level"
    for rows, summary in (([good | spoil], good), ([good], good | spoil), ([], good)):
        assert verdict(rows, summary) == {}
    assert sentence({"metric": "accuracy"}) is None


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([2.0, 3.0, 19.9], False),
        ([2.0, 3.0, 20.1], True),
        ([2.0, math.nan], True),
        ([2.0, math.inf], True),
        ([2.0, 99.0, 2.0], False),  # it came back
        ([0.001, 0.9], False),
        ([0.001, 1.1], True),
        ([0.0, 2.0], False),  # nobody trained in the first round
        ([None, 2.0, 21.0], True),
        ([1e6, 1.1e6], True),  # it grew within the first round
        ([90.0, 800.0], False),
        ([], False),
    ],
)
def test_a_loss_far_above_the_first_is_noticed_whatever_the_metric_says(losses: list[Any], diverged: bool):
    good = _values("accuracy", 0.5, 0.1)
    rows = [{"round": 0, **good}, *({"round": i, "train_loss": loss} for i, loss in enumerate(losses, 1))]
    for summary, words in ((good, "accuracy 0.500 after the last round"), ({"metric": "accuracy"}, "round; start a")):
        found = verdict(rows, summary)
        assert (found.get("verdict", {}).get("result") == "diverged") == ended_badly(found) == diverged
        said = sentence({**summary, **found})
        assert not diverged or (said and said.startswith("training diverged: its loss is ") and words in said)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
    # The model that is kept is that of before the first round, because no round was any good.
    assert ended_badly(verdict(rows, {**good, "best_round": 0})) == diverged
    assert losses[:1] != [2.0] or not ended_badly(verdict(rows, {**good, "best_round": 1}))
    assert not ended_badly(verdict([{"round": 1, "train_loss": 1e9}], {"metric": "mean_absolute_error"}))


@pytest.mark.parametrize(("end", "diverged"), [(5.0, True), (2.0, False)])
def test_a_loss_of_numbers_may_be_of_any_size_only_while_the_numbers_get_better(end: float, diverged: bool):
    """The first round already had a loss of 1e12, the others were void, and the run said that it changed little."""
    name = "mean_absolute_error"
    rows = [{"round": 0, **_values(name, 5.0, 0.1)}, {"round": 1, "train_loss": 1e12}, {"round": 2, "void": True}]
    found = verdict(rows, {**_values(name, end, 0.1), "best_round": 0, "last": {}})
    assert (found["verdict"]["result"] == "diverged") == diverged


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_numbers_are_learned_with_all_defaults(cli: Cli, recipe_values: dict[str, Any], tmp_path: Path, size: float):
    """A rate for labels let the squared error grow to 1e12 in the first round, whatever the unit of the targets."""
    for split, rows in (("train", 113), ("test", 41)):
        lines = [f"{'red ' * (n % 5)}blue,{size * (n % 5)},author-{n % 4}" for n in range(rows)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,length,author", *lines]) + "\n")
    values = {"data": {"source": str(tmp_path), "targets": ["length"]}, "federation": {"rounds": 3}, "trackers": []}
    values |= {"backbone": {**recipe_values["backbone"], "task": "regression"}, "evaluation": {"baselines": "off"}}
    (tmp_path / "numbers.yaml").write_text(yaml.safe_dump(values))
    outcome = cli("run", tmp_path / "numbers.yaml", "--output", tmp_path / "run")
    assert (outcome.status, outcome.err) == (0, "")
    run = Finished(tmp_path / "run", outcome)
    assert max(row["train_loss"] for row in run.rows if "train_loss" in row) < 3
    assert not ended_badly(run.summary)


def test_a_run_that_diverges_says_so_first_everywhere(run_tiny: RunTiny):
    """Logits may be as far from the labels as they like, and the accuracy still be that of a good model."""
    run = run_tiny("head={kind: averaged, learning_rate: 1000000.0}", "federation.learning_rate=0.001")
    found = run.summary["verdict"]
    assert found["result"] == "diverged"
    assert found["last_loss"] == run.rows[-1]["train_loss"] > 1e6
    assert found["start"] == found["end"]
    said = "training diverged: its loss is"
    assert said in result_lines(run)[0] + result_lines(run)[1]
    page = (run.folder / "report.html").read_text()
    assert 0 < page.index(said.capitalize()) < page.index("gain over local training")


def result_lines(run: Finished) -> list[str]:
    """What the terminal shows after the line of the last round."""
    lines = [line for line in run.outcome.out.splitlines() if line.strip()]
    return lines[max(place for place, line in enumerate(lines) if line.startswith("round")) + 1 :]


def test_a_result_that_is_worse_than_its_start_is_said_first_everywhere(run_tiny: RunTiny):
    """A learning rate of 1,000 destroys features for which the first closed-form head was right on every test row."""
    better = run_tiny("head={kind: averaged, learning_rate: 0.1}", "federation.learning_rate=0.001")
    worse = run_tiny("head={kind: closed-form}", "federation.learning_rate=1000.0")
    assert better.summary["verdict"]["result"] == "better"
    assert "training made the model better: accuracy" in result_lines(better)[0] + result_lines(better)[1]
    found = worse.summary["verdict"]
    assert found["result"] == "worse"
    assert found["end"] == worse.summary["accuracy"] < found["start"] == worse.rows[0]["accuracy"]
    said = "training made the model worse: accuracy"
    assert said in result_lines(worse)[0] + result_lines(worse)[1]  # before it a line on local training
    page = (worse.folder / "report.html").read_text()
    assert 0 < page.index(said.capitalize()) < page.index("gain over local training")
    assert "Training made" not in (better.folder / "report.html").read_text()


def test_clients_without_a_test_row_of_their_kind_have_no_value_and_the_run_ends(
    run_language: RunLanguage, language_values: dict[str, Any], tmp_path: Path
):
    """Test rows of an author that no training client is: neither personal nor local measures are known."""
    source = Path(language_values["data"]["source"])
    for split in ("train", "test"):
        header, *rows = (source / f"{split}.csv").read_text().splitlines()
        own = [row for row in rows if row.endswith("author-2") == (split == "test")]
        (tmp_path / f"{split}.csv").write_text("\n".join([header, *own]) + "\n")
    changes = {"data__source": str(tmp_path), "partition": {"kind": "natural", "by": "author"}}
    changes["federation__clients_per_round"] = 2
    personal = run_language(**changes, evaluation={"baselines": "off", "personal": True, "local_only": True}).summary
    assert personal["perplexity"] > 1
    assert not [
        key for key in personal if key.startswith(("reweighted_perplexity", "personal_", "reweighted_local_only"))
    ]
    assert personal["local_only_perplexity"]["mean"] > 1
    local = run_language(**changes, method="local-only").summary
    assert local["perplexity"] > 1
    assert "reweighted_perplexity" not in local
