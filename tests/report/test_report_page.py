"""The page of a run: every kind of run has its sections, nothing is unescaped, and nothing is loaded."""

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fftmoe.cli.terminal import print_outcome
from fftmoe.comparison.statistics import CellResult, Comparison
from fftmoe.config import complete_recipe
from fftmoe.report.block_maps import usage_by_block
from fftmoe.report.marks import ticks
from fftmoe.report.metric import EXPLAINED
from fftmoe.report.record import RunRecord
from fftmoe.report.run_figures import effective_number
from fftmoe.store.adapter import LABELS
from reports import comparison_page, config, external_loads, report_page, rows, structure_of, summary
from shared_fixtures import Cli

SECTIONS = ["Learning curve", "Clients", "Experts", "Budgets and costs", "Where the time went", "Faults"]
LAST = ["Reproduce this run", "The resolved recipe"]


def test_a_finished_run_has_all_sections_and_its_outcome_first():
    found = structure_of(report_page(config(), rows(), summary()))
    assert found.headings == ["tiny", *SECTIONS, *LAST]
    before_the_curves = found.text[: found.text.index("Learning curve")]
    for words in ("0.750", "on all test data", "0.125", "3.0 MiB", "9.0 MiB", "18 s", "dirichlet, alpha 0.1"):
        assert words in before_the_curves
    for words in ("1.0 MiB → 512 KiB", "3.00", "5.0 MiB", "512 MiB at their peak", "fftmoe run config.yaml", "3.11.2"):
        assert words in found.text
    assert "was expected" not in found.text
    expected = structure_of(report_page(config(), rows(), summary(expected_rss_mib=448.0)))
    assert "512 MiB at their peak; 448 MiB was expected" in expected.text
    captions = [a["aria-label"] for tag, a in found.elements if tag == "svg" and a.get("role") == "img"]
    # Curve, loss, clients, effective experts, load and use of two blocks each, bytes, seconds.
    assert len(captions) == 10


def test_the_gain_over_local_training_is_shown():
    local: dict[str, Any] = {"local_only_accuracy": {"mean": 0.5, "worst_decile": 0.25, "num_clients": 3}}
    page = report_page(config(), rows(), summary(**local))
    assert "+0.250gain over local training, on all test data (0.500 on average)" in structure_of(page).text
    assert "local training, mean 0.5." in page  # in the description of the curve


@pytest.mark.parametrize(("mean", "gain"), [(14.0, "+4.000"), (8.0, "-2.000")])
def test_a_gain_is_positive_where_a_smaller_value_is_better(mean: float, gain: str):
    local: dict[str, Any] = {"local_only_perplexity": {"mean": mean, "worst_decile": 20.0, "num_clients": 3}}
    recorded = summary("perplexity", **{"perplexity": 10.0, **local})
    found = structure_of(report_page(config(), rows("perplexity", (90.5, None, 31.25, 10.0)), recorded))
    assert f"{gain}gain over local training" in found.text


def test_a_language_model_is_judged_by_its_own_metric():
    values = (90.5, None, 31.25, 12.5)
    recorded = {
        "perplexity": 12.5,
        "perplexity_by_tier": {"small": 14.0},
        "client_perplexity": {"mean": 13, "worst_decile": 20},
    }
    found = structure_of(report_page(config(), rows("perplexity", values), {**summary("perplexity"), **recorded}))
    assert "12.5perplexity, on all test data" in found.text
    assert "Perplexity of every client" in found.text
    assert "ccuracy" not in found.text


def test_a_run_that_answers_numbers_says_how_much_it_explains(tmp_path: Path):
    """The mean of the targets is what any prediction of numbers must beat."""
    recorded = {**summary("mean_absolute_error"), "mean_absolute_error": 7.25, "r2": 0.125}
    recorded["mean_absolute_error_by_tier"] = {"small": 8.0}
    found = structure_of(report_page(config(), rows("mean_absolute_error", (9.0, None, 8.0, 7.25)), recorded))
    assert f"R² 0.125{EXPLAINED}" in found.text
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / LABELS).write_text('{"labels": []}')
    console = Console(record=True, width=200, file=io.StringIO())
    print_outcome(console, recorded, tmp_path, complete_recipe(config(), "numbers", may_read=False)[0])
    assert f"  R² 0.125, {EXPLAINED}" in console.export_text().splitlines()
    assert "R²" not in structure_of(report_page(config(), rows(), summary())).text


