"""How prompts are written: decided by the model unless the recipe says it, said, and the same everywhere."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from fftmoe.backbones import generate, load_tokenizer
from fftmoe.cli.answers import LineInPieces, answer_line
from fftmoe.config import complete_recipe, load_recipe
from fftmoe.config.defaults import fill_in
from fftmoe.setup.finished import recipe_of
from fftmoe.setup.load import load_split
from fftmoe.trained import complete
from finished import Finished
from language import CHAT, WORDS, language_recipe, save_language_model, save_prompts
from shared_fixtures import Cli, assert_refused

ON = "prompts: messages, written with the chat template of"
OFF = "prompts: plain text (data.chat_template=false); the tokenizer of"
BROKEN = "{{ raise_exception('only images') }}"


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Recipes that leave the template to its default, by what the model has."""
    folder = tmp_path_factory.mktemp("forms")
    data = save_prompts(folder / "data")
    templates = {"with": CHAT, "without": None, "broken": BROKEN}
    made = {
        name: language_recipe(save_language_model(folder / name, chat_template=template), data)
        for name, template in templates.items()
    }
    return {name: {**values, "federation": {**values["federation"], "rounds": 1}} for name, values in made.items()}


@pytest.fixture(scope="module")
def plain_run(cli: Cli, recipes: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the model without a template."""
    folder = tmp_path_factory.mktemp("plain")
    assert cli("run", write(folder, recipes["without"]), "--output", folder / "run").status == 0
    return folder / "run"


def changed(values: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {**values, "data": {**values["data"], **data}}


@pytest.mark.parametrize(("name", "expected"), [("with", True), ("without", False), ("broken", False)])
def test_the_model_decides_whether_prompts_are_messages(recipes: dict[str, Any], name: str, expected: bool):
    values = recipes[name]
    assert load_recipe(values).data.chat_template is expected
    for stated in (True, False):
        assert load_recipe(changed(values, chat_template=stated)).data.chat_template is stated
    written = fill_in(load_recipe(values).model_dump(mode="json", exclude_none=True))
    assert written.values["data"]["chat_template"] is expected


def test_nothing_is_said_of_a_template_without_prompts(recipes: dict[str, Any]):
    values = recipes["with"]
    texts = {"source": values["data"]["source"], "text": "text"}
    assert load_recipe({**values, "data": texts}).data.chat_template is False
    missing = {**values, "backbone": {"model": "/nowhere", "task": "causal-lm"}}
    assert load_recipe(missing).data.chat_template is False  # the run says what is wrong with the model


def test_sites_and_server_agree_wherever_the_model_is(recipes: dict[str, Any]):
    """A site reviews a recipe perhaps before it has the model, and its digest must be that of the server."""
    values = recipes["with"]
    elsewhere = {**values, "backbone": {"model": "somewhere/else", "task": "causal-lm"}}
    for own in (values, elsewhere):
        assert load_recipe(own, may_read=False).data.chat_template is False
    cell, _ = complete_recipe(values, "a cell", may_read=False, may_load=True)
    assert cell.data.chat_template is True


@pytest.mark.parametrize(("name", "expected"), [("with", True), ("without", False)])
def test_a_recipe_that_init_writes_means_the_same_over_sites(
    cli: Cli, recipes: dict[str, Any], tmp_path: Path, name: str, expected: bool
):
    rows = [{"prompt": f"say {WORDS[n % 5]}", "completion": WORDS[n % 5], "client": "ab"[n % 2]} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("--model", recipes[name]["backbone"]["model"], "--output", tmp_path / "own.yaml")
    outcome = cli("init", tmp_path / "rows.jsonl", *asked)
    assert outcome.status == 0, outcome.err
    assert (ON if expected else OFF) in outcome.out
    sites = load_recipe(tmp_path / "own.yaml", may_read=False)
    assert sites == load_recipe(tmp_path / "own.yaml")
    assert sites.data.chat_template is expected


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("name", "stated", "said"),
    [
        ("with", {}, ON),
        ("with", {"chat_template": False}, "can write them as messages (data.chat_template=true)"),
        ("without", {}, "has no chat template"),
        ("broken", {}, "has a chat template that takes no question and answer as texts"),
    ],
)
def test_plan_run_and_predict_say_how_prompts_are_written(
    cli: Cli, recipes: dict[str, Any], tmp_path: Path, name: str, stated: dict[str, Any], said: str
):
    values = changed(recipes[name], **stated)
    planned = cli("plan", write(tmp_path, values))
    ran = cli("run", tmp_path / "recipe.yaml", "--output", tmp_path / "run")
    asked = cli("predict", tmp_path / "run", "say ash", "--max-new-tokens", 2)
    for outcome, text in ((planned, planned.out), (ran, ran.out), (asked, asked.err)):
        assert outcome.status == 0, outcome.err
        (line,) = (line for line in text.splitlines() if line.startswith("prompts: "))
        assert line.startswith(ON if said == ON else OFF)
        assert said in line
        assert values["backbone"]["model"] in line
    as_json = cli("plan", tmp_path / "recipe.yaml", "--json")
    assert json.loads(as_json.out)["rounds"] == 1
    assert as_json.err.startswith("prompts: ")


@pytest.mark.parametrize("name", ["with", "without"])
def test_training_and_predict_read_the_same_prompt(
    cli: Cli, recipes: dict[str, Any], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    assert cli("run", write(tmp_path, recipes[name]), "--output", tmp_path / "run").status == 0
    recipe, seen = recipe_of(tmp_path / "run"), []
    continued = complete.continuations

    def noted(model: Any, prompts: Any, *arguments: Any, **options: Any) -> Any:
        seen.extend(ids.tolist() for ids in prompts)
        return continued(model, prompts, *arguments, **options)

    monkeypatch.setattr(complete, "continuations", noted)
    table = Path(recipe.data.source) / "test.csv"
    assert cli("predict", tmp_path / "run", "--file", table, "--max-new-tokens", 2).status == 0
    examples: Any = load_split(recipe, "test", ())
    assert seen == [examples.text(row)[0].tolist() for row in range(23)]
    tokenizer: Any = load_tokenizer(recipe.backbone.model)
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert f"- prompts: {'messages' if name == 'with' else 'plain text'}," in card
    assert tokenizer.decode(seen[0]).startswith("user say" if name == "with" else "<s> say")


def test_conversations_are_read_from_a_file_as_in_training(
    cli: Cli, recipes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of several messages, with the role of each."""
    talks = [
        [("user", "say ash"), ("assistant", "ash"), ("user", f"say {word}"), ("assistant", word)]
        for word in ("bay", "cod", "dew", "elm") * 5
    ]
    for split in ("train", "test"):
        lines = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = changed(recipes["with"], source=str(tmp_path / "data"))
    assert cli("run", write(tmp_path, values), "--output", tmp_path / "run").status == 0
    seen, continued = [], complete.continuations

    def noted(model: Any, prompts: Any, *arguments: Any, **options: Any) -> Any:
        seen.extend(ids.tolist() for ids in prompts)
        return continued(model, prompts, *arguments, **options)

    monkeypatch.setattr(complete, "continuations", noted)
    asked = cli("predict", tmp_path / "run", "--file", tmp_path / "data" / "test.jsonl", "--max-new-tokens", 2)
    assert asked.status == 0, asked.err
    examples: Any = load_split(recipe_of(tmp_path / "run"), "test", ())
    assert seen == [examples.text(row)[0].tolist() for row in range(20)]


def test_a_template_is_refused_where_there_is_none(cli: Cli, recipes: dict[str, Any], tmp_path: Path):
    asked = write(tmp_path, changed(recipes["without"], chat_template=True))
    refused = cli("run", asked, "--output", tmp_path / "run")
    assert refused.status == 2
    assert "prompts: " not in refused.out
    assert refused.err.startswith("fftmoe: data.chat_template=true, but the tokenizer of")
    assert "has no chat template; set data.chat_template=false" in refused.err
    assert not (tmp_path / "run").exists()


def test_cut_prompts_are_counted(cli: Cli, plain_run: Path, caplog: pytest.LogCaptureFixture):
    long = " ".join(["say"] * 23)
    outcome = cli("predict", plain_run, "say ash", long, long, "--max-new-tokens", 2)
    assert outcome.status == 0
    assert "the run cuts 2 of 3 prompts, at 19 tokens" in caplog.text
    assert "their beginning is not read" in caplog.text
    assert [json.loads(line)["prompt"] for line in outcome.out.splitlines()] == ["say ash", long, long]


class Terminal(io.StringIO):
    """Standard output that notes every write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str, /) -> int:
        self.writes.append(text)
        return super().write(text)


def test_one_prompt_on_a_terminal_is_answered_while_the_model_writes(
    cli: Cli, plain_run: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the end the line is the one that a pipe gets; several prompts, and files, have whole lines."""
    asked = ("predict", plain_run, "say ash", "--max-new-tokens", 13, "--temperature", 1, "--seed", 3)
    expected = cli(*asked).out
    monkeypatch.setattr("fftmoe.cli.use.on_terminal", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    from fftmoe.cli.app import main

    main(list(map(str, asked)))
    assert terminal.getvalue() == expected
    assert json.loads(expected)["completion"]
    assert len([text for text in terminal.writes if text]) > 3
    several = cli("predict", plain_run, "say ash", "say bay", "--max-new-tokens", 2)
    assert [json.loads(line)["prompt"] for line in several.out.splitlines()] == ["say ash", "say bay"]


def test_a_row_is_written_as_soon_as_its_batch_is_done(plain_run: Path, monkeypatch: pytest.MonkeyPatch):
    continued, at_batch = generate.continue_batch, []
    monkeypatch.setattr("sys.stdout", terminal := Terminal())

    def noted(*arguments: Any) -> Any:
        at_batch.append(terminal.getvalue().count("\n"))
        return continued(*arguments)

    monkeypatch.setattr(generate, "continue_batch", noted)
    from fftmoe.cli.app import main

    prompts = ["say ash", "", "say bay once say", "say cod", "say dew twice", "say elm"]
    main(["predict", str(plain_run), *prompts, "--batch-size", "2", "--max-new-tokens", "2"])
    assert at_batch == [0, 3, 5]  # the blank prompt is in no batch
    assert [json.loads(line)["prompt"] for line in terminal.getvalue().splitlines()] == prompts


def test_a_line_in_pieces_is_the_line_whatever_the_text(monkeypatch: pytest.MonkeyPatch):
    for text in ('a "quoted"\n石 \x1b[31m \u202e', "", "\\", "plain"):
        for ascii_only in (True, False):
            monkeypatch.setattr("sys.stdout", terminal := Terminal())
            row, line = {"prompt": 'say "\x9b"', "completion": text}, LineInPieces('say "\x9b"', ascii_only)
            for letter in text[:-1]:
                line.add(letter)
            assert terminal.getvalue() + line.rest(row) == answer_line(row, ascii_only)
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    line = LineInPieces("a", True)
    line.add("begun")
    failed = {"prompt": "a", "completion": None, "reason": "no answer"}
    assert terminal.getvalue() + line.rest(failed) == '{"prompt": "a", "completion": "begun\n' + answer_line(
        failed, True
    )


@pytest.mark.parametrize("option", ["--temperature", "--top-p"])
def test_drawing_is_refused_where_it_has_no_meaning(cli: Cli, tiny_run: Finished, option: str):
    assert_refused(
        cli("predict", tiny_run.folder, "red", option, 0.5), option.strip("-").replace("-", "_").split("_")[0]
    )
