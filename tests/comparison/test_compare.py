"""Comparisons: their statistics on numbers worked by hand, and small grids on the tiny backbone."""

import dataclasses
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from fftmoe.comparison.cells import Variant, make_grid, partition_section
from fftmoe.comparison.page import comparison_page
from fftmoe.comparison.run import compare
from fftmoe.comparison.statistics import (
    CellResult,
    Comparison,
    Estimate,
    cost_to_target,
    curve,
    estimate,
    over_grid,
    paired_differences,
    retained,
    t_quantile,
    target_value,
)
from fftmoe.comparison.tables import failures, metric_table, robustness_table, tables, target_table, with_interval
from fftmoe.comparison.workers import run_jobs
from fftmoe.config import HeadSection, Recipe, apply_override, parse_recipe
from fftmoe.errors import InputError, RunError
from fftmoe.report.metric import Metric
from fftmoe.report.progress import Progress
from shared_fixtures import Cli, Outcome

ACCURACY, PERPLEXITY = Metric("accuracy"), Metric("perplexity")

# ---- statistics -----------------------------------------------------------------------------------------------------


def head_of(recipe: Recipe) -> HeadSection:
    assert recipe.head is not None
    return recipe.head


def cell(variant: str, partition: str, seed: int, accuracy: float | None, **more: Any) -> CellResult:
    """Finished with this accuracy after rounds 0, 1, 2, the first two given as `early`; failed when None."""
    method, _, head = variant.partition("+")
    if accuracy is None:
        return CellResult(variant, method, head, partition, seed, "failed", reason="out of luck")
    rows = [
        {"round": t, "accuracy": a, "bytes_up": 100 * t, "bytes_down": 200 * t, "client_seconds": 10.0 * t + seed}
        for t, a in enumerate((*more.pop("early", (0.1, 0.2)), accuracy))
    ]
    last = {key: rows[-1][key] for key in ("bytes_up", "bytes_down", "client_seconds")}
    summary = {
        "accuracy": accuracy,
        "client_accuracy": {"mean": accuracy, "worst_decile": accuracy / 2},
        **last,
        **more,
    }
    return CellResult(variant, method, head, partition, seed, "done", summary, rows)


GRID = (
    cell("fft-moe+h", "iid", 0, 0.8),
    cell("fedit+h", "iid", 0, 0.9),
    cell("fft-moe+h", "shards:1", 0, 0.7, early=(0.1, 0.5)),
    cell("fedit+h", "shards:1", 0, 0.5),
    cell("fft-moe+h", "iid", 1, 0.9),
    cell("fedit+h", "iid", 1, 0.8),
    cell("fft-moe+h", "shards:1", 1, 0.5, early=(0.1, 0.5)),
    cell("fedit+h", "shards:1", 1, 0.4),
)


def assert_estimate(found: Estimate | None, mean: float, half_width: float | None, n: int) -> None:
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(mean), n)
    assert found.half_width == (None if half_width is None else pytest.approx(half_width, abs=1e-4))


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (30, 2.0423), (1000, 1.9623)],
)
def test_quantiles_are_those_of_printed_tables(degrees: int, quantile: float):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1e-4)


def test_an_interval_is_students():
    # 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, so 4.3027 * sqrt(7 / 3).
    assert_estimate(estimate([1.0, 2.0, 6.0]), 3.0, 4.3027 * math.sqrt(7 / 3), 3)
    assert_estimate(estimate([0.25]), 0.25, None, 1)
    assert estimate([]) is None


def test_intervals_are_for_people():
    assert with_interval(Estimate(0.9123, 0.0042, 3)) == "0.912 ±.004"
    assert with_interval(Estimate(0.9123, None, 1)) == "0.912"
    assert with_interval(Estimate(-0.01, 1.25, 2), "+.3f") == "-0.010 ±1.250"
    assert with_interval(None) == "–"


def test_a_mean_over_partitions_takes_whole_seeds():
    # Seed 0: (0.8 + 0.7) / 2; seed 1: (0.9 + 0.5) / 2.
    # They lie 0.05 apart, so s / sqrt(2) = 0.025.
    assert_estimate(over_grid(GRID, "fft-moe+h", "accuracy"), 0.725, 12.7062 * 0.025, 2)
    worst = over_grid(GRID, "fft-moe+h", "client_accuracy", "worst_decile")  # half the accuracy, in every cell
    assert_estimate(worst, 0.3625, 12.7062 * 0.0125, 2)
    # Seed 1 fails where it is hard, and its easy half is left out.
    partly = (*GRID[:6], cell("fft-moe+h", "shards:1", 1, None), GRID[7])
    assert_estimate(over_grid(partly, "fft-moe+h", "accuracy"), 0.75, None, 1)
    assert over_grid(GRID, "fft-moe+h", "personal_accuracy", "mean") is None


