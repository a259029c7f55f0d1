"""The tables of the pages are those that the committed results give."""

import dataclasses
import importlib
import itertools
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fftmoe.comparison.statistics import CellResult, Comparison, estimate
from fftmoe.comparison.tables import with_interval

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {
    "trec6": "TREC-6",
    "hwu64": "HWU64",
    "snips": "SNIPS",
    "banking77": "Banking77",
    "ag_news": "AG News",
    "pacs32": "pacs32",
    "fashion_mnist": "Fashion-MNIST",
}
LANGUAGE = ("shakespeare", "flan8")
WITHOUT_SKEW = ("trec6", "hwu64", "banking77", "snips", "ag_news", "pacs32", "fashion_mnist")

Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def stored(name: str) -> Comparison:
    """A comparison from the file that `keep_comparison` wrote."""
    known = {field.name for field in dataclasses.fields(CellResult)}
    cells = [CellResult(**{key: cell[key] for key in known & cell.keys()}) for cell in results(name)["cells"]]
    return Comparison(name, tuple(cells))


def in_markdown(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"


def test_the_page_has_the_accuracies_out_of_the_box(load: Load):
    table, shown = load("default_table"), page("results")
    for data, name in NAMES.items():
        _, *figures = table.row(data, stored(f"default-table-{data}"))
        assert in_markdown([name, *figures]) in shown


def test_the_page_has_the_perplexities_out_of_the_box(load: Load):
    table, shown = load("default_table"), page("results")
    for data in LANGUAGE:
        name, *figures = table.row(data, stored(f"default-table-{data}"))
        assert in_markdown([f"{name}, three seeds", *figures]) in shown


def test_no_run_ends_below_its_start_out_of_the_box(load: Load):
    table, shown = load("default_table"), page("results")
    level = 0
    for data, name in NAMES.items():
        own = [cell for cell in stored(f"default-table-{data}").cells if cell.method == "fft-moe"]
        gains = [100 * (cell.summary["accuracy"] - table.before(cell)) for cell in own]
        assert len(gains) == 3
        assert min(gains) >= 0
        level += sum(cell.summary["best_round"] == 0 for cell in own)
        found = estimate(gains)
        assert found is not None
        assert found.half_width is not None
        mean, half = (f"{value:.1f}".removeprefix("0") for value in (found.mean, found.half_width))
        assert f"{name} (+{mean} ± {half}" in shown
    assert level == 8  # "eight of the twenty-one"


def test_the_page_says_what_the_rule_for_the_kept_round_costs(load: Load):
    table, shown = load("default_table"), page("results")
    cells = [cell for data in NAMES for cell in stored(f"default-table-{data}").cells]

    def gains(method: str, of_model: Callable[[CellResult], float], only_first: bool = False) -> list[float]:
        own = [cell for cell in cells if cell.method == method]
        own = [cell for cell in own if cell.summary["best_round"] == 0] if only_first else own
        return [round(100 * (of_model(cell) - table.before(cell)), 6) for cell in own]

    missed = gains("fft-moe", table.after_all_rounds, only_first=True)
    assert sorted(value > 0 for value in missed) == [False] * 3 + [True] * 5
    above, below = [value for value in missed if value > 0], [-value for value in missed if value < 0]
    assert f"(by {_short(min(above))} to {_short(max(above))} points)" in shown
    assert f"worse in three (by {_short(min(below))} to {_short(max(below))})" in shown
    pairs = zip(gains("fft-moe", table.after_all_rounds), gains("fft-moe", table.kept), strict=True)
    cost = with_interval(estimate([last - kept for last, kept in pairs]), "+.2f")
    assert f"costs {cost.removeprefix('+0').replace('±', '± ')} points" in shown
    lower = {method: [-value for value in gains(method, table.kept) if value < 0] for method in ("fedit", "hetlora")}
    assert not lower["fedit"]
    assert f"(by {_short(min(lower['hetlora']))} and {_short(max(lower['hetlora']))} points), and FedIT none" in shown
    lost = gains("centralized", table.after_all_rounds, only_first=True)
    assert len(lost) == 4
    assert f"lose {_short(min(lost))} to {_short(max(lost))} points" in shown


def test_the_page_says_where_training_in_one_place_gains(load: Load):
    table, shown = load("default_table"), page("results")
    for data, name in NAMES.items():
        own = [cell for cell in stored(f"default-table-{data}").cells if cell.method == "centralized"]
        found = estimate([100 * (table.after_all_rounds(cell) - table.before(cell)) for cell in own])
        assert found is not None
        assert found.half_width is not None
        said = f"{name} (+{_short(found.mean)} ± {_short(found.half_width)})"
        assert (said in shown) == (found.mean > found.half_width), said


def _short(value: float) -> str:
    return f"{value:.1f}".removeprefix("0")


def test_the_readme_has_its_table(load: Load):
    table = load("readme_table")
    runs = results("readme_table")["runs"]
    ours, fedit = ([runs[f"{method}, seed {seed}"]["summary"] for seed in range(3)] for method in ("fft-moe", "fedit"))
    shown = (ROOT / "README.md").read_text()
    assert table.table(ours, fedit) in shown
    assert f"the difference is {table.lead(ours, fedit)} points" in shown
    sent, of_lora = (sum(each["bytes_up"] + each["bytes_down"] for each in found) for found in (ours, fedit))
    assert of_lora / sent == pytest.approx(2 / 3, abs=0.03)
    common, alone = (table.own(ours, way, "mean").split()[0].removeprefix("0") for way in ("global", "alone"))
    assert f"the common model by itself has {common}, less than a client alone ({alone})" in shown
    gains = [summary["own_data"]["gain_over_alone"] for summary in ours]
    whole = sum(gain["num_clients"] for gain in gains)
    kept = round(sum(gain["share_of_clients"] * gain["num_clients"] for gain in gains))
    assert f"{kept} of {whole} clients lose nothing" in shown
    assert f"the worst loses {-100 * min(gain['worst'] for gain in gains):.1f} points" in shown


def test_the_log_has_the_choice_of_the_defaults(load: Load):
    defaults = load("defaults")
    made = defaults.table({name: stored(f"defaults-{name}") for name in defaults.SETS})
    assert len(made) == 3
    for names in (("shakespeare", "flan8"), ("flan8-smollm2",)):
        language = defaults.table({name: stored(f"defaults-{name}") for name in names})
        assert len(language) == 4
        made += language
    assert [row for row in made if in_markdown(row) not in page("LOG")] == []


def test_the_log_has_the_choice_of_the_defaults_without_skew(load: Load):
    defaults = load("defaults")
    made = defaults.table({name: stored(f"defaults-iid-{name}") for name in WITHOUT_SKEW})
    assert len(made) == 6
    assert [row for row in made if in_markdown(row) not in page("LOG")] == []
    assert all(row[-1].startswith("-") for row in made)  # "no change is better in the mean"


def test_the_log_has_the_training_of_own_parts(load: Load):
    made = load("own_training").rows("flan8", stored("own-training-flan8").cells)
    assert len(made) == 2
    assert [row for row in made if in_markdown(row) not in page("LOG")] == []


def test_the_pages_have_the_mixed_streams(load: Load):
    made = load("mixed_stream").table([*results("mixed_stream")["runs"].values()])
    assert made in page("LOG")
    assert made in page("personal")


def test_the_log_has_the_rates_of_fedit(load: Load):
    rates = load("fedit_rates")
    moved = []
    for file in sorted(RESULTS.glob("fedit-rates-*.json")):
        made = rates.row(file.stem.removeprefix("fedit-rates-"), stored(file.stem).cells)
        assert in_markdown(made) in page("LOG")
        half, common, twice = map(float, made[2:])
        moved += [round(abs(rate - common), 3) for rate in (half, twice)]  # the table has three digits
    assert len(moved) == 8
    assert max(moved) <= 0.005  # "at most half a point"


def test_the_pages_have_the_heads_of_other_tasks(load: Load):
    heads = load("solved_heads")
    for task in heads.TASKS:
        for clients in heads.PARTITIONS:
            made = heads.row(task, clients, stored(f"solved-heads-{heads.file_name(task, clients)}").cells)
            assert in_markdown(made) in page("LOG")
            assert in_markdown(made) in page("results")
            always, twice, trained = map(float, made[4:7])
            better = (lambda a, b: a < b) if task == "numbers" else (lambda a, b: a > b)
            assert better(always, twice)
            assert better(always, trained)


def test_the_page_says_how_many_bytes_are_moved_out_of_the_box():
    names = NAMES | {name: name for name in LANGUAGE}
    ratios = sorted((_bytes_moved(data, "fft-moe") / _bytes_moved(data, "fedit"), names[data]) for data in names)
    (least, smallest), (most, largest) = ratios[0], ratios[-1]
    assert f"moves {least:.1f} ({smallest}) to {most:.1f} times ({largest}) the bytes of FedIT" in page("results")


def _bytes_moved(data: str, method: str) -> int:
    """Up and down, in all cells of this method that were run."""
    cells = stored(f"default-table-{data}").cells
    own = [cell.summary for cell in cells if cell.method == method and cell.status == "done"]
    return sum(summary["bytes_up"] + summary["bytes_down"] for summary in own)


def test_the_pages_say_where_the_lead_over_other_methods_is_less_than_its_mean():
    """Pairs of cells with the closed-form head that share data, partition and seed."""
    cells = [cell for cell in results("grid-committed")["cells"] if cell["status"] == "done"]
    found = {(cell["variant"], cell["data"], cell["partition"], cell["seed"]): cell["accuracy"] for cell in cells}
    sure, by_data = set[str](), dict[str, dict[str, float]]()
    for method in ("fedit", "hetlora", "ffa-lora", "flexlora", "flora", "flame", "head-only"):
        leads: dict[str, list[float]] = {}
        for (variant, data, *rest), accuracy in found.items():
            other = found.get((f"{method}+closed-form", data, *rest))
            if variant == "fft-moe+closed-form" and other is not None:
                leads.setdefault(data, []).append(100 * (accuracy - other))
        assert {data: len(values) for data, values in leads.items()} == {"hwu64": 15, "pacs32": 15, "trec6": 15}
        by_data[method] = {data: statistics.fmean(values) for data, values in leads.items()}
        over_sets = estimate(list(by_data[method].values()))
        assert over_sets is not None
        assert over_sets.half_width is not None
        sure |= {method} if over_sets.mean > over_sets.half_width else set()
    assert sure == {"fedit", "hetlora"}
    assert "as the units only the leads over FedIT and HetLoRA are more than chance" in page("results")
    assert abs(by_data["ffa-lora"]["pacs32"]) < 0.05
    assert "(none over FFA-LoRA on pacs32)" in (ROOT / "README.md").read_text()


def test_the_page_has_the_goals_of_the_committed_grid(load: Load, capsys: pytest.CaptureFixture[str]):
    load("goals").main([])
    made, shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")], page("results")
    assert len(made) > 20
    assert [line for line in made if line not in shown.splitlines()] == []


def test_the_page_on_malicious_clients_has_what_was_measured(load: Load, capsys: pytest.CaptureFixture[str]):
    attacks = load("attacks")
    cells = list(attacks.cells_of(3))
    found = type("Stored", (), {"cells": results("attacks")["cells"], "path": RESULTS / "attacks.json"})
    attacks.show(cells, found)
    made, shown = capsys.readouterr().out, page("robustness")
    tables = [line for line in made.splitlines() if line.startswith("| ")]
    assert len(tables) > 50
    assert [line for line in tables if line not in shown.splitlines()] == []
    (count,) = re.findall(r"^\d+ of \d+ cells", made, flags=re.MULTILINE)
    assert f"({count}, " in shown


def test_the_page_has_the_measured_recipes(load: Load):
    recipes, runs, shown = load("recipes"), results("recipes")["runs"], page("benchmarks")
    for cell in itertools.product(recipes.FOLDERS, recipes.PARTITIONS, recipes.HEADS):
        name = ", ".join(cell)
        own = [run["summary"] for key, run in runs.items() if key.startswith(f"{name},")]
        assert in_markdown([*cell, *recipes.row(own)]) in shown


def test_the_page_has_the_times_of_several_clients_in_a_batch(load: Load):
    made = load("at_once").table(results("at_once")["rows"]).splitlines()[2:]
    assert len(made) == 18
    assert [line for line in made if line not in page("benchmarks").splitlines()] == []


def test_the_page_has_the_distances_of_other_harnesses():
    apart = results("round_overhead")["distance_to_ours"]
    plain, pfl = (f"{apart[name]:.0e}".replace("e-0", "e-") for name in ("plain", "pfl"))
    flower = f"{apart['flower']:.1e}".replace("e-0", "e-")
    shown = page("benchmarks")
    assert f"a relative distance of {plain} and {pfl} from our model, Flower's simulation at {flower}" in shown
