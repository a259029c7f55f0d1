"""A number that is not finite, or a mean over nothing, is never taken for an answer."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.backbones import continue_greedily, load_backbone
from fftmoe.data import IGNORED
from fftmoe.errors import RunError
from fftmoe.evaluate import accuracy, mean_and_worst_decile, predict_logits, tally
from fftmoe.rng import generator
from fftmoe.strict import json_text
from fftmoe.tasks import (
    CausalLm,
    Classification,
    MultiLabel,
    PerToken,
    Regression,
    Task,
    TokenClassification,
)
from language import END, PAD, save_language_model
from models import token_examples

NOT_FINITE = (math.nan, math.inf, -math.inf)
B, S, C = 5, 7, 3
Labels = Callable[[torch.Generator], Tensor]


def _tokens(source: torch.Generator) -> Tensor:
    """Labels of which every row has some, and of which the last position of every row has none."""
    labels_BS = torch.randint(0, C, (B, S), generator=source)
    labels_BS[:, -1] = IGNORED
    return labels_BS


# The task, the shape of its logits, its labels, and a position whose logits judge row 2.
JUDGED: dict[str, tuple[Task, tuple[int, ...], Labels, tuple[int, ...]]] = {
    "class": (Classification(), (B, C), lambda source: torch.randint(0, C, (B,), generator=source), (2,)),
    "labels": (MultiLabel(), (B, C), lambda source: torch.randint(0, 2, (B, C), generator=source).float(), (2,)),
    "numbers": (Regression(), (B, C), lambda source: torch.randn(B, C, generator=source), (2,)),
    "tags": (TokenClassification(), (B, S, C), _tokens, (2, 3)),
    "tokens": (CausalLm(), (B, S, 1), _tokens, (2, 3)),  # what it reads is one loss for each token
}


@pytest.mark.parametrize(("name", "value"), [*itertools.product(JUDGED, NOT_FINITE)])
def test_an_example_has_finite_statistics_unless_a_logit_that_judges_it_is_not_finite(name: str, value: float):
    task, shape, labels, place = JUDGED[name]
    source = generator(3, "judged", name)
    clean, batch = torch.randn(shape, generator=source), {"labels": labels(source)}
    broken = clean.clone()
    broken[place] = torch.tensor([0.5, value, 0.25]) if shape[-1] == C else value
    clean, broken = (outputs.squeeze(-1) if task.next_token else outputs for outputs in (clean, broken))
    assert task.statistics(clean, batch).isfinite().all()
    found = task.statistics(broken, batch).isfinite().all(1)
    assert found.tolist() == [True, True, False, True, True]


def test_logits_that_judge_nothing_may_be_anything():
    """Those of the last position of a row, which has no tag; a language model makes no logits there."""
    task, shape, labels, _ = JUDGED["tags"]
    source = generator(3, "judged", "tags")
    logits, batch = torch.randn(shape, generator=source), {"labels": labels(source)}
    expected = task.statistics(logits, batch)
    logits[:, -1] = math.nan
    assert torch.equal(task.statistics(logits, batch), expected)


def break_one(model: Any) -> None:
    """Make one weight of the head NaN, which reaches one logit of every example."""
    model.get_parameter("classifier.weight").data[1, 2] = math.nan


def test_a_model_whose_outputs_are_not_finite_is_neither_measured_nor_asked(backbone_folder: Path):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(23, seed=2)
    assert predict_logits(model, examples).isfinite().all()
    break_one(model)
    for ask in (lambda: tally(model, Classification(), examples, 3), lambda: accuracy(model, examples)):
        with pytest.raises(RunError, match=r"not finite numbers for 23 of 23 examples .* lower federation"):
            ask()


def test_a_language_model_whose_logits_are_not_finite_writes_nothing(tmp_path: Path):
    model = load_backbone(str(save_language_model(tmp_path)), task="causal-lm")
    prompts = [torch.tensor([1, 5, 7]), torch.tensor([1, 4])]
    assert len(continue_greedily(model, prompts, 3, end_ids=[END], pad_id=PAD)) == 2
    model.get_parameter("lm_head.weight").data[6] = math.nan
    with pytest.raises(RunError, match="not finite numbers for 2 of 2 examples"):
        continue_greedily(model, prompts, 3, end_ids=[END], pad_id=PAD)


@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, S), min_size=1, max_size=B),
)
def test_the_loss_of_tokens_is_that_of_torch_and_zero_where_there_is_none(seed: int, lengths: list[int]):
    source = generator(seed, "loss")
    labels_BS = torch.full((len(lengths), S), IGNORED)
    for row, length in enumerate(lengths):
        labels_BS[row, :length] = torch.randint(0, C, (length,), generator=source)
    logits_BSC = torch.randn(*labels_BS.shape, C, generator=source).requires_grad_()
    loss = PerToken().loss(logits_BSC, labels_BS)
    (grad,) = torch.autograd.grad(loss, logits_BSC)
    if (labels_BS == IGNORED).all():
        assert loss == 0
        assert not grad.any()
        return
    expected = F.cross_entropy(logits_BSC.flatten(0, 1), labels_BS.flatten(), ignore_index=IGNORED)
    (wanted,) = torch.autograd.grad(expected, logits_BSC)
    # The same sum, divided by the same count; a processor may divide the sum or its parts.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-9)


def test_f1_of_texts_without_any_label_is_one_where_none_is_predicted():
    task = MultiLabel()
    nothing = task.statistics(torch.full((2, C), -1.0), {"labels": torch.zeros(2, C)}).numpy().sum(0)
    assert task.metrics(nothing) == {"f1": 1.0, "macro_f1": 1.0, "exact_match": 1.0}
    wrong = task.statistics(torch.full((2, C), 1.0), {"labels": torch.zeros(2, C)}).numpy().sum(0)
    assert task.metrics(wrong) == {"f1": 0.0, "macro_f1": 0.0, "exact_match": 0.0}
    assert all(np.isnan(value) for value in task.metrics(0 * nothing).values())  # no text at all


def test_a_spread_over_clients_of_which_nothing_is_known_is_empty():
    assert mean_and_worst_decile([math.nan, math.nan]) == {}
    assert mean_and_worst_decile([]) == {}
    assert mean_and_worst_decile([math.nan, 0.25]) == {"mean": 0.25, "worst_decile": 0.25}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda own: st.lists(own) | st.dictionaries(st.text(), own),
    max_leaves=11,
)


def _without_broken(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_broken(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_without_broken(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(PLAIN, st.booleans(), st.sampled_from([None, 2]))
def test_written_json_is_strict_whatever_the_values(value: Any, ascii_only: bool, indent: int | None):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = json_text(value, indent, ascii_only)
    assert json.loads(text, parse_constant=refuse) == _without_broken(value)
    assert text.isascii() or not ascii_only
    assert indent is not None or "\n" not in text