def test_what_is_kept_of_iid_accuracy():
    # 0.7 / 0.8 = 0.875 and 0.5 / 0.9.
    found = retained(GRID, "fft-moe+h")
    assert found is not None
    assert found.mean == pytest.approx((0.875 + 0.5 / 0.9) / 2)
    assert retained(GRID[:2], "fft-moe+h") is None  # nothing but IID
    assert retained(GRID[2:4], "fft-moe+h") is None  # no IID


def test_a_curve_is_the_mean_over_seeds_with_its_band():
    points = curve(GRID, "fft-moe+h", "iid")
    assert [point.round for point in points] == [0, 1, 2]
    last = points[-1]
    assert (last.value, last.low, last.high) == (pytest.approx(0.85), 0.8, 0.9)
    assert last.half_width == pytest.approx(12.7062 * 0.05)  # s / sqrt(2) of values 0.1 apart
    assert (last.bytes, last.seconds) == (600, 20.5)
    assert curve(GRID, "fedavg+h", "iid") == []


def test_a_curve_needs_every_seed_at_its_rounds():
    short = CellResult("a+h", "a", "h", "iid", 1, "done", {"accuracy": 0.5}, cell("a+h", "iid", 1, 0.5).rows[::2])
    assert [point.round for point in curve((cell("a+h", "iid", 0, 0.7), short), "a+h", "iid")] == [0, 2]


def test_the_target_is_fedits_final_accuracy_or_the_named_one():
    comparison = Comparison("x", GRID)
    target = target_value(comparison, "fft-moe+h", "shards:1")
    assert target == pytest.approx(0.45)
    cost = cost_to_target(curve(GRID, "fft-moe+h", "shards:1"), 0.45, ACCURACY)
    assert cost is not None
    assert (cost.round, cost.bytes, cost.seconds) == (1, 300, 10.5)  # 0.5 after round 1
    own = target_value(comparison, "fedit+h", "iid")
    assert own is not None
    reached = cost_to_target(curve(GRID, "fedit+h", "iid"), own, ACCURACY)
    assert reached is not None
    assert reached.round == 2  # fedit itself needs all rounds
    assert cost_to_target(curve(GRID, "fedit+h", "shards:1"), 0.9, ACCURACY) is None
    assert target_value(Comparison("x", GRID, 0.6), "fft-moe+h", "iid") == 0.6
    assert target_value(Comparison("x", (GRID[0],)), "fft-moe+h", "iid") is None
    # Another head's fedit sets no target.
    other = Comparison("x", (*GRID, cell("fft-moe+g", "iid", 0, 0.5)))
    assert target_value(other, "fft-moe+g", "iid") is None


def test_differences_are_taken_pair_by_pair():
    # 0.8 - 0.9, 0.7 - 0.5, 0.9 - 0.8, 0.5 - 0.4: mean 0.075; squares of deviations sum to
    # 0.175² + 0.125² + 0.025² + 0.025² = 0.0475.
    (found,) = paired_differences(GRID)
    assert (found.reference, found.other, found.wins) == ("fft-moe+h", "fedit+h", 3)
    assert_estimate(found.estimate, 0.075, 3.1824 * math.sqrt(0.0475 / 3) / 2, 4)
    (partly,) = paired_differences((*GRID[:7], cell("fedit+h", "shards:1", 1, None)))
    assert partly.estimate.n == 3


def test_differences_keep_to_the_head_where_they_can():
    cells = (
        cell("fft-moe+g", "iid", 0, 0.5),
        cell("fft-moe+h", "iid", 0, 0.8),
        cell("fedit+h", "iid", 0, 0.7),
        cell("fedit+f", "iid", 0, 0.4),
    )
    found = [(d.reference, d.other, d.estimate.mean) for d in paired_differences(cells)]
    assert found == [
        ("fft-moe+h", "fedit+h", pytest.approx(0.1)),
        ("fft-moe+g", "fedit+f", pytest.approx(0.1)),  # no fft-moe has the head f
    ]
    assert paired_differences(cells[2:]) == []


