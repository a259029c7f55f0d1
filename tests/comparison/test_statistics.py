"""The statistics and tables of comparisons, on numbers worked by hand."""

import dataclasses
import io
import math

import pytest
from rich.console import Console

from comparisons import GRID, cell
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
from fftmoe.comparison.tables import (
    failures,
    metric_table,
    print_comparison,
    robustness_table,
    tables,
    target_table,
    with_interval,
)
from fftmoe.report.metric import Metric
from reports import comparison_page, structure_of

ACCURACY, PERPLEXITY = Metric("accuracy"), Metric("perplexity")


def assert_estimate(found: Estimate | None, mean: float, half_width: float | None, n: int) -> None:
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(mean), n)
    assert found.half_width == (None if half_width is None else pytest.approx(half_width, abs=1e-4))


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (30, 2.0423), (1000, 1.9623)],
)
def test_quantiles_equal_those_of_printed_tables(degrees: int, quantile: float):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1e-4)


def test_an_interval_uses_students_t():
    # 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, so 4.3027 * sqrt(7 / 3).
    assert_estimate(estimate([1.0, 2.0, 6.0]), 3.0, 4.3027 * math.sqrt(7 / 3), 3)
    assert_estimate(estimate([0.25]), 0.25, None, 1)
    assert estimate([]) is None


def test_intervals_as_text():
    assert with_interval(Estimate(0.9123, 0.0042, 3)) == "0.912 ±.004"
    assert with_interval(Estimate(0.9123, None, 1)) == "0.912"
    assert with_interval(Estimate(-0.01, 1.25, 2), "+.3f") == "-0.010 ±1.250"
    assert with_interval(None) == "–"


def test_a_mean_over_partitions_uses_seeds_that_finished_all_of_them():
    # Seed 0: (0.8 + 0.7) / 2; seed 1: (0.9 + 0.5) / 2.
    # They lie 0.05 apart, so s / sqrt(2) = 0.025.
    assert_estimate(over_grid(GRID, "fft-moe+h", "accuracy"), 0.725, 12.7062 * 0.025, 2)
    worst = over_grid(GRID, "fft-moe+h", "client_accuracy", "worst_decile")  # half the accuracy, in every cell
    assert_estimate(worst, 0.3625, 12.7062 * 0.0125, 2)
    # Seed 1 fails where it is hard, and its easy half is left out.
    partly = (*GRID[:6], cell("fft-moe+h", "shards:1", 1, None), GRID[7])
    assert_estimate(over_grid(partly, "fft-moe+h", "accuracy"), 0.75, None, 1)
    assert over_grid(GRID, "fft-moe+h", "personal_accuracy", "mean") is None


def test_the_share_of_iid_accuracy_that_is_kept():
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


def test_a_curve_has_only_rounds_that_every_seed_measured():
    short = CellResult("a+h", "a", "h", "iid", 1, "done", {"accuracy": 0.5}, cell("a+h", "iid", 1, 0.5).rows[::2])
    assert [point.round for point in curve((cell("a+h", "iid", 0, 0.7), short), "a+h", "iid")] == [0, 2]


def test_the_target_is_the_given_one_or_fedits_final_accuracy():
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


def test_differences_are_taken_in_pairs():
    # 0.8 - 0.9, 0.7 - 0.5, 0.9 - 0.8, 0.5 - 0.4: mean 0.075; squares of deviations sum to
    # 0.175² + 0.125² + 0.025² + 0.025² = 0.0475.
    (found,) = paired_differences(GRID)
    assert (found.reference, found.other, found.wins) == ("fft-moe+h", "fedit+h", 3)
    assert_estimate(found.estimate, 0.075, 3.1824 * math.sqrt(0.0475 / 3) / 2, 4)
    (partly,) = paired_differences((*GRID[:7], cell("fedit+h", "shards:1", 1, None)))
    assert partly.estimate.n == 3


def test_differences_compare_equal_heads_where_possible():
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


def test_centralized_is_shown_only_for_the_partition_it_ran_on():
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


def test_for_errors_a_smaller_value_is_better():
    """The same grid with its accuracies read as perplexities, so that the best variant becomes the worst."""
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


def test_pairs_are_formed_within_one_data_set():
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


def test_tables_leave_out_what_was_not_measured():
    titles = [table.title for table in tables(Comparison("x", GRID))]
    assert titles == [
        "Accuracy",
        "Under skew, and what a run costs",
        "Rounds to the target",
        "Paired differences of accuracy",
    ]
    single = Comparison("x", (cell("fft-moe+h", "shards:1", 0, 0.7),))
    assert [table.title for table in tables(single)] == titles[:2]
    assert robustness_table(single.cells).header == ("", "worst decile", "up", "down", "client s")
    known = {"mean": 0.75, "worst_decile": 0.25, "global_mean": 0.625}
    personal = robustness_table((cell("a+h", "iid", 0, 0.5, personal_accuracy=known),))
    assert personal.header[3:6] == ("own model", "own model worst", "global there")
    assert personal.rows == (("a+h", "–", "0.250", "0.750", "0.250", "0.625", "200 B", "400 B", "20"),)
    own = {"global": {"mean": 0.5, "worst": 0.25}, "personal": {"mean": 0.75, "worst": 0.625}}
    answers = robustness_table((cell("a+h", "iid", 0, 0.5, own_data=own),))
    assert answers.header[3:6] == ("own data", "personal answers", "worst client")
    assert answers.rows == (("a+h", "–", "0.250", "0.500", "0.750", "0.625", "200 B", "400 B", "20"),)
    assert target_table(Comparison("x", GRID)).rows[0] == ("fft-moe+h", "2", "1", "450 B", "16")
    assert target_table(Comparison("x", GRID, 0.88)).rows == (
        ("fft-moe+h", "–", "–", "–", "–"),
        ("fedit+h", "–", "–", "–", "–"),
    )


def test_runs_that_ended_worse_than_they_began_are_named_first():
    values = {"start": 0.9, "end": 0.3, "gain": -0.6, "margin": 0.1}
    worse = cell("fedit+<h>", "iid", 3, 0.3, verdict={"result": "worse", **values})
    lost = cell("fedit+h", "shards:1", 4, 0.3, verdict={"result": "diverged", "first_loss": 2.0, "last_loss": 1e6})
    fine = cell("fedit+h", "iid", 5, 0.9, verdict={"result": "level", **values})
    compared = Comparison("x", (*GRID, worse, lost, fine))
    output = io.StringIO()
    print_comparison(Console(file=output, width=80), compared)
    shown, page = output.getvalue(), comparison_page(compared)
    for words in ("iid, seed 3: training made the model worse: accuracy 0.300", "seed 4: training diverged: its loss"):
        assert words in shown[: shown.index("\nAccuracy")]
        assert 0 < page.index(words) < page.index("<section>")
    assert "seed 5" not in page
    assert "fedit+&lt;h&gt;, iid, seed 3" in page
    many = [dataclasses.replace(worse, seed=seed) for seed in range(23)]
    assert "The end was worse than the beginning in 3 more runs" in comparison_page(Comparison("x", tuple(many)))


def test_the_page_loads_nothing_and_shows_failures():
    page = comparison_page(Comparison("<x>", (*GRID, cell("fft-moe+h", "iid", 2, None))))
    structure_of(page)  # loads nothing from elsewhere
    assert "&lt;x&gt;" in page
    assert "out of luck" in page
    assert page.count("<figure") == 4  # by rounds and by bytes, for each partition
    assert "No run has finished yet" in comparison_page(Comparison("x", (cell("a+h", "iid", 0, None),)))
