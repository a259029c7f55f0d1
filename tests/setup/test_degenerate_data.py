"""Data from which little can be learned: a run ends with finite numbers, or is refused in one line before it begins."""

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from degenerate import HEADS, KINDS, TASKS, degenerate_recipe, write_degenerate
from fftmoe.config import parse_recipe
from fftmoe.config.backbone import LANGUAGE_TASKS
from fftmoe.errors import InputError
from fftmoe.methods.registry import METHODS
from fftmoe.rng import numpy_generator
from fftmoe.setup.asked import evaluate_run, predict_run
from fftmoe.setup.run import run
from fftmoe.tasks import NO_BOUND, make_task
from finished import Finished
from language import save_language_model
from pictures import vision_values

Models = dict[str, Path]
Cell = tuple[str, str, str, str]  # kind, task, method, head
# What cannot be learned at all, and what is said of it.
REFUSED: dict[tuple[str, str], str] = {}
TEXTS = tuple(task for task in TASKS if task != "image-classification")
for _task in TASKS:
    REFUSED["texts are empty", _task] = "row 1"
    REFUSED["texts are missing", _task] = "row 1"
for _task in TEXTS:
    REFUSED["test texts are blank", _task] = "row"
REFUSED["a target is out of range", "regression"] = r"-1\.1e\+30 in row 5, .* up to 1e30"


def _has_recipe(task: str, method: str, head: str) -> bool:
    """Whether a recipe may have these; a language model has no head, and is listed once."""
    if task in LANGUAGE_TASKS and head != "averaged":
        return False
    try:
        parse_recipe(degenerate_recipe(Path("model"), Path("data"), task, method, head, 2), "cell")
    except InputError:
        return False
    return True


def all_cells() -> list[Cell]:
    settings = [chosen for chosen in itertools.product(TASKS, METHODS, HEADS) if _has_recipe(*chosen)]
    return [
        (kind, *chosen) for kind, (_, tasks) in KINDS.items() for chosen in settings if not tasks or chosen[0] in tasks
    ]


def pairwise(cells: Sequence[Cell], most: int | None = None) -> list[Cell]:
    """A few of the cells that have every pair of values that occurs in any; chosen greedily, new values first.

    Args:
        most: cells that are chosen; as many as are needed if None.
    """
    drawn = [cells[place] for place in numpy_generator(5, "cells").permutation(len(cells))]
    pairs = {cell: _parts(cell, 2) for cell in drawn}
    new, missing = set[Any]().union(*(_parts(cell, 1) for cell in drawn)), set[Any]().union(*pairs.values())
    chosen: list[Cell] = []
    while missing and len(chosen) != most:
        best = max(drawn, key=lambda cell: (len(new & _parts(cell, 1)), len(missing & pairs[cell])))
        chosen.append(best)
        new, missing = new - _parts(best, 1), missing - pairs[best]
    return chosen


def _parts(cell: Cell, size: int) -> set[tuple[Any, ...]]:
    return set(itertools.combinations(enumerate(cell), size))


@pytest.fixture(scope="module")
def models(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny backbone for each task."""
    top = tmp_path_factory.mktemp("models")
    images = Path(vision_values(top)["backbone"]["model"])
    own = {"image-classification": images, **dict.fromkeys(LANGUAGE_TASKS, save_language_model(top / "language"))}
    return {task: own.get(task, backbone_folder) for task in TASKS}


class Tables(dict[tuple[str, str], Path]):
    """The folders with the rows of each kind and task that was asked for."""

    def __init__(self, top: Path) -> None:
        super().__init__()
        self._top = top

    def __missing__(self, key: tuple[str, str]) -> Path:
        self[key] = write_degenerate(self._top / key[1] / key[0].replace(" ", "-"), key[1], key[0])
        return self[key]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return Tables(tmp_path_factory.mktemp("tables"))


def check_cell(cell: Cell, models: Models, tables: Tables, folder: Path) -> None:
    """Run the cell, and check what it leaves and what is said of it."""
    kind, task, method, head = cell
    recipe = parse_recipe(degenerate_recipe(models[task], tables[kind, task], task, method, head, 2), "cell")
    if (kind, task) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[kind, task]) as caught:
            run(recipe, folder)
        assert "\n" not in str(caught.value)
        assert not folder.exists()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of NumPy, about means over nothing
        summary = run(recipe, folder).summary
    assert summary["rounds_completed"] == 2
    check_finite(Finished(folder), task, method)
    if METHODS[method].capabilities.personal:
        return
    assert math.isfinite(evaluate_run(folder)[make_task(task).metric])
    if task in TEXTS and task != "token-classification":
        assert len(predict_run(folder, ["say ash", "bay"], max_new_tokens=2)) == 2


def check_finite(finished: Finished, task: str, method: str) -> None:
    """Every number of the summary and of the rows is finite, but for what clients without test rows would measure."""
    metric = make_task(task).metric
    expected = {"metric", "seconds", f"{metric}"}
    summary = finished.summary  # read as strict JSON, which has no NaN
    assert expected <= summary.keys()
    assert math.isfinite(summary[metric])
    of_clients = tuple(f"clients.{key}." for key in (metric, f"reweighted_{metric}", "personal", "alone"))
    unmeasured = {place for place in _nulls(summary) if not place.startswith((*of_clients, "baselines."))}
    unbounded = make_task(task).bounds[1] >= NO_BOUND  # rows with one value say nothing of how far others are from it
    unknown = {f"{metric}_interval"} if unbounded else set[str]()
    assert unmeasured <= {"best_round", *unknown}
    assert all(entry["value"] is not None or entry["reason"] for entry in summary["baselines"].values())
    for row in finished.rows:
        personal = METHODS[method].capabilities.personal
        assert set(_nulls(row)) - unknown <= ({metric} if personal and row["round"] < 2 else set())
    assert all(tensor.isfinite().all() for tensor in finished.state.tensors.values())
    page = (finished.folder / "report.html").read_text()
    assert not {"NaN", "nan", "inf"} & set(page.replace("<", " ").replace(">", " ").split())


def _nulls(value: Any, place: str = "") -> Iterator[str]:
    """The places of null, and of numbers that are not finite."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _nulls(part, f"{place}.{key}" if place else str(key))
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        yield place


def _name(cell: Cell) -> str:
    return "-".join(cell).replace(" ", "_")


ALL = all_cells()
FIRST = pairwise(ALL, 36)  # with every value and most of the pairs; they run in some seconds


@pytest.mark.parametrize("cell", FIRST, ids=_name)
def test_a_few_features_on_degenerate_data(cell: Cell, models: Models, tables: Tables, tmp_path: Path):
    check_cell(cell, models, tables, tmp_path / "run")


def test_the_few_have_every_kind_task_method_and_head():
    for values, place in ((KINDS, 0), (TASKS, 1), (METHODS, 2), (HEADS, 3)):
        assert {cell[place] for cell in FIRST} == set(values)


@pytest.mark.slow
def test_every_pair_of_features_on_degenerate_data(models: Models, tables: Tables, tmp_path: Path):
    cells = pairwise(ALL)
    assert cells[: len(FIRST)] == FIRST
    for number, cell in enumerate(cells[len(FIRST) :]):
        check_cell(cell, models, tables, tmp_path / str(number))
