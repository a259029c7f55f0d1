"""Rows that are cut, or that are in both splits, are counted for people."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.data import ImageExamples, TargetedText, cut_notes, shared_notes
from fftmoe.data.lost import count_shared
from fftmoe.data.tokens import TokenizedText, flat_texts
from fftmoe.shown import count_of
from run_fixtures import RunTiny

ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=11)


def texts(rows: list[list[int]]) -> TokenizedText:
    return flat_texts([np.array(row, dtype=np.int32) for row in rows], np.zeros(len(rows)), 0)


@given(ROWS, ROWS)
def test_a_test_row_is_shared_if_its_tokens_are_a_training_row(train: list[list[int]], test: list[list[int]]):
    expected = sum(row in train for row in test)
    assert count_shared(texts(train), texts(test)) == expected
    targets = torch.zeros(len(test), 1)  # whatever the answers are
    assert count_shared(texts(train), TargetedText(texts(test), targets)) == expected
    assert bool(shared_notes(texts(train), texts(test))) == (expected > 0)


def test_images_are_shared_if_their_pixels_are():
    pixels = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (7, 3, 5, 11), dtype=np.uint8))
    form: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "scale": 1.0}
    train = ImageExamples(pixels[:5], torch.zeros(5, dtype=torch.int64), **form)
    changed = pixels[1:2].clone()
    changed[0, 2, 4, 10] ^= 1
    for held, expected in ((pixels[3:], 2), (pixels[5:], 0), (changed, 0)):
        test = ImageExamples(held, torch.zeros(len(held), dtype=torch.int64), **form)
        assert count_shared(train, test) == expected
        assert cut_notes("test", test, 1) == ()


@given(ROWS, st.integers(1, 5))
def test_texts_as_long_as_the_limit_are_counted(rows: list[list[int]], limit: int):
    full = sum(len(row) >= limit for row in rows)
    notes = cut_notes("training", texts(rows), limit)
    assert bool(notes) == (full > 0)
    if full:
        assert notes[0].startswith(
            f"training rows: in {full} of {count_of(len(rows), 'text')} there are data.max_length={limit} tokens"
        )


def test_a_run_says_what_is_cut_in_the_terminal_the_summary_and_the_report(run_tiny: RunTiny):
    finished = run_tiny("data.max_length=6")
    cut = [note for note in finished.summary["notes"] if "data.max_length=6" in note]
    assert [note.split()[0] for note in cut] == ["training", "test"]
    report = (finished.folder / "report.html").read_text()
    for note in cut:
        assert f"warning: {note}" in finished.outcome.out
        assert note[1:] in report
