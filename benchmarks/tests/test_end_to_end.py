"""The benchmark of the tricks: all variants compute the same training, and its tables agree with the timings."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.config import Recipe, load_recipe

Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module


@pytest.fixture
def recipe(recipe_values: dict[str, Any], tmp_path: Path) -> Recipe:
    """Clients of one tier; batches of five, three steps."""
    tier = {"name": "all", "fraction": 1.0, "top_k": 2, "experts": 5}
    path = tmp_path / "recipe.yaml"
    values = {**recipe_values, "budgets": [tier], "engine": {"prefix_cache": "off"}, "trackers": []}
    path.write_text(yaml.safe_dump(values))
    return load_recipe(path)


def test_all_variants_compute_the_same_training(load: Load, recipe: Recipe, tmp_path: Path):
    tricks, prepare, benchmark = load("tricks"), load("trick_bench").prepare, load("end_to_end")
    bench = prepare(recipe, (1, 13), clients=2, examples=11, cache_dir=tmp_path)
    variants = {**tricks.cumulative(True), **tricks.left_out(tricks.FULL), "habit": tricks.Tricks(input_gradients=True)}
    apart = benchmark.check(bench, variants)
    assert apart["naive"] == 0.0
    assert apart["without bfloat16"] < benchmark.SAME < apart["+ bfloat16"] < benchmark.ALIKE
    # The product's own loops, on the same batches.
    losses = bench.one_after_another(tricks.FULL)
    assert [len(steps) for steps in losses] == [3, 3]
    for updates in (bench.product(tricks.FULL), bench.at_once(tricks.FULL)):
        assert [u.metrics["loss"] for u in updates] == pytest.approx([sum(s) / 3 for s in losses], rel=benchmark.ALIKE)


def test_a_variant_that_computes_something_else_is_found(load: Load, recipe: Recipe, tmp_path: Path):
    tricks, prepare, benchmark = load("tricks"), load("trick_bench").prepare, load("end_to_end")
    bench = prepare(recipe, (1, 13), clients=1, examples=11, cache_dir=tmp_path)
    bench.cached.update({dtype: bench.texts.select(range(10, -1, -1)) for dtype in bench.cached})
    with pytest.raises(SystemExit, match=r"not the same training: full \("):
        benchmark.check(bench, {"naive": tricks.Tricks(), "full": tricks.FULL})


def test_tricks_save_padding(load: Load, recipe: Recipe, tmp_path: Path):
    tricks, prepare = load("tricks"), load("trick_bench").prepare
    bench = prepare(recipe, (3, 13), clients=1, examples=40, cache_dir=tmp_path)
    assert bench.texts.lengths.min() >= 3
    one = tricks.Tricks
    assert bench.tokens(one()) == 3 * 5 * 13
    assert bench.tokens(one(like_length=True, dynamic=True)) < bench.tokens(one(dynamic=True)) < bench.tokens(one())
    bench.build_cache(tricks.FULL.dtype, 7)
    assert len(list(tmp_path.glob("prefix-*"))) == 2  # what was built to be timed is gone


def test_each_row_adds_to_the_one_before(load: Load):
    tricks = load("tricks")
    rows = tricks.cumulative(True)
    assert rows["naive"] == tricks.Tricks()
    assert rows["+ bfloat16"] == tricks.FULL
    assert list(tricks.cumulative(False)) == list(rows)[:-1]
    without = tricks.left_out(tricks.FULL)
    assert len(without) == 7
    assert not without["without cached"].cached
    assert without["without cached"].dynamic


EPOCH = {
    "examples": 10,
    "examples_cached": 20,
    "cumulative": ["naive", "+ dynamic padding", "+ bfloat16"],
    "tokens": {"naive": 90, "+ dynamic padding": 40, "+ bfloat16": 40, "the product itself": 40},
    "seconds": {
        "naive": [6.0, 6.0, 6.0],
        "+ dynamic padding": [2.0, 3.0, 4.0],
        "+ bfloat16": [0.5, 0.5, 0.5],
        "without cached": [1.0, 1.5, 2.0],
        "the product itself": [0.6, 0.6, 0.6],
        "building the cache": [4.0, 4.0, 4.0],
    },
}


def test_tables_of_the_epoch(load: Load):
    benchmark = load("end_to_end")
    _, rows = benchmark.epoch_table(EPOCH)
    assert rows == [
        ("naive", "90", "6000", "1.0 (1.0 to 1.0)", "1.00"),
        ("+ dynamic padding", "40", "3000", "2.0 (1.5 to 3.0)", "2.00"),
        ("+ bfloat16", "40", "500", "12.0 (12.0 to 12.0)", "6.00"),
        ("the product itself", "40", "600", "10.0 (10.0 to 10.0)", "–"),
    ]
    assert benchmark.left_out_table(EPOCH)[1] == [("without cached", "3.00 (2.00 to 4.00)")]
    cost = benchmark.cache_cost(EPOCH)  # two seconds for these ten examples, and one is saved in an epoch
    assert cost == pytest.approx({"epochs_without": 4 / 3, "epochs_with": 4.0, "pays_after_epochs": 2.0})


def test_table_and_goals_of_small_clients(load: Load):
    benchmark, small = load("end_to_end"), load("small_clients")
    seconds = {small.NAIVE: [8.0], small.FULL: [2.0], small.AT_ONCE: [1.0]}
    result = {"clients": 4, "processor": seconds, "wall": {**seconds, small.IN_WORKERS: [0.5]}}
    _, rows = small.table([result])
    assert rows == [
        ("4", small.NAIVE, "8000", "1.0", "1.0", "–"),
        ("4", small.FULL, "2000", "4.0", "4.0", "–"),
        ("4", small.AT_ONCE, "1000", "8.0", "8.0", "16.0"),
        ("4", small.IN_WORKERS, "500", "–", "16.0", "–"),
    ]
    assert benchmark.goals(EPOCH, [result]) == [
        "local epoch: 10.0 (10.0 to 10.0) of 10: met",
        "4 small clients: 16.0 on the wall, at most 16.0, of 20: missed, 80% of it",
    ]


def test_a_round_through_messages_trains_every_client(load: Load, recipe: Recipe, tmp_path: Path):
    tricks, small, local = load("tricks"), load("small_clients"), load("fftmoe.engines.local")
    prepare, clients = load("trick_bench").prepare, load("fftmoe.setup.clients")
    bench = prepare(recipe, (1, 13), clients=3, examples=5, cache_dir=tmp_path)
    full = tricks.Tricks(**{**vars(tricks.FULL), "bfloat16": False})
    engine = local.InProcess(clients.build_client(small.spec(bench, full)))
    expected = [update.metrics["loss"] for update in bench.product(full)]
    for at_once in (1, 2):
        updates = small.exchange(bench, engine, at_once)
        assert [u.metrics["loss"] for u in updates] == pytest.approx(expected, rel=1e-5)
