"""The benchmark over several data sets: it goes on from its work folder, or from the numbers that are committed."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.comparison.statistics import CellResult
from fftmoe.config import Recipe, parse_recipe
from fftmoe.errors import InputError
from fftmoe.setup.cells import Cell

FOUR = [(name, partition) for name in ("first", "second") for partition in ("iid", "shards")]


@pytest.fixture(scope="module")
def places(recipe_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`recipes/` for two data sets of two cells each, and their `data/`."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "recipes").mkdir()
    (folder / "data").mkdir()
    section = {"partitions": ["iid", "shards:1"], "seeds": 1}
    short = {"federation": {**recipe_values["federation"], "rounds": 1}}
    for name in ("first", "second"):
        values = {**recipe_values, **short, "name": name, "compare": section, "data": {"source": "?", "max_length": 13}}
        (folder / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(values))
        shutil.copytree(recipe_values["data"]["source"], folder / "data" / name)
    return folder


class Bench:
    """`benchmarks/grid.py` in this process, on a machine that says its commit is `commit`."""

    def __init__(self, places: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
        patch.syspath_prepend(str(Path(__file__).parents[1]))
        self.grid = importlib.import_module("grid")
        self.results = importlib.import_module("grid_results")
        self.recipes, self.data = places / "recipes", places / "data"
        self.work, self.file = folder / "work", folder / "results.json"
        self.commit = "aaa"
        self.ran: list[tuple[str, str]] = []  # since the last call
        self.interrupt_at: int | None = None
        compare = sys.modules["fftmoe.comparison.run"]
        self._run = compare.run
        patch.setattr(compare, "run", self._count)
        patch.setenv("COLUMNS", "500")  # so that no line is folded
        patch.setattr(self.results, "machine", lambda: {"commit": self.commit})

    def _count(self, recipe: Recipe, folder: Path, **options: Any) -> Any:
        if len(self.ran) == self.interrupt_at:
            raise KeyboardInterrupt
        self.ran.append((recipe.name, recipe.partition.kind))
        return self._run(recipe, folder, **options)

    def __call__(self, *arguments: str) -> None:
        self.ran.clear()
        flags = {"recipes": self.recipes, "data": self.data, "work": self.work, "results": self.file}
        self.grid.main([*(part for k, v in flags.items() for part in (f"--{k}", str(v))), "--workers", "1", *arguments])

    def stored(self) -> dict[str, Any]:
        """The results file."""
        return json.loads(self.file.read_text())

    def commits(self) -> dict[tuple[str, str], str | None]:
        """Of the stored cells, where they were run."""
        machines = [record["commit"] for record in self.stored()["machines"]]
        return {
            (cell["data"], cell["partition"].partition(":")[0]): None if at is None else machines[at]
            for cell in self.stored()["cells"]
            for at in [cell["machine"]]
        }


@pytest.fixture
def bench(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(places, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def whole(places: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the four cells, run at the commit `aaa`."""
    with pytest.MonkeyPatch.context() as patch:
        bench = Bench(places, tmp_path_factory.mktemp("whole"), patch)
        bench()
    return bench.file


@pytest.fixture
def resumed(bench: Bench, whole: Path) -> Bench:
    """A fresh machine at the commit `bbb`: the results, and an empty work folder."""
    shutil.copy(whole, bench.file)
    bench.commit = "bbb"
    return bench


def test_a_grid_goes_on_in_the_work_folder_where_it_stopped(bench: Bench, capsys: pytest.CaptureFixture[str]):
    bench("--seconds", "0")
    assert "0 of 4 cells done" in capsys.readouterr().out
    bench("--pieces", "first")
    assert "2 of 2 cells done" in capsys.readouterr().out
    assert bench.ran == FOUR[:2]
    bench()
    out = capsys.readouterr().out
    assert bench.ran == FOUR[2:]
    assert "4 of 4 cells done" in out
    assert out.count("2 of them finished already") == 1
    assert "|  | first | second | mean |" in out
    assert "### second: Accuracy" in out
    cells = bench.stored()["cells"]
    assert [(c["data"], c["partition"], c["status"]) for c in cells] == [
        (name, partition, "done") for name in ("first", "second") for partition in ("iid", "shards:1")
    ]
    assert str(bench.work.parent) not in bench.file.read_text()
    with pytest.raises(InputError, match="did you mean 'first'"):
        bench("--pieces", "frist")