def test_centralized_is_shown_where_it_ran_alone():
    cells = (*GRID, cell("centralized+h", "iid", 0, 0.9), cell("centralized+h", "iid", 1, 0.95))
    table = metric_table(cells)
    assert table.rows[2] == ("centralized+h", "0.925 ±.318", "–", "–")
    assert len(table.notes) == 1  # no seed is missing
    others = metric_table(GRID)
    assert (table.header, table.rows[:2]) == (others.header, others.rows)
    assert robustness_table(cells).rows[2][:3] == ("centralized+h", "–", "–")
    # fedit's final accuracy on iid is 0.85.
    assert target_table(Comparison("x", cells)).rows[2] == ("centralized+h", "2", "–", "600 B", "20")
    fedit, centralized = paired_differences(cells)
    assert fedit == paired_differences(GRID)[0]
    # 0.8 - 0.9 and 0.9 - 0.95, both below 0.
    assert (centralized.other, centralized.estimate.n, centralized.wins) == ("centralized+h", 2, 0)
    assert centralized.estimate.mean == pytest.approx(-0.075)
    lacking = metric_table((*GRID, cell("centralized+h", "iid", 0, 0.9), cell("centralized+h", "iid", 1, None)))
    assert lacking.rows[2] == ("centralized+h", "0.900*", "–", "–")  # this seed did fail
    curves = comparison_page(Comparison("x", cells)).split("<h3>")[1:]
    assert ["</svg>centralized+h</li>" in drawn for drawn in curves] == [True, False]  # its line in the legend


def test_of_errors_less_is_better():
    """The same grid, its accuracies taken for perplexities: what was the best is the worst."""
    grid = tuple(as_perplexity(found) for found in GRID)
    kept = retained(grid, "fft-moe+h")
    assert kept is not None
    assert kept.mean == pytest.approx((0.8 / 0.7 + 0.9 / 0.5) / 2)  # less error under skew than without: above 1
    (found,) = paired_differences(grid)
    assert (found.estimate.mean, found.wins) == (paired_differences(GRID)[0].estimate.mean, 1)
    points = curve(grid, "fft-moe+h", "shards:1")  # 0.1, 0.5, then 0.7 and 0.5
    for target, reached in ((0.05, None), (0.1, 0), (0.3, 0)):
        cost = cost_to_target(points, target, PERPLEXITY)
        assert (None if cost is None else cost.round) == reached
    assert [table.title for table in tables(Comparison("x", grid))] == [
        "Perplexity",
        "Under skew, and what a run costs",
        "Rounds to the target",
        "Paired differences of perplexity",
    ]
    page = comparison_page(Comparison("x", grid))
    assert "fedit+h: lowest perplexity" in page
    assert "Perplexity by rounds and by bytes" in page
    assert "IID kept: own IID perplexity / mean over the other partitions" in page
    assert "below 0" in page
    assert "ccuracy" not in page


def as_perplexity(found: CellResult) -> CellResult:
    rows = [{"perplexity" if key == "accuracy" else key: value for key, value in row.items()} for row in found.rows]
    summary = {key.replace("accuracy", "perplexity"): value for key, value in found.summary.items()}
    return dataclasses.replace(found, metric="perplexity", summary=summary, rows=rows)


def test_cells_of_several_data_sets_pair_within_their_own():
    a, b = (
        [CellResult(**{**vars(c), "data": name, "partition": "iid"}) for c in GRID[:2]] for name in ("trec6", "hwu64")
    )
    (found,) = paired_differences((*a, *b))
    assert found.estimate.n == 2


def test_failed_cells_are_left_out_and_marked():
    partly = Comparison("x", (*GRID[:6], cell("fft-moe+h", "shards:1", 1, None), cell("fedit+h", "shards:1", 1, None)))
    table = metric_table(partly.cells)
    assert table.rows[0] == ("fft-moe+h", "0.850 ±.635", "0.700*", "0.750")
    assert "* some seeds failed" in table.notes[1]
    assert failures(partly) == ["failed: fft-moe+h, shards:1, seed 1; fedit+h, shards:1, seed 1: out of luck"]
    lost = metric_table((cell("a+h", "iid", 0, None), CellResult("b+h", "b", "h", "iid", 0, "not run")))
    assert lost.rows == (("a+h", "failed"), ("b+h", "–"))


def test_tables_show_only_what_there_is():
    titles = [table.title for table in tables(Comparison("x", GRID))]
    assert titles == [
        "Accuracy",
        "Under skew, and what a run costs",
        "Rounds to the target",
        "Paired differences of accuracy",
    ]
    alone = Comparison("x", (cell("fft-moe+h", "shards:1", 0, 0.7),))
    assert [table.title for table in tables(alone)] == titles[:2]
    assert robustness_table(alone.cells).header == ("", "worst decile", "up", "down", "client s")
    known = {"mean": 0.75, "worst_decile": 0.25, "global_mean": 0.625}
    personal = robustness_table((cell("a+h", "iid", 0, 0.5, personal_accuracy=known),))
    assert personal.header[3:6] == ("personal", "personal worst", "global there")
    assert personal.rows == (("a+h", "–", "0.250", "0.750", "0.250", "0.625", "200 B", "400 B", "20"),)
    assert target_table(Comparison("x", GRID)).rows[0] == ("fft-moe+h", "2", "1", "450 B", "16")
    assert target_table(Comparison("x", GRID, 0.88)).rows == (
        ("fft-moe+h", "–", "–", "–", "–"),
        ("fedit+h", "–", "–", "–", "–"),
    )