def test_a_private_run_says_what_the_server_does_not_know():
    private = [{k: v for k, v in r.items() if k not in ("load", "experts", "train_loss")} for r in rows()]
    private = [{**row, "epsilon": 0.5 * row["round"]} if row["round"] else row for row in private]
    spent = {"epsilon": 1.5, "delta": 1e-3, "stopped_early": True, "noise_multiplier": 1.1, "clip_norm": 0.5}
    recorded = summary(privacy={**spent, "sampling_rate": 0.2, "releases": 3})
    del recorded["clients"]
    recipe = config(privacy={"min_contributors": 3, "epsilon": 2.0, "delta": 1e-3})
    found = structure_of(report_page(recipe, private, recorded))
    assert "Privacy" in found.headings
    for words in (
        "not known to the server in private mode",
        "1.500 at delta 0.001",
        "ended early",
        "of single clients",
    ):
        assert words in found.text
    assert "ε 1.50" in found.text
    assert "Which client uses" not in found.text


def test_a_private_run_without_noise_says_so():
    found = structure_of(report_page(config(privacy={"min_contributors": 3}), rows(), summary(privacy={})))
    assert "sums over at least 3 clients, and no single update" in found.text


def test_a_robust_run_shows_its_settings_and_the_rejected_updates():
    recorded = rows()
    recorded[-1]["fault_counts"] = {"rejected": 2}
    recorded[-1]["faults"] = [{"client_id": 6, "kind": "rejected", "reason": "norm 9 is above 2"}]
    recipe = config(robustness={"aggregator": "trimmed-mean", "malicious_fraction": 0.2})
    found = structure_of(report_page(recipe, recorded, summary()))
    assert "Malicious clients" in found.headings
    for words in ("trimmed-mean", "updates rejected2", "2 rejected.", "round 36rejectednorm 9 is above 2"):
        assert words in found.text


def test_a_deployed_run_has_no_values_of_single_clients():
    recorded = {k: v for k, v in summary().items() if k not in ("clients", "client_accuracy")}
    assert "their data is elsewhere" in structure_of(report_page(config(), rows(), recorded)).text


def test_only_the_first_faults_are_listed_and_all_are_counted():
    recorded = rows()
    recorded[2]["faults"] = [{"client_id": c, "kind": "late", "reason": "slow"} for c in range(53)]
    recorded[3]["fault_counts"] = {"late": 53, "absent": 0}
    found = structure_of(report_page(config(), recorded, summary()))
    assert "53 late." in found.text
    assert "… and 3 more" in found.text


def test_an_unfinished_run_says_so():
    found = structure_of(report_page(config(), rows()[:3], None))
    assert "This run has not finished: it is after round 2 of 3." in found.text
    assert "0.500accuracy after round 2" in found.text
    structure_of(report_page(config(), [], None))  # before its first row


def test_a_run_of_another_method_has_no_experts():
    plain = [{k: v for k, v in row.items() if k not in ("load", "experts")} for row in rows()]
    found = structure_of(report_page(config(method="fedit"), plain, summary()))
    assert "Experts" not in found.headings


def test_alarms_are_at_the_top_of_the_page():
    fallen = rows(values=(0.75, None, 0.5, 0.25))
    fallen[0]["accuracy_interval"] = [0.7, 0.8]
    starving = [{**row, "round": t, "load": {"4": [0.001, 0.249, 0.25, 0.25, 0.25]}} for t, row in enumerate(fallen)]
    text = structure_of(report_page(config(), starving, summary(accuracy=0.25))).text
    alarm = "block 4: hardly any token went to expert 0 for 3 rounds."
    assert text.index(alarm) < text.index("0.250")
    assert text.count(alarm) == 2  # and in its section
    recovered = structure_of(report_page(config(), starving, summary(accuracy=0.7))).text
    assert recovered.count(alarm) == 1
    assert "Alarms: 1, from which the model has recovered" in recovered
    assert structure_of(report_page(config(), starving, None)).text.count(alarm) == 2  # the run goes on, and is worse
    better = [{**starving[-1], "round": 4, "accuracy": 0.75}]
    assert structure_of(report_page(config(), [*starving, *better], None)).text.count(alarm) == 1