def test_a_fresh_machine_runs_nothing_again(resumed: Bench, whole: Path, capsys: pytest.CaptureFixture[str]):
    moved = resumed.file.with_name("elsewhere")
    shutil.copytree(resumed.data, moved)
    resumed.data = moved
    resumed()
    out = capsys.readouterr().out
    assert resumed.ran == []
    assert "4 finished cells taken from" in out
    assert "4 of 4 cells done" in out
    assert "run again" not in out
    iid, shards = (cell["accuracy"] for cell in resumed.stored()["cells"][:2])
    assert f"| fft-moe+one-vs-all | {iid:.3f} | {shards:.3f} | {(iid + shards) / 2:.3f} |" in out
    assert resumed.file.read_bytes() == whole.read_bytes()  # the commit that ran them, too
    restored = next(resumed.work.rglob("comparison.json"))
    (first, *_) = json.loads(restored.read_text())["cells"]
    assert [row["round"] for row in first["rows"]] == [0, 1]
    assert first["summary"]["accuracy_by_round"].keys() == {"0", "1"}
    resumed.commit = "ccc"
    resumed()  # with a full work folder
    assert resumed.ran == []
    assert resumed.file.read_bytes() == whole.read_bytes()


def test_a_killed_grid_keeps_the_pieces_that_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """Killed in the fourth cell, before anything could be written, and gone on with in another work folder."""
    written = bench.results.GridResults.write

    def write_unless_interrupted(results: Any) -> None:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            written(results)

    with monkeypatch.context() as patch:
        patch.setattr(bench.results.GridResults, "write", write_unless_interrupted)
        bench.interrupt_at = 3
        with pytest.raises(KeyboardInterrupt):
            bench()
    assert bench.ran == FOUR[:3]
    assert [cell["status"] for cell in bench.stored()["cells"]] == ["done", "done", "not run", "not run"]
    bench.interrupt_at, old = None, bench.work
    bench.work, bench.commit = old.with_name("new"), "bbb"
    bench()
    assert bench.ran == FOUR[2:]
    assert bench.commits() == dict(zip(FOUR, ("aaa", "aaa", "bbb", "bbb"), strict=True))
    # The old folder still has the third cell, which the file has from the new one. Runs as short as these may take
    # equally long, and equal figures could not be distinguished.
    (third,) = (old / "second").rglob("summary.json")
    summary = json.loads(third.read_text())
    third.write_text(json.dumps(summary | {"seconds": summary["seconds"] + 7}))
    bench.work, bench.commit = old, "ccc"
    bench()
    assert bench.ran == []
    assert bench.commits() == dict(zip(FOUR, ("aaa", "aaa", "aaa", "bbb"), strict=True))


def test_an_interrupted_grid_writes_what_it_has(bench: Bench):
    bench.interrupt_at = 1
    with pytest.raises(KeyboardInterrupt):
        bench()
    assert [cell["status"] for cell in bench.stored()["cells"]] == ["done", "not run", "not run", "not run"]
    assert bench.commits() == dict(zip(FOUR, ("aaa", None, None, None), strict=True))


