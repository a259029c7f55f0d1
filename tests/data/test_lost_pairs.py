"""Of pairs of answers it is counted what is cut, what is in both splits, and which pairs say nothing."""

import numpy as np
import torch

from fftmoe.data import cut_notes, shared_notes
from fftmoe.data.completions import Completions
from fftmoe.data.lost import contents, equal_notes
from fftmoe.data.preferences import Preferences
from fftmoe.data.tokens import TokenizedText, flat_texts


def texts(rows: list[list[int]]) -> TokenizedText:
    return flat_texts([np.array(row, dtype=np.int32) for row in rows], np.zeros(len(rows)), 0)


def pairs(chosen: list[list[int]], rejected: list[list[int]]) -> Preferences:
    answers = texts([*chosen, *rejected])
    ends = torch.ones(len(answers), dtype=torch.int64)
    return Preferences(Completions(answers, ends), torch.zeros(len(chosen), 2))


PAIRS = pairs([[1, 2], [1, 3, 3], [1, 4]], [[1, 5], [1, 3, 3], [1, 6, 7]])


def test_the_content_of_a_pair_is_that_of_both_texts():
    found = list(contents(PAIRS))
    assert found == [
        np.array(row, dtype=np.int32).tobytes() for row in ([1, 2, 1, 5], [1, 3, 3, 1, 3, 3], [1, 4, 1, 6, 7])
    ]
    assert shared_notes(PAIRS, pairs([[1, 2]], [[1, 5]])) == (
        "1 of 1 test row is also a training row, so a result on such rows says little of new data",
    )
    assert shared_notes(PAIRS, pairs([[1, 2]], [[1, 6]])) == ()


def test_texts_of_pairs_that_are_as_long_as_the_limit_are_counted():
    assert cut_notes("training", PAIRS, 3)[0].startswith(
        "training rows: in 3 of 6 texts there are data.max_length=3 tokens"
    )
    assert cut_notes("training", PAIRS, 4) == ()


def test_what_is_cut_depends_on_whether_there_are_prompts():
    plain = Completions(texts([[1, 2, 3]]), torch.tensor([0]))
    assert cut_notes("training", plain, 3)[0].endswith("tokens or more; what is beyond is not read")
    for starts in ([1, 0], [2, 2]):
        prompted = Completions(texts([[1, 2, 3], [1, 2, 3]]), torch.tensor(starts))
        assert "of longer ones the beginning of the prompt" in cut_notes("training", prompted, 3)[0]


def test_pairs_with_equal_answers_are_counted():
    assert equal_notes("training", PAIRS) == (
        "training rows: in 1 of 3 pairs both answers are equal, as the model reads them, which says nothing of a "
        "preference",
    )
    assert equal_notes("training", pairs([[1, 2]], [[1, 3]])) == ()
    assert equal_notes("training", texts([[1, 2], [1, 2]])) == ()
