"""The options of a prompt, and the one that a model finds most likely."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fftmoe.backbones import load_backbone, load_tokenizer, logits, prompt_text_of
from fftmoe.data import Completions, Origin, tokenize_completions
from fftmoe.evaluate import holdout
from fftmoe.tasks import common_completions, options_of
from fftmoe.tasks.options import listed_options
from fftmoe.trained.generate import answers_after, generation_metrics
from fftmoe.trained.run import GenerationSample
from language import CHAT, END, WORDS, save_language_model, tiny_language_tokenizer

FLAN = "Is it so?\n\nOPTIONS:\n- yes\n- it is not possible to tell\n- no"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (FLAN, ["yes", "it is not possible to tell", "no"]),
        (FLAN + "\nassistant\n", ["yes", "it is not possible to tell", "no"]),
        ("options:\n  - The father\n  - his son\n", ["The father", "his son"]),
        ("OPTIONS:\n- a\n- b\n\nNow another.\n\nOPTIONS:\n- c\n- d", ["c", "d"]),
        ("OPTIONS:\n- a\n- a\n- b", ["a", "b"]),
        ("OPTIONS:\n- a", []),
        ("OPTIONS:\n- a\n-\n- ", []),
        ("There are OPTIONS: a and b", []),
        ("- a\n- b", []),
        ("", []),
        ("\n" * 3000 + "options:\n" * 300, []),
    ],
)
def test_a_list_at_the_end_of_a_prompt_is_read(prompt: str, expected: list[str]):
    assert listed_options(prompt) == expected


def test_few_completions_of_a_task_are_its_options():
    assert common_completions(["no", "yes", " yes ", "no", "no", "yes"]) == ["no", "yes"]
    assert common_completions(["no", "yes", "yes", "no", "no"]) == []  # too few rows to know
    assert common_completions(["yes"] * 7) == []
    assert common_completions([str(n % 13) for n in range(130)]) == []
    assert len(common_completions([str(n % 12) for n in range(36)])) == 12


def test_a_row_has_options_only_if_its_completion_is_one():
    assert options_of(FLAN, " no ", ["a", "b"]) == ["yes", "it is not possible to tell", "no"]
    assert options_of(FLAN, "perhaps", ["a", "b"]) == []
    assert options_of("Is it so?", "a", ["a", "b"]) == ["a", "b"]
    assert options_of("Is it so?", "c", ["a", "b"]) == []


def test_a_special_token_ends_a_line_of_a_prompt():
    """A template may write `- no<|eot|>assistant`, and the last option is not called `noassistant`."""
    tokenizer = tiny_language_tokenizer()
    ids = torch.tensor([1, 4, 5, END, 13])
    assert prompt_text_of(tokenizer, ids).split("\n") == ["ash bay", "bot"]


PROMPTS = [f"say {word} {times}" for word in WORDS[:5] for times in ("once", "twice")]


def make_examples(tokenizer: Any, chat: bool) -> Completions:
    """Four rows for each of ten prompts in two tasks; the second has more completions than can be options."""
    rows = [(prompt, n) for n in range(4) for prompt in PROMPTS]
    tasks = np.array([(len(prompt) + n) % 2 for prompt, n in rows])
    few = [WORDS[(n + len(prompt)) % 3] for prompt, n in rows]
    many = [" ".join([WORDS[row % 5]] * (1 + row // 5)) for row in range(len(rows))]
    answers = [one if task == 0 else other for one, other, task in zip(few, many, tasks, strict=True)]
    return tokenize_completions(Origin("a"), [prompt for prompt, _ in rows], answers, tasks, tokenizer, 19, chat)


@pytest.mark.parametrize("template", [None, CHAT])
def test_the_answer_is_the_option_that_is_most_likely_with_its_end(tmp_path: Path, template: str | None):
    """Compared with the product of the probabilities of its tokens, one after another."""
    folder = save_language_model(tmp_path / "llama", chat_template=template)
    model, tokenizer = load_backbone(str(folder), task="causal-lm"), load_tokenizer(str(folder))
    examples = make_examples(tokenizer, template is not None)
    settings = GenerationSample(23, 3, seed=5, chat_template=template is not None)
    tasks = ["few", "many"]
    groups = {"label": [tasks[number] for number in examples.labels.tolist()]}
    found = generation_metrics(model, str(folder), examples, settings, groups)
    sample = holdout(examples, 23, 5)
    assert isinstance(sample, Completions)
    right = []
    for row in range(len(sample)):
        if sample.labels[row] == 0:
            prompt, completion = sample.text(row)
            scores = [likelihood(model, prompt.tolist(), [*ids, END]) for ids in ([4], [5], [6])]
            right.append(int(np.argmax(scores)) == int(completion[0]) - 4)
    assert found["option_accuracy"] == pytest.approx(np.mean(right), rel=1e-12)
    assert 0 < len(right) == found["with_options"] < found["generated"] == 23
    by_task = found["generated_by_label"]
    assert [*by_task] == tasks
    assert by_task["few"]["option_accuracy"] == found["option_accuracy"]
    assert "option_accuracy" not in by_task["many"]
    assert by_task["few"]["generated"] + by_task["many"]["generated"] == 23
    for name in ("exact_match", "rouge_l"):
        mean = sum(own[name] * own["generated"] for own in by_task.values()) / 23
        assert mean == pytest.approx(found[name])


def likelihood(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.inference_mode():
        scores = logits(model, {"input_ids": torch.tensor([[*prompt, *answer]])})[0].double().log_softmax(-1)
    return sum(float(scores[len(prompt) + place - 1, token]) for place, token in enumerate(answer))


def test_a_prompt_without_room_for_its_options_loses_its_beginning():
    prompt, answers = torch.arange(5), [[7, 8], [7, 8, 9, 10]]
    assert answers_after(prompt, answers, 9) == [([0, 1, 2, 3, 4], answer) for answer in answers]
    assert answers_after(prompt, answers, None) == answers_after(prompt, answers, 9)
    assert answers_after(prompt, answers, 7) == [([2, 3, 4], answer) for answer in answers]
    assert answers_after(prompt, answers, 3) == [([4], answer) for answer in answers]


def test_rows_of_nobody_count_for_no_client(tmp_path: Path):
    folder = save_language_model(tmp_path / "llama")
    model, tokenizer = load_backbone(str(folder), task="causal-lm"), load_tokenizer(str(folder))
    examples = make_examples(tokenizer, chat=False)
    owners = [("north", None, "south")[row % 3] for row in range(len(examples))]
    found = generation_metrics(model, str(folder), examples, GenerationSample(99, 2, 0), {"client": owners})
    assert found["generated"] == 40
    assert {name: own["generated"] for name, own in found["generated_by_client"].items()} == {"north": 14, "south": 13}