def test_the_page_loads_nothing_and_shows_failures():
    page = comparison_page(Comparison("<x>", (*GRID, cell("fft-moe+h", "iid", 2, None))))
    assert_self_contained(page)
    assert "&lt;x&gt;" in page
    assert "out of luck" in page
    assert page.count("<figure") == 4  # by rounds and by bytes, for each partition
    assert "No run has finished yet" in comparison_page(Comparison("x", (cell("a+h", "iid", 0, None),)))


def assert_self_contained(page: str) -> None:
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import""", page)
    assert "<script" not in page


# ---- cells ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def grid_values(recipe_values: dict[str, Any]) -> dict[str, Any]:
    """The tiny recipe, two seeds, two partitions, two heads."""
    section = {"heads": ["averaged", "one-vs-all"], "partitions": ["iid", "shards:1"], "seeds": 2}
    return {**recipe_values, "compare": section}


def test_all_cells_of_a_seed_come_before_the_next(grid_values: dict[str, Any]):
    grid = make_grid(grid_values, {})
    assert [cell.name for cell in grid.cells] == [
        f"fft-moe+{head}, {partition}, seed {seed}"
        for seed in (0, 1)
        for partition in ("iid", "shards:1")
        for head in ("averaged", "one-vs-all")
    ]
    first, last = grid.cells[0].recipe, grid.cells[-1].recipe
    assert (head_of(first).kind, first.seed, first.partition.kind, first.partition.num_clients) == (
        "averaged",
        0,
        "iid",
        7,
    )
    assert first.partition.alpha is None  # the recipe's own, of another kind, is gone
    assert (head_of(last).kind, last.seed, last.partition.shards_per_client) == ("one-vs-all", 1, 1)
    assert (first.trackers, first.evaluation.local_only, first.engine.workers) == ([], False, 1)
    assert grid.cells[-1].path == Path("shards-1/fft-moe+one-vs-all/seed-1")


def test_flags_win_over_the_section_and_overrides_apply_in_order(grid_values: dict[str, Any]):
    overrides = {
        "+averaged": {"federation.learning_rate": 0.1, "federation.batch_size": 2, "head.learning_rate": 0.3},
        "fft-moe": {"federation.learning_rate": 0.2, "federation.batch_size": 3},
        "fft-moe+averaged": {"federation.learning_rate": 0.3},
        "fft-moe+one-vs-all": {"budgets.small.top_k": 2},
    }
    values = {**grid_values, "compare": {**grid_values["compare"], "overrides": overrides}}
    flags = {"methods": ["fft-moe+averaged", "fft-moe+one-vs-all"], "partitions": ["dirichlet:2"], "seeds": [7]}
    averaged, one_vs_all = make_grid(values, flags, overrides={"federation.rounds": 1}).cells
    assert (averaged.seed, averaged.recipe.partition.alpha, averaged.recipe.federation.rounds) == (7, 2.0, 1)
    federation = averaged.recipe.federation
    assert (federation.learning_rate, federation.batch_size, head_of(averaged.recipe).learning_rate) == (0.3, 3, 0.3)
    assert one_vs_all.recipe.federation.learning_rate == 0.2
    assert [budget.top_k for budget in one_vs_all.recipe.budgets] == [2, 2]
    assert values["budgets"][0]["top_k"] == 1  # the caller's values are as they were
    won = make_grid(values, flags, overrides={"federation.learning_rate": 0.5, "head.kind": "one-vs-all"}).cells
    assert [cell.recipe.federation.learning_rate for cell in won] == [0.5, 0.5]
    assert [head_of(cell.recipe).kind for cell in won] == ["averaged", "one-vs-all"]  # a label says what was run


@pytest.mark.parametrize("name", ["quickstart", "banking77", "agnews"])
def test_a_shipped_recipe_can_be_compared_by_every_head_as_the_readme_says(name: str):
    flags = {
        "methods": ["fft-moe", "fedit", "hetlora"],
        "heads": ["averaged", "one-vs-all", "closed-form"],
        "partitions": ["iid", "dirichlet:0.1", "shards:1"],
    }
    assert len(make_grid(name, flags).cells) == 3 * 3 * 3 * 3


def test_a_closed_form_head_takes_its_features_from_the_section(grid_values: dict[str, Any]):
    overrides = {"+closed-form": {"head.features": "fourier"}, "fft-moe+closed-form": {"head.update": "frozen"}}
    values = {**grid_values, "compare": {"overrides": overrides}}
    flags = {"heads": ["closed-form", "averaged"], "partitions": ["iid"], "seeds": 1}
    own = {**flags, "methods": ["fft-moe", "fedit", "head-only+averaged"]}
    heads = {cell.variant: head_of(cell.recipe) for cell in make_grid(values, own).cells}
    assert {label: (head.features, head.update) for label, head in heads.items()} == {
        "fft-moe+closed-form": ("fourier", "frozen"),
        "fft-moe+averaged": ("linear", "recomputed"),
        "fedit+closed-form": ("fourier", "recomputed"),
        "fedit+averaged": ("linear", "recomputed"),
        "head-only+averaged": ("linear", "recomputed"),
    }


@pytest.mark.parametrize(
    ("partitions", "chosen"),
    [(["shards:1", "iid"], "iid"), (["shards:1", "dirichlet:1"], "shards:1"), (None, "dirichlet:1.0")],
)
def test_centralized_runs_once_per_seed(recipe_values: dict[str, Any], partitions: list[str] | None, chosen: str):
    flags = {"methods": ["fft-moe", "centralized"], "heads": ["averaged", "one-vs-all"], "partitions": partitions}
    cells = make_grid(recipe_values, {**flags, "seeds": 2}).cells
    assert [(c.variant, c.partition, c.seed) for c in cells if c.recipe.method == "centralized"] == [
        (f"centralized+{head}", chosen, seed) for seed in (0, 1) for head in ("averaged", "one-vs-all")
    ]
    others = [cell for cell in cells if cell.recipe.method == "fft-moe"]
    assert len(others) == 4 * len(partitions or [chosen])


@pytest.mark.parametrize("how", ["the recipe's", "overridden", "a variant's"])
def test_centralized_is_known_however_it_is_asked_for(recipe_values: dict[str, Any], how: str):
    values = {**recipe_values, "method": "centralized"} if how == "the recipe's" else recipe_values
    overrides = {"method": "centralized"} if how == "overridden" else None
    variants = [Variant("all", {"method": "centralized"})] if how == "a variant's" else None
    flags = {"partitions": ["shards:1", "iid"], "seeds": 1}
    (only,) = make_grid(values, flags, variants, overrides).cells
    assert (only.partition, only.recipe.method) == ("iid", "centralized")


def test_what_is_not_named_is_the_recipes(recipe_values: dict[str, Any]):
    cells = make_grid(recipe_values, {}).cells
    assert [cell.name for cell in cells] == [f"fft-moe+one-vs-all, dirichlet:1.0, seed {seed}" for seed in (0, 1, 2)]
    asked = make_grid(recipe_values, {}, overrides={"evaluation.local_only": True, "trackers": ["tensorboard"]})
    assert asked.cells[0].recipe.evaluation.local_only
    assert asked.cells[0].recipe.trackers == ["tensorboard"]


@pytest.mark.parametrize(
    ("text", "section"),
    [
        ("iid", {"kind": "iid", "num_clients": 7, "min_examples": 3}),
        ("dirichlet:0.1", {"kind": "dirichlet", "alpha": 0.1, "num_clients": 7, "min_examples": 3}),
        ("shards:2", {"kind": "shards", "shards_per_client": 2, "num_clients": 7, "min_examples": 3}),
        ("natural:author", {"kind": "natural", "by": "author", "min_examples": 3}),
        (
            "bernoulli-dirichlet:0.3:0.5",
            {
                "kind": "bernoulli-dirichlet",
                "alpha": 0.3,
                "holder_fraction": 0.5,
                "num_clients": 7,
                "min_examples": 3,
            },
        ),
    ],
)
def test_partitions_are_written_briefly(text: str, section: dict[str, Any]):
    base = {"kind": "dirichlet", "alpha": 1.0, "by": "x", "num_clients": 7, "min_examples": 3}
    assert partition_section(text, base) == section


def test_an_override_reaches_lists_and_makes_sections():
    values: dict[str, Any] = {"budgets": [{"name": "small", "top_k": 1}]}
    apply_override(values, "budgets.small.top_k", 2)
    apply_override(values, "budgets.0.experts", 3)
    apply_override(values, "engine.workers", 1)
    assert values == {"budgets": [{"name": "small", "top_k": 2, "experts": 3}], "engine": {"workers": 1}}
    for key in ("budgets.large.top_k", "engine.workers.x"):
        with pytest.raises(InputError, match="not a section"):
            apply_override(values, key, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "fft-mo"), ("for the cell fft-mo+one-vs-all", "method is 'fft-mo'")),
        (("--heads", "averagd"), ("head.kind is 'averagd'", "did you mean 'averaged'")),
        (("--methods", "fft-moe+best"), ("head.kind is 'best'",)),
        (("--partitions", "dirichlt:0.1"), ("'dirichlt' is not known", "did you mean 'dirichlet'")),
        (("--partitions", "dirichlet"), ("takes alpha", "write it like dirichlet:0.1")),
        (("--partitions", "shards:2:3"), ("takes shards_per_client", "shards:2")),
        (("--partitions", "iid:3"), ("takes no value",)),
        (("--partitions", "dirichlet:-1"), ("dirichlet:-1", "partition.alpha", "-1")),
        (("--partitions", "shards:few"), ("partition.shards_per_client", "'few'")),
        (("--partitions", "iid,iid"), ("iid, iid", "name each once")),
        (("--methods", "fft-moe,fft-moe"), ("are one", "name each once")),
        (("--methods", ""), ("nothing to compare", "at least one")),
        (("--seeds", "0"), ("nothing to compare",)),
        (("--seeds", ""), ("nothing to compare",)),
        (("--seeds", "some"), ("--seeds some", "3 or 0,1,2")),
        (("--seeds", "1,1"), ("are one",)),
        (("--workers", "many"), ("--workers many", "auto")),
        (("--workers", "0"), ("--workers 0",)),
        (("--target", "90"), ("target 90 is no accuracy", "at most 1")),
        (("--target", "-1"), ("compare.target", "-1")),
        (("--set", "federation.roundz=3"), ("federation.roundz", "did you mean 'rounds'")),
        (("--set", "federation.rounds"), ("--set", "section.key=value")),
        (("--set", "seed.x=3"), ("seed.x=3", "not a section")),
        (("--set", "seed=3"), ("seed=3", "--seeds 0,1,2")),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    cli: Cli, recipe_file: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
):
    assert_refused(cli("compare", recipe_file, "--output", tmp_path / "out", *arguments), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"seed": 3}, ("'compare.seed'", "did you mean 'seeds'")),
        ({"seeds": "three"}, ("compare.seeds", "'three'")),
        ({"overrides": {"fft-mo": {}}}, ("method 'fft-mo'", "did you mean 'fft-moe'")),
        ({"overrides": {"+closed-from": {}}}, ("head 'closed-from'", "did you mean 'closed-form'")),
        ({"overrides": {"fft-moe+avergaed": {}}}, ("head 'avergaed'", "did you mean 'averaged'")),
        ({"overrides": {"fft-moe+": {}}}, ("'fft-moe+'", "head ''", "closed-form")),
        ({"overrides": {"fft-moe": {"federation.roundz": 3}}}, ("fft-moe+one-vs-all, ", "did you mean 'rounds'")),
        ({"overrides": {"fft-moe": {"partition.num_clients": 5}}}, ("partition.num_clients", "for all")),
        (3, ("compare is 3", "section")),
    ],
)
def test_a_section_that_is_wrong_is_refused(
    cli: Cli, recipe_values: dict[str, Any], tmp_path: Path, section: Any, words: tuple[str, ...]
):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**recipe_values, "compare": section}))
    assert_refused(cli("compare", tmp_path / "r.yaml", "--output", tmp_path / "out"), *words)


def test_a_partition_by_clients_needs_their_number(recipe_values: dict[str, Any]):
    natural = {**recipe_values, "partition": {"kind": "natural", "by": "author"}}
    assert [cell.partition for cell in make_grid(natural, {"seeds": 1}).cells] == ["natural:author"]
    with pytest.raises(InputError, match=r"add partition\.num_clients"):
        make_grid(natural, {"partitions": ["iid"]})


def assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("fftmoe: ")
    assert outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


# ---- processes ------------------------------------------------------------------------------------------------------


def fake_run(recipe: Recipe, folder: Path) -> None:
    """Seed 1 takes its process along, 2 fails as foreseen, 3 as nobody foresaw."""
    if recipe.seed == 1:
        os._exit(9)
    if recipe.seed == 2:
        raise RunError("the loss became nan")
    if recipe.seed == 3:
        raise ZeroDivisionError("by zero")
    folder.mkdir()


def test_a_process_that_dies_stops_no_other(recipe_values: dict[str, Any], tmp_path: Path):
    jobs = [(parse_recipe({**recipe_values, "seed": seed}, ""), tmp_path / str(seed)) for seed in range(6)]
    ends = dict(run_jobs(jobs, fake_run, workers=2))
    assert sorted(ends) == list(range(6))
    assert "died (exit status 9)" in (ends[1] or "")
    assert ends[2] == "the loss became nan"
    assert (ends[3] or "").startswith("ZeroDivisionError: by zero\n\nTraceback")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "4", "5"]


def endless_run(recipe: Recipe, folder: Path) -> None:
    folder.mkdir()
    time.sleep(600)


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path):
    """Otherwise a comparison that is started again would share its folders with them."""
    main = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import test_compare as t\n"
        "list(t.run_jobs([(None, pathlib.Path(path)) for path in sys.argv[2:]], t.endless_run, workers=2))"
    )
    folders = [tmp_path / "0", tmp_path / "1"]
    command = [sys.executable, "-c", main, str(Path(__file__).parent), *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while not all(folder.exists() for folder in folders):
            assert time.monotonic() < until
            time.sleep(0.1)
        process.kill()
        process.communicate(timeout=30)  # the workers hold the pipe, so it closes with the last of them


# ---- whole comparisons ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid_file(grid_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "grid.yaml"
    path.write_text(yaml.safe_dump(grid_values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(cli: Cli, grid_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A comparison that the tests of this file share, run in this process."""
    folder = tmp_path_factory.mktemp("comparison") / "out"
    outcome = cli("compare", grid_file, "--output", folder, "--workers", 1, "--target", 0.2)
    assert outcome.status == 0, outcome.err
    return folder, outcome