def test_values_that_are_not_finite_do_not_break_a_page():
    nan = float("nan")
    diverged = [{**row, "train_loss": nan, "accuracy": nan} for row in rows()]
    structure_of(report_page(config(), diverged, summary(accuracy=nan, clients={"percentiles": [0.1] * 101})))


def test_the_most_uneven_blocks_are_shown_and_the_others_counted():
    many = [{**row, "load": {str(block): [0.05 * block, 0.5, 0.5] for block in range(9)}} for row in rows()]
    text = structure_of(report_page(config(), many, summary())).text
    assert text.count("Load of each expert, block") == 6
    assert "Load of each expert, block 5" in text
    assert "Load of each expert, block 6" not in text
    assert text.count("The 6 most uneven of 9 blocks are shown.") == 1


def test_a_comparison_has_its_outcome_first():
    cells = tuple(
        CellResult(
            f"{m}+h", m, "h", place, seed, "done", summary(accuracy=a - seed / 100, client_seconds=3.0), rows()[2:]
        )
        for m, a in (("fft-moe", 0.75), ("fedit", 0.5))
        for place in ("iid", "shards:1")
        for seed in range(3)
    )
    missing = CellResult("fedit+h", "fedit", "h", "iid", 3, "not run")
    found = structure_of(comparison_page(Comparison("two", (*cells, missing))))
    assert found.headings[:2] == ["two, compared", "Accuracy"]
    assert found.headings[-3:] == ["Accuracy by rounds and by bytes", "iid", "shards:1"]
    first = found.text[: found.text.index("Under skew")]
    for words in (
        "1 of 13 runs have not been run",
        "0.740 ±",
        "fft-moe+h: highest",
        "+0.250",
        "better in 6 of 6 pairs",
    ):
        assert words in first
    assert "fft-moe+h on IID data" in found.text
    assert "95 % interval" in found.text


def test_the_check_finds_a_page_that_is_not_well_formed():
    for wrong in (
        "<p><b>x</p></b>",
        "<p>",
        "</p>",
        '<img src="a.png">',
        "<svg role='img'></svg>",
        "<b onclick='x'></b>",
    ):
        with pytest.raises((AssertionError, KeyError)):
            structure_of(wrong)
    page = """<script src="https://x.org/a.js"></script><p style="background:url(https://x.org/b.png)">"""
    assert external_loads(page) == ["https://x.org/a.js", "https://x.org/b.png"]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_are_few_and_enclose_what_is_drawn(low: float, span: float):
    values = ticks(low, low + span)
    assert 2 <= len(values) <= 8
    assert values == sorted(set(values))
    slack = 1e-6 * (abs(low) + span + 1)
    assert values[0] <= low + slack
    assert values[-1] >= low + span - slack


# ---- the verb -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(cli: Cli, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "run"
    outcome = cli("run", recipe_file, "--output", path, "--set", "evaluation.local_only=false", "--set", "trackers=[]")
    assert outcome.status == 0, outcome.err
    return path


def test_a_real_run_has_every_figure(folder: Path):
    found = structure_of((folder / "report.html").read_text())
    assert found.headings == ["tiny", SECTIONS[0], "Labels", "Confusion matrix", *SECTIONS[1:], *LAST]
    captions = {a["aria-label"] for tag, a in found.elements if tag == "svg" and a.get("role") == "img"}
    assert len(captions) == 10
    assert sum("trained which of 5 experts" in str(caption) for caption in captions) == 2
    assert "Effective number of experts" in found.text


