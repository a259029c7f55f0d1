"""The builtin set of preferences."""

import hashlib
import os
import subprocess
import sys

import pytest

from fftmoe.data import sources
from fftmoe.data.sources import BUILTIN_SETS, read_raw
from fftmoe.data.stdlib_docs import stdlib_docs
from fftmoe.data.stdlib_preferences import PreferenceRow, stdlib_preferences

ASKED = "Complete this sentence about Python's module {}: "


@pytest.fixture(scope="module")
def rows() -> dict[str, list[PreferenceRow]]:
    return stdlib_preferences()


def test_the_chosen_answer_ends_its_text_and_the_rejected_one_does_not_fit_or_does_not_stop(
    rows: dict[str, list[PreferenceRow]],
):
    for split, texts in stdlib_docs().items():
        of_module: dict[str, set[str]] = {}
        for text, _, module in texts:
            of_module.setdefault(module, set()).add(text)
        goes_on = 0
        for row in rows[split]:
            begin, others = row.prompt.removeprefix(ASKED.format(row.module)), of_module[row.module]
            assert f"{begin} {row.chosen}" in others
            assert f"{begin} {row.rejected}" not in others
            if row.rejected.startswith(f"{row.chosen} "):
                assert row.rejected.removeprefix(f"{row.chosen} ") in others - {f"{begin} {row.chosen}"}
                goes_on += 1
            else:
                assert any(text.endswith(f" {row.rejected}") for text in others)
        assert 0.4 < goes_on / len(rows[split]) < 0.6


def test_there_are_rows_for_many_clients_and_no_prompt_is_in_both_splits(rows: dict[str, list[PreferenceRow]]):
    assert len(rows["train"]) > 2000
    assert len(rows["test"]) > 400
    chapters = {row.label for row in rows["train"]}
    assert len(chapters) >= 15
    assert {row.label for row in rows["test"]} <= chapters
    prompts = [{(row.prompt, row.chosen) for row in rows[split]} for split in ("train", "test")]
    assert not prompts[0] & prompts[1]


def test_the_source_has_the_columns_of_a_preference(
    rows: dict[str, list[PreferenceRow]], monkeypatch: pytest.MonkeyPatch
):
    made = BUILTIN_SETS["stdlib-preferences"]._replace(rows=lambda: rows)  # they need not be made again
    monkeypatch.setattr(sources, "BUILTIN_SETS", {"stdlib-preferences": made})
    tables = read_raw("builtin:stdlib-preferences").splits
    assert set(tables) == {"train", "test"}
    assert tuple(tables["train"].columns) == PreferenceRow._fields == BUILTIN_SETS["stdlib-preferences"].columns


@pytest.mark.slow
def test_the_rows_are_the_same_in_another_process(rows: dict[str, list[PreferenceRow]]):
    code = (
        "import hashlib\n"
        "from fftmoe.data.stdlib_preferences import stdlib_preferences\n"
        "rows = [[tuple(row) for row in own] for own in stdlib_preferences().values()]\n"
        "print(hashlib.sha256(repr(rows).encode()).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    own = [[tuple(row) for row in part] for part in rows.values()]
    assert there == hashlib.sha256(repr(own).encode()).hexdigest()