def cells_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "comparison.json").read_text())["cells"]


def accuracies(folder: Path) -> dict[tuple[str, str, int], float]:
    return {(c["variant"], c["partition"], c["seed"]): c["summary"]["accuracy"] for c in cells_of(folder)}


def test_a_comparison_holds_every_cell(finished: tuple[Path, Outcome]):
    folder, _ = finished
    cells = cells_of(folder)
    assert [cell["status"] for cell in cells] == ["done"] * 8
    assert {(c["method"], c["head"]) for c in cells} == {("fft-moe", "averaged"), ("fft-moe", "one-vs-all")}
    for cell in cells:
        assert [row["round"] for row in cell["rows"]] == [0, 1, 2]
        assert cell["rows"][-1]["accuracy"] == cell["summary"]["accuracy"]
    left = sorted(path.name for path in (folder / "cells" / "iid" / "fft-moe+averaged" / "seed-0").iterdir())
    assert left == ["config.yaml", "metrics.jsonl", "report.html", "summary.json"]


def test_statistics_are_beside_the_cells(finished: tuple[Path, Outcome]):
    folder, _ = finished
    values = json.loads((folder / "comparison.json").read_text())
    row = values["variants"]["fft-moe+averaged"]
    mine = [
        a
        for (variant, partition, _), a in accuracies(folder).items()
        if (variant, partition) == ("fft-moe+averaged", "iid")
    ]
    assert row["by_partition"]["iid"]["mean"] == pytest.approx(sum(mine) / 2)
    assert row["to_target"]["iid"]["target"] == 0.2
    assert row["iid_retained"]["n"] == 2


