"""CoNLL files are read sentence by sentence, and a line that does not fit is named."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.data.conll import CONLL_SUFFIXES, parse_conll
from fftmoe.data.read import read_folder, read_table
from fftmoe.errors import InputError
from shared_fixtures import Cli

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=4).filter(
    lambda word: word.split() == [word] and not word.startswith("#") and word != "-DOCSTART-"
)
SENTENCES = st.integers(2, 4).flatmap(
    lambda width: st.lists(st.lists(st.lists(WORDS, min_size=width, max_size=width), min_size=1), min_size=1)
)


@given(
    SENTENCES,
    st.sampled_from(["\t", " ", "  "]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", " ", "\t"]),
)
def test_what_is_written_is_read(sentences: list[list[list[str]]], between: str, end: str, blank: str):
    text = f"{end}{blank}{end}".join(end.join(between.join(row) for row in own) for own in sentences)
    width = len(sentences[0][0])
    begin = f"-DOCSTART- -X- O{end}{end}"
    for whole in (text, f"{begin}{text}{end}{end}", f"# sent_id = 7{end}# id 7{end}# a b c d e{end}{text}"):
        columns, num_rows = parse_conll(whole)
        assert num_rows == len(sentences)
        assert columns["tokens"] == [[row[0] for row in own] for own in sentences]
        assert columns["tags"] == [[row[-1] for row in own] for own in sentences]
        assert len(columns) == width


def test_the_cells_of_common_sets():
    wnut = "# id 12\tdomain=en\nNew York\tB-loc\n#\tO\n\t\nhello\tO\n"
    columns, _ = parse_conll(wnut)
    assert columns == {"tokens": [["New York", "#"], ["hello"]], "tags": [["B-loc", "O"], ["O"]]}
    columns, _ = parse_conll("-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n# SYM O O\n. . O O\n")
    assert list(columns) == ["tokens", "column 2", "column 3", "tags"]
    assert columns["column 2"] == [["NNP", "SYM", "."]]
    assert parse_conll("ash\nbay\n\ncod\n") == ({"tokens": [["ash", "bay"], ["cod"]]}, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it has no token; it needs lines"),
        ("# only a comment\n\n", "it has no token"),
        ("ash O\nbay\n", "line 2 has 1 cell and the first line with a token has 2; correct it"),
        ("ash O\nbay X O\n", "line 2 has 3 cells"),
        ("ash\tO\n\tO\n", "line 2 has 1 cell"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, text: str, words: str):
    (tmp_path / "a.conll").write_text(text)
    with pytest.raises(InputError, match=f"a\\.conll cannot be read as conll: {words}"):
        read_table(tmp_path / "a.conll")


@given(st.text())
def test_any_text_is_read_or_refused_with_a_reason(text: str):
    try:
        columns, num_rows = parse_conll(text)
    except ValueError:
        return
    assert {len(values) for values in columns.values()} == {num_rows}
    assert all(len({len(own) for own in row}) == 1 for row in zip(*columns.values(), strict=True))


def test_every_ending_is_a_split_in_any_encoding(tmp_path: Path):
    for suffix in CONLL_SUFFIXES:
        folder = tmp_path / suffix
        folder.mkdir()
        for split in ("train", "test"):
            (folder / f"{split}.{suffix}").write_text("Müller B\nging O\n")
        assert read_folder(folder)["train"].columns["tags"] == [["B", "O"]]


def test_init_run_evaluate_and_predict_take_them(
    cli: Cli, backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    lines = [f"ash N O\nbay{row} V B-x\n\n" for row in range(40)]
    (tmp_path / "a.conll").write_text("".join(lines).replace("ash", "äsh"), encoding="windows-1252")
    outcome = cli("init", "a.conll", "--model", backbone_folder)
    assert outcome.status == 0, outcome.err
    for shown in (
        "tokens in column 'tokens', tags in column 'tags'",
        "columns that are not read: 'column 2'",
        "äsh N O",
    ):
        assert shown in outcome.out
    recipe = yaml.safe_load(Path("mine.yaml").read_text())
    assert (recipe["backbone"]["task"], recipe["data"]["encoding"]) == ("token-classification", "windows-1252")
    run = cli("run", "mine.yaml", "--output", "r", "--set", "federation.rounds=1", "--set", "engine.workers=1")
    assert run.status == 0, run.err
    (tmp_path / "b.iob").write_text("".join(lines[:3]))
    assert cli("evaluate", "r", "--data", "b.iob").status == 0
    answers = [json.loads(line) for line in cli("predict", "r", "--file", "b.iob").out.splitlines()]
    assert [answer["tokens"] for answer in answers] == [["ash", f"bay{row}"] for row in range(3)]
    (tmp_path / "c.jsonl").write_text('{"tokens": ["ash", "bay"]}\n{"tokens": ["a b"]}\n')
    first, second = (json.loads(line) for line in cli("predict", "r", "--file", "c.jsonl").out.splitlines())
    assert first["tokens"] == ["ash", "bay"]
    assert second["tokens"] is None
    assert "which is not a text" in second["reason"]