def test_cells_of_another_recipe_run_again(resumed: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    resumed.recipes = shutil.copytree(resumed.recipes, tmp_path / "recipes")
    changed = tmp_path / "recipes" / "second.yaml"
    values = yaml.safe_load(changed.read_text())
    values["federation"]["learning_rate"] = 0.02
    changed.write_text(yaml.safe_dump(values))
    before = resumed.stored()["cells"]
    resumed()
    out = capsys.readouterr().out
    assert "2 finished cells taken from" in out
    assert f"2 cells in {resumed.file} are of other recipes than now and run again" in out
    assert resumed.ran == FOUR[2:]
    after = resumed.stored()["cells"]
    assert after[:2] == before[:2]
    assert [a["digest"] == b["digest"] for a, b in zip(after, before, strict=True)] == [True, True, False, False]
    assert resumed.commits() == dict(zip(FOUR, ("aaa", "aaa", "bbb", "bbb"), strict=True))


def test_cells_of_another_recipe_stay_until_they_have_run_again(
    resumed: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    resumed.recipes = shutil.copytree(resumed.recipes, tmp_path / "recipes")
    changed = tmp_path / "recipes" / "second.yaml"
    changed.write_text(changed.read_text().replace("max_length: 13", "max_length: 12"))
    before = resumed.file.read_bytes()
    resumed("--seconds", "0")
    assert resumed.file.read_bytes() == before
    fewer = resumed.file.with_suffix(".found.json")
    assert f"2 of 4 cells done; numbers in {fewer}" in capsys.readouterr().out
    assert [cell["status"] for cell in json.loads(fewer.read_text())["cells"]].count("done") == 2


def test_a_cell_of_another_recipe_in_the_work_folder_is_refused_before_anything_is_written(
    resumed: Bench, tmp_path: Path
):
    resumed("--pieces", "second")
    before = resumed.file.read_bytes()
    resumed.recipes = shutil.copytree(resumed.recipes, tmp_path / "recipes")
    changed = tmp_path / "recipes" / "second.yaml"
    changed.write_text(changed.read_text().replace("batch_size: 5", "batch_size: 6"))
    with pytest.raises(InputError, match=r"federation\.batch_size=5; this comparison has 6"):
        resumed()
    assert resumed.file.read_bytes() == before
    assert not (resumed.work / "first").exists()


@pytest.mark.slow
def test_cells_of_other_pieces_are_kept(resumed: Bench):
    stored = resumed.stored()
    for cell in stored["cells"]:
        cell["digest"] += "-of-old"  # whatever they are, a call for the other piece leaves them
    resumed.file.write_text(json.dumps(stored))
    resumed("--pieces", "second")
    assert resumed.ran == FOUR[2:]
    assert resumed.stored()["cells"][:2] == stored["cells"][:2]
    assert resumed.commits() == dict(zip(FOUR, ("aaa", "aaa", "bbb", "bbb"), strict=True))


def test_a_damaged_results_file_is_named(resumed: Bench):
    resumed.file.write_text('{"cells": [')
    with pytest.raises(InputError, match=r"cannot read the results .*results\.json.*--results"):
        resumed()
    assert resumed.ran == []


def test_a_digest_is_of_what_changes_figures(bench: Bench, recipe_values: dict[str, Any]):
    def of(section: str = "name", key: str = "", value: Any = "tiny") -> str:
        changed = {**recipe_values[section], key: value} if key else value
        return bench.results.digest(parse_recipe({**recipe_values, section: changed}, ""))

    assert len(of()) == 16
    assert of("data", "source", "elsewhere") == of("backbone", "model", "elsewhere") == of()
    assert of("engine", "workers", 2) == of("trackers", value=[]) == of()
    different = {
        of("data", "max_length", 5),
        of("backbone", "pooling", "native"),
        of("head", "learning_rate", 0.5),
        of("seed", value=4),
        of("partition", "alpha", 2.0),
    }
    assert len(different - {of()}) == 5


def test_a_stored_cell_is_compact(bench: Bench, recipe_values: dict[str, Any]):
    row = {"round": 0, "accuracy": 1 / 3, "bytes_up": 1, "bytes_down": 2, "client_seconds": 0.125001}
    cell = Cell("a+h", "iid", 0, parse_recipe(recipe_values, ""))
    done = CellResult("a+h", "a", "h", "iid", 0, "done", {"accuracy": 1 / 3, "peak_rss_mib": 3}, [row])
    line = bench.results.numbers_of(cell, done, "trec6")
    assert line["rows"] == [[0, 0.333333, 1, 2, 0.13]]
    assert line["accuracy"] == 1 / 3
    assert "peak_rss_mib" not in line
    not_run = bench.results.numbers_of(cell, CellResult("a+h", "a", "h", "iid", 0, "not run"), "trec6")
    assert not_run.keys() == {"data", "variant", "method", "head", "partition", "seed", "status", "digest"}


def test_a_larger_scale_adds_recipes_partitions_seeds_and_populations(
    bench: Bench, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    bench.recipes = shutil.copytree(places / "recipes", tmp_path / "recipes")
    (bench.recipes / "full").mkdir()
    (bench.recipes / "second.yaml").rename(bench.recipes / "full" / "second.yaml")
    own = yaml.safe_load((bench.recipes / "first.yaml").read_text())["partition"]["num_clients"]
    larger = bench.grid.Scale((".", "full"), seeds=2, partitions=("dirichlet:0.5",), populations=(None, 5))
    monkeypatch.setitem(bench.grid.SCALES, "full", larger)
    assert own != 5
    bench("--scale", "full", "--seconds", "0")
    # Two data sets, two populations, three partitions, two seeds.
    assert "0 of 24 cells done" in capsys.readouterr().out
    cells = bench.stored()["cells"]
    assert {cell["data"] for cell in cells} == {"first", "first-5-clients", "second", "second-5-clients"}
    assert {cell["partition"] for cell in cells} == {"iid", "shards:1", "dirichlet:0.5"}
    bench("--scale", "full", "--pieces", "second-5-clients", "--seconds", "1000")
    assert "6 of 6 cells done" in capsys.readouterr().out
    done = [cell for cell in bench.stored()["cells"] if cell["status"] == "done"]
    assert {cell["data"] for cell in done} == {"second-5-clients"}
    configs = [yaml.safe_load(path.read_text()) for path in bench.work.rglob("config.yaml")]
    assert {config["partition"]["num_clients"] for config in configs} == {5}
    with pytest.raises(InputError, match="did you mean 'first-5-clients'"):
        bench("--scale", "full", "--pieces", "first-5-client")


@pytest.mark.parametrize(
    ("scale", "num_cells"),
    [
        ("committed", 873),
        ("final", 156),
        pytest.param("full", 2 * 6 * 5 * (6 * 19 + 2), marks=pytest.mark.slow),
    ],
)
def test_the_shipped_recipes_of_every_scale_are_valid(bench: Bench, scale: str, num_cells: int):
    parsed = bench.grid.parse(["--scale", scale])
    assert sum(len(piece.cells) for piece in bench.grid.pieces_of(bench.grid.SCALES[scale], parsed)) == num_cells