def test_clients_and_cohorts_are_equal_across_variants(finished: tuple[Path, Outcome]):
    """What each variant sends down in round 1 differs by the head alone, so the same clients were asked."""
    folder, _ = finished
    sent = {}
    for cell in cells_of(folder):
        sent.setdefault((cell["partition"], cell["seed"]), set()).add(cell["rows"][1]["bytes_down"])
    assert all(len(sizes) == 1 for sizes in sent.values())


def test_the_outcome_is_printed_and_drawn(finished: tuple[Path, Outcome]):
    folder, outcome = finished
    for words in (
        "8 cells (2 variants × 2 partitions × 2 seeds)",
        "[8/8, ",
        "IID kept",
        "target accuracy: 0.2; reached",
    ):
        assert words in outcome.out
    assert re.search(r"fft-moe\+one-vs-all +0\.\d{3} ±\d?\.\d{3}", outcome.out)
    page = (folder / "comparison.html").read_text()
    assert_self_contained(page)
    assert page.count("<figure") == 4


def test_a_finished_comparison_runs_the_missing_cell_alone(finished: tuple[Path, Outcome], cli: Cli, grid_file: Path):
    folder, _ = finished
    before = accuracies(folder)
    summaries = {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    gone = folder / "cells" / "shards-1" / "fft-moe+averaged" / "seed-1" / "summary.json"
    gone.unlink()  # as a run that was cut off
    outcome = cli("compare", grid_file, "--output", folder, "--workers", 1, "--target", 0.2)
    assert outcome.status == 0, outcome.err
    assert "7 of them finished already" in outcome.out
    assert [line for line in outcome.out.splitlines() if line.startswith("[")] == [
        line for line in outcome.out.splitlines() if line.startswith("[1/1, ")
    ]
    changed = {path for path, time in summaries.items() if path.stat().st_mtime_ns != time}
    assert changed == {gone}
    assert accuracies(folder) == before


def test_two_worker_processes_give_the_same_figures(finished: tuple[Path, Outcome], grid_file: Path, tmp_path: Path):
    compare(grid_file, tmp_path / "out", seeds=1, workers=2)
    first = {key: accuracy for key, accuracy in accuracies(finished[0]).items() if key[2] == 0}
    assert accuracies(tmp_path / "out") == first


def test_another_recipe_needs_another_folder(finished: tuple[Path, Outcome], cli: Cli, grid_file: Path):
    folder, _ = finished
    outcome = cli("compare", grid_file, "--output", folder, "--set", "budgets.large.top_k=1")
    assert_refused(outcome, "fft-moe+averaged, iid, seed 0", "budgets.1.top_k=2", "this comparison has 1", "--output")


def test_a_folder_of_something_else_is_left_alone(cli: Cli, grid_file: Path, tmp_path: Path):
    (tmp_path / "config.yaml").write_text("mine")
    assert_refused(cli("compare", grid_file, "--output", tmp_path), "another run", "--output")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.fixture(scope="module")
def short(recipe_values: dict[str, Any]) -> Callable[..., Comparison]:
    """One round on one partition: a plain variant, and one with the learning rate that is given."""
    values = {**recipe_values, "federation": {**recipe_values["federation"], "rounds": 1}}

    def call(output: Path, rate: float = 1e30, **more: Any) -> Comparison:
        variants = [
            Variant("wild", {"federation.learning_rate": rate}),
            Variant("plain", {"federation.aggregation": "fedavg"}),
        ]
        return compare(values, output, variants=variants, seeds=1, **more)

    return call


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_cell_that_fails_stops_no_other_and_is_tried_again(short: Callable, tmp_path: Path, workers: int):
    folder = tmp_path / "out"
    first = short(folder, workers=workers)
    assert [(cell.variant, cell.status) for cell in first.cells] == [("wild", "failed"), ("plain", "done")]
    assert "the loss became" in first.cells[0].reason
    assert (folder / "cells" / "dirichlet-1.0" / "wild" / "seed-0" / "failed.txt").read_text().strip() == first.cells[
        0
    ].reason
    again = short(folder, rate=0.01, workers=1)
    assert [cell.status for cell in again.cells] == ["done", "done"]
    assert not list(folder.rglob("failed.txt"))
    assert again.failed == ()


def test_a_failed_cell_ends_the_command_with_1(cli: Cli, recipe_values: dict[str, Any], tmp_path: Path):
    section = {"seeds": 1, "heads": ["averaged", "one-vs-all"]}
    section["overrides"] = {"fft-moe+averaged": {"federation.learning_rate": 1e30}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**recipe_values, "compare": section}))
    outcome = cli("compare", tmp_path / "r.yaml", "--output", tmp_path / "out", "--workers", 1)
    assert outcome.status == 1
    assert outcome.err == "fftmoe: 1 of 2 cells failed, for the reasons above; the same command tries them again\n"
    assert re.search(r"fft-moe\+averaged +failed", outcome.out)
    assert re.search(r"fft-moe\+one-vs-all +0\.\d{3}", outcome.out)
    assert "failed: fft-moe+averaged, dirichlet:1.0, seed 0: client" in outcome.out
    assert (tmp_path / "out" / "comparison.html").is_file()


