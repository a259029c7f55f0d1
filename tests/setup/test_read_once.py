"""Data that was read to complete a recipe is not read again by the run, the plan or `init`."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fftmoe
import fftmoe.data.read
from fftmoe.data import ReadAhead, TextEncoding, read_tables
from fftmoe.data.sources import SplitRequest, read_raw
from fftmoe.errors import InputError
from shared_fixtures import Cli
from tables import write_csv, write_jsonl

COLUMNS = {"text": [f"ash {n}" for n in range(60)], "label": ["ab"[n % 2] for n in range(60)]}
SMALL = (
    *("federation.rounds=1", "federation.local_steps=1", "federation.clients_per_round=2", "evaluation.baselines=off"),
    *("head.num_features=31", "engine.workers=1", "adapter.num_experts=3", "adapter.blocks=last-1"),
)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file of data is parsed."""
    times: Counter[str] = Counter()

    def counting(suffix: str) -> Callable[[Path, TextEncoding], Any]:
        parse = fftmoe.data.read.TABLE_READERS[suffix]

        def read(path: Path, encoding: TextEncoding) -> Any:
            times[path.name] += 1
            return parse(path, encoding)

        return read

    monkeypatch.setattr("fftmoe.data.read.TABLE_READERS", {suffix: counting(suffix) for suffix in ("csv", "jsonl")})
    return times


def one_table(folder: Path) -> tuple[Path, list[str]]:
    write_csv(folder / "notes.csv", COLUMNS)
    return folder / "notes.csv", ["notes.csv"]


def two_splits(folder: Path) -> tuple[Path, list[str]]:
    for split in ("train", "test"):
        write_jsonl(folder / f"{split}.jsonl", COLUMNS)
    return folder, ["train.jsonl", "test.jsonl"]


def a_table_each(folder: Path) -> tuple[Path, list[str]]:
    for site in ("north", "south"):
        write_csv(folder / f"{site}.csv", COLUMNS)
    return folder, ["north.csv", "south.csv"]


KINDS = [one_table, two_splits, a_table_each]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("verb", ["run", "plan", "plan --measure", "init", "python"])
def test_every_file_is_read_once(
    cli: Cli, tmp_path: Path, opened: Counter[str], backbone_folder: Path, verb: str, make: Callable[[Path], Any]
):
    (tmp_path / "data").mkdir()
    source, names = make(tmp_path / "data")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"data: {{source: {source}}}\nbackbone: {{model: {backbone_folder}}}\n")
    settings = [part for override in SMALL for part in ("--set", override)]
    if verb == "python":
        fftmoe.run(recipe, tmp_path / "out", SMALL)
    elif verb == "init":
        assert cli("init", source, "--model", backbone_folder, "--output", tmp_path / "mine.yaml").status == 0
    else:
        rest = ("--output", tmp_path / "out") if verb == "run" else ()
        outcome = cli(*verb.split(), recipe, *settings, *rest)
        assert outcome.status == 0, outcome.err
    assert opened == dict.fromkeys(names, 1)


def test_what_was_read_is_handed_over_once(tmp_path: Path, opened: Counter[str]):
    source, _ = one_table(tmp_path)
    ahead = ReadAhead(read_raw(str(source)))
    first, second = (ahead.take(str(source)) for _ in range(2))
    assert first is not second
    assert opened == {"notes.csv": 2}


def test_another_source_is_read(tmp_path: Path):
    source, _ = one_table(tmp_path)
    write_csv(tmp_path / "other.csv", {"text": ["cod"] * 40, "label": ["c", "d"] * 20})
    request = SplitRequest(read_ahead=ReadAhead(read_raw(str(source))))
    tables = read_tables(str(tmp_path / "other.csv"), {"data.label": ["label"]}, request=request)
    assert set(tables["train"].columns["label"]) == {"c", "d"}


def test_a_split_that_is_missing_is_named_although_the_rest_was_read(tmp_path: Path):
    write_csv(tmp_path / "train.csv", COLUMNS)
    for request in (SplitRequest(), SplitRequest(read_ahead=ReadAhead(read_raw(str(tmp_path))))):
        with pytest.raises(InputError, match=r"the folder .* has no test split \(it has train\)"):
            read_tables(str(tmp_path), {"data.label": ["label"]}, request=request)
