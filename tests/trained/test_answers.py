"""Every input has an answer in its place, blank or not, and equal bytes get equal answers by every way in."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fftmoe
from run_fixtures import RunLanguage, RunValues
from shared_fixtures import Cli, assert_refused
from tables import write_csv, write_jsonl, write_parquet

WORDS = ["red ash", "", "blue bay\u2028cod", "  ", "green\x0cdew", "\u00a0", "fig \x9b31m"]
CELLS = st.sampled_from(["red", "blue bay", "", " ", "\t", "\u2028", "green\x0bdew", "\u3000", "01", "null", "NA"])


@pytest.fixture(scope="module")
def run(run_values: RunValues, recipe_values: dict[str, Any]) -> Path:
    return run_values({**recipe_values, "trackers": []}).folder


def rows(cli: Cli, *arguments: object, stdin: str = "") -> list[dict[str, Any]]:
    outcome = cli("predict", *arguments, stdin=stdin)
    assert (outcome.status, outcome.err) == (0, "")
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_every_way_in_gives_the_same_answers(cli: Cli, run: Path, tmp_path: Path):
    asked = fftmoe.predict(run, WORDS)
    assert [answer["text"] for answer in asked] == WORDS
    assert [answer["label"] is None for answer in asked] == [not text.strip() for text in WORDS]
    assert {answer.get("reason") for answer in asked} == {None, "the text is empty", "the text is only white space"}
    assert rows(cli, run, "--", *WORDS) == asked
    for content in ("\n".join(WORDS), "\ufeff" + "\r\n".join(WORDS) + "\n"):
        (tmp_path / "lines.txt").write_bytes(content.encode())
        assert rows(cli, run, "--file", tmp_path / "lines.txt") == asked
        assert rows(cli, run, stdin=content) == asked
    for suffix, write in (("csv", write_csv), ("jsonl", write_jsonl), ("parquet", write_parquet)):
        write(tmp_path / f"table.{suffix}", {"id": [str(n) for n in range(len(WORDS))], "text": WORDS})
        assert rows(cli, run, "--file", tmp_path / f"table.{suffix}") == asked


def test_a_reader_of_lines_finds_one_line_for_each_answer_and_a_terminal_no_escape(cli: Cli, run: Path):
    out = cli("predict", run, "--", *WORDS).out
    assert len(out.splitlines()) == len(WORDS)  # also by U+2028 and the other line ends of Python
    assert not set(out) & {"\x9b", "\u2028", "\x0c"}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CELLS | st.none(), min_size=1, max_size=5))
def test_answers_keep_the_places_of_their_inputs(run: Path, texts: list[str | None]):
    answers = fftmoe.predict(run, texts)
    assert [answer["text"] for answer in answers] == texts
    for text, answer in zip(texts, answers, strict=True):
        if text is None or not text.strip():
            assert answer["label"] is answer["score"] is None
            assert answer["reason"]
        else:
            assert set(answer) == {"text", "label", "score"}
            (alone,) = fftmoe.predict(run, [text])
            assert alone["label"] == answer["label"]
            assert math.isclose(alone["score"], answer["score"], rel_tol=1e-5)


def test_a_row_without_a_value_is_answered_with_a_reason(cli: Cli, run: Path, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "red"}\n{"id": 3}\n')
    found = rows(cli, run, "--file", tmp_path / "a.jsonl", "--scores")
    assert [answer["text"] for answer in found] == [None, "red", None]
    assert found[0] == {"text": None, "label": None, "score": None, "scores": None, "reason": "there is no text"}
    (tmp_path / "a.jsonl").write_text('{"text": "red"}\n{"text": 1}\n')
    first, second = rows(cli, run, "--file", tmp_path / "a.jsonl")
    assert first["label"] is not None
    assert (second["label"], second["reason"]) == (None, "the column 'text' holds 1, which is not a text")


def test_inputs_that_are_no_texts_are_named(cli: Cli, run: Path, tmp_path: Path):
    with pytest.raises(fftmoe.InputError, match="input 2 is 3, which is not a text"):
        fftmoe.predict(run, ["red", 3])  # type: ignore[list-item]
    with pytest.raises(fftmoe.InputError, match="the inputs are one text, 'red'; pass a list"):
        fftmoe.predict(run, "red")
    assert_refused(cli("predict", run, "red\udcff"), "input 1", "no text in UTF-8")
    (tmp_path / "a.txt").write_bytes(b"red\n\xff\n")
    assert_refused(cli("predict", run, "--file", tmp_path / "a.txt"), "a.txt", "line 2 is not UTF-8")
    (tmp_path / "a.txt").write_bytes(b"")
    assert_refused(cli("predict", run, "--file", tmp_path / "a.txt"), "there is no text")


def test_a_language_model_answers_a_blank_prompt(run_language: RunLanguage):
    found = fftmoe.predict(run_language().folder, ["", "a b", None], max_new_tokens=2)
    assert [answer["completion"] is None for answer in found] == [True, False, True]
    assert found[2] == {"prompt": None, "completion": None, "reason": "there is no text"}


def test_a_file_in_another_encoding_is_read_when_a_person_says_which(cli: Cli, run: Path, tmp_path: Path):
    """That of the run's data is not taken for it: other files come from other programs."""
    (tmp_path / "new.csv").write_bytes("text\nréd äsh\nbåy\n".encode("windows-1252"))
    (tmp_path / "new.txt").write_bytes("réd äsh\nbåy\n".encode("windows-1252"))
    asked = fftmoe.predict(run, ["réd äsh", "båy"])
    for name in ("new.csv", "new.txt"):
        refused = cli("predict", run, "--file", tmp_path / name)
        assert_refused(refused, name, "is not UTF-8", "'réd äsh'; if that is right: --encoding windows-1252")
        assert rows(cli, run, "--file", tmp_path / name, "--encoding", "windows-1252") == asked
        assert fftmoe.predict(run, file=tmp_path / name, encoding="windows-1252") == asked
        assert_refused(cli("predict", run, "--file", tmp_path / name, "--encoding", "rot13"), "rot13", "no encoding")


def test_other_data_is_measured_in_the_encoding_that_a_person_names(cli: Cli, run: Path, tmp_path: Path):
    content = "text,label\n" + "".join(f"äsh {label},{label}\n" for label in ("red", "blue"))
    (tmp_path / "a.csv").write_bytes(content.encode("windows-1252"))
    (tmp_path / "b.csv").write_bytes(content.encode())
    assert_refused(cli("evaluate", run, "--data", tmp_path / "a.csv"), "if that is right: --encoding windows-1252")
    found = [
        json.loads(cli("evaluate", run, "--data", tmp_path / name, *options).out)
        for name, options in (("a.csv", ("--encoding", "windows-1252")), ("b.csv", ()))
    ]
    assert found[0] == found[1]
    assert_refused(cli("evaluate", run, "--encoding", "windows-1252"), "--encoding", "add --data")