def test_no_cell_starts_after_the_deadline(short: Callable, tmp_path: Path):
    for workers in (1, 2):
        late = short(tmp_path / str(workers), deadline=time.monotonic(), workers=workers)
        assert [cell.status for cell in late.cells] == ["not run", "not run"]
    assert short(tmp_path / "1", rate=0.01, keep=True).failed == ()
    kept = {path.name for path in (tmp_path / "1" / "cells" / "dirichlet-1.0" / "plain" / "seed-0").iterdir()}
    assert {"adapter", "checkpoints", "clients"} <= kept


def test_a_comparison_says_that_centralized_runs_once(recipe_values: dict[str, Any], tmp_path: Path):
    said = io.StringIO()
    progress = Progress(Console(file=said, width=500))
    rows = {"methods": ["fft-moe", "centralized"], "partitions": ["shards:1", "iid"], "seeds": 1}
    compare(recipe_values, tmp_path / "out", **rows, deadline=time.monotonic(), progress=progress)
    assert said.getvalue() == "3 cells (2 variants × 2 partitions × 1 seed; centralized on one partition)\n"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_comparison_ends_with_130_and_keeps_what_is_finished(
    grid_file: Path, tmp_path: Path, workers: int
):
    main = "import signal, fftmoe.cli.app as c; signal.signal(signal.SIGINT, signal.default_int_handler); c.main()"
    flags = ["--workers", str(workers), "--output", str(tmp_path / "out"), "--seeds", "9"]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", main, "compare", str(grid_file), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[1/36"):
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.startswith("fftmoe: interrupted")
    assert "the same command goes on" in err
    assert err.count("\n") == 1, err  # nobody tells of leaked semaphores
    assert len(list((tmp_path / "out").rglob("summary.json"))) >= 1
    assert not (tmp_path / "out" / "comparison.json").exists()