def test_the_report_command_writes_the_same_page_again(cli: Cli, folder: Path, tmp_path: Path):
    before, numbers = ((folder / name).read_bytes() for name in ("report.html", "report-figures.csv"))
    (folder / "report.html").unlink()
    (folder / "report-figures.csv").unlink()
    outcome = cli("report", folder)
    assert (outcome.status, outcome.out) == (0, f"page  {folder / 'report.html'}\n")
    assert (folder / "report.html").read_bytes() == before
    assert cli("report", folder, "--output", tmp_path / "other.html").status == 0
    assert (tmp_path / "other.html").read_bytes() == before
    assert (folder / "report-figures.csv").read_bytes() == numbers == (tmp_path / "other-figures.csv").read_bytes()


def test_the_report_command_shows_an_unfinished_run(cli: Cli, folder: Path, tmp_path: Path):
    going_on = tmp_path / "run"
    going_on.mkdir()
    (going_on / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (going_on / "metrics.jsonl").write_bytes(lines[0] + lines[1] + lines[2][:30])  # the last is being written
    assert cli("report", going_on).status == 0
    assert "after round 1 of 2" in (going_on / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (None, "", "is not a run folder"),
        ("summary.json", "{", "summary.json"),
        ("comparison.json", '{"cells": [{}]}', "it is not a comparison"),
    ],
)
def test_the_report_command_refuses_what_is_not_a_run(
    cli: Cli, folder: Path, tmp_path: Path, name: str | None, text: str, words: str
):
    spoilt = tmp_path / "run"
    spoilt.mkdir()
    if name is not None:
        for kept in ("config.yaml", "metrics.jsonl", "summary.json"):
            (spoilt / kept).write_bytes((folder / kept).read_bytes())
        (spoilt / name).write_text(text)
    outcome = cli("report", spoilt)
    assert outcome.status == 2
    assert words in outcome.err
    assert outcome.err.count("cannot make a page") <= 1  # the reason is given once
    assert not list(spoilt.glob("*.html"))


def test_the_report_command_does_not_overwrite_a_folder(cli: Cli, folder: Path, tmp_path: Path):
    outcome = cli("report", folder, "--output", tmp_path)
    assert outcome.status == 2
    assert "is a folder" in outcome.err


def rows_of_blocks(num_blocks: int) -> list[dict[str, Any]]:
    """The rows of a run that adapts many blocks; the load of block 0 is uneven at its end."""
    even, uneven = [0.2] * 5, [0.96, 0.01, 0.01, 0.01, 0.01]
    recorded = rows()
    for row in recorded[1:]:
        blocks = map(str, range(num_blocks))
        row["load"] = {block: uneven if block == "0" and row["round"] == 3 else even for block in blocks}
        row["experts"] = {c: {str(b): ["13", "11"] for b in range(num_blocks)} for c in ("1", "6")}
    return recorded


def test_the_experts_of_31_blocks_are_two_maps_and_not_a_figure_for_each():
    many, few = (structure_of(report_page(config(), rows_of_blocks(number), summary())) for number in (31, 2))
    for words in (
        "Effective number of experts, by block",
        "At the end the load of 1 of 31 blocks is uneven.",
        "How much of each block clients use",
        "The 6 most uneven of 31 blocks are shown.",
    ):
        assert words in many.text
        assert words not in few.text
    captions, of_few = (
        [str(a["aria-label"]) for tag, a in page.elements if tag == "svg" and a.get("role") == "img"]
        for page in (many, few)
    )
    # Of each client 2 of 5 experts are trained, in each of 31 blocks.
    assert any("all blocks together, 62 experts a client on average" in caption for caption in captions)
    assert any("at the end from 1.3 (block 0) to 5.0 of 5" in caption for caption in captions)
    assert len(captions) <= len(of_few) + 1 + 4 + 4


def test_every_block_and_round_of_a_map_is_in_the_numbers():
    recorded = RunRecord(config(), rows_of_blocks(31), summary())
    (found,) = usage_by_block(recorded)
    assert found.numbers is not None
    assert len(found.numbers.each) == 2 * 31
    overall = effective_number(recorded)
    assert overall is not None
    assert overall.numbers is not None
    assert len(overall.numbers.each) == 3 * 31
    assert usage_by_block(RunRecord(config(), rows_of_blocks(6), summary())) == []
