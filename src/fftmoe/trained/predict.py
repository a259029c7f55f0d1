"""Ask the model of a finished run: labels of texts and images, numbers, tags of words, and completions of prompts."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fftmoe.errors import InputError
from fftmoe.evaluate import predict_logits
from fftmoe.head import make_head
from fftmoe.tasks import make_task
from fftmoe.trained.complete import complete
from fftmoe.trained.inputs import Inputs, unlabelled_texts
from fftmoe.trained.run import FinishedRun, TrainedModel
from fftmoe.trained.tag import tag_words

Answer = dict[str, Any]

SCORED = ("sequence-classification", "image-classification", "multi-label-classification")


def check_request(run: FinishedRun, batch_size: int, scores: bool) -> None:
    """Check what is asked of a run before its model is loaded.

    Raises:
        InputError: the batch size is below 1, or the task has no scores.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is below 1; set it to at least 1")
    if scores and run.task not in SCORED:
        raise InputError(f"a run of task {run.task} gives no label, so there is no score; leave --scores out")


def predict(trained: TrainedModel, inputs: Inputs, batch_size: int, scores: bool, max_new_tokens: int) -> list[Answer]:
    """The answer of a trained model to each input.

    Args:
        scores: add the scores of all labels, `{"scores": {label: score}}`.
        max_new_tokens: the longest completion of a language model, in tokens.

    Returns:
        For one label of several `{"text" | "image", "label", "score"}`, whose scores sum to 1 over the labels; for any
        number of labels `{"text", "labels"}`, those with a score above 0.5; for regression `{"text", "values":
        {target: number}}`; for token classification `{"text", "tokens", "tags"}`; for a language model `{"prompt",
        "completion"}`, the completion being greedy.

    Raises:
        InputError: a prompt and its completion are longer than the model can read.
    """
    run = trained.run
    if run.is_language_model:
        return complete(trained, inputs.names, max_new_tokens, batch_size)
    if make_task(run.task).by_token:
        return tag_words(trained, inputs.names, batch_size)
    kind = "text" if inputs.images is None else "image"
    examples = unlabelled_texts(run, inputs.names) if inputs.images is None else inputs.images
    logits = predict_logits(trained.model, examples, batch_size)
    answer = ANSWERS[run.task]
    return [{kind: name, **answer(run, row, scores)} for name, row in zip(inputs.names, logits, strict=True)]


def _answer_label(run: FinishedRun, logits_C: Tensor, scores: bool) -> Answer:
    """The most probable of C labels."""
    assert run.head is not None, "a task with one label has a head"
    probs, best = make_head(run.head).probabilities(logits_C), int(logits_C.argmax())
    return {"label": run.label_names[best], "score": float(probs[best]), **_scores(run, probs, scores)}


def _answer_labels(run: FinishedRun, logits_C: Tensor, scores: bool) -> Answer:
    """All of C labels whose probability is above one half."""
    probs = logits_C.sigmoid()
    labels = [name for name, prob in zip(run.label_names, probs, strict=True) if prob > 0.5]
    return {"labels": labels, **_scores(run, probs, scores)}


def _answer_numbers(run: FinishedRun, logits_C: Tensor, scores: bool) -> Answer:
    """The numbers of C targets."""
    return {"values": dict(zip(run.label_names, logits_C.tolist(), strict=True))}


def _scores(run: FinishedRun, probs_C: Tensor, scores: bool) -> Answer:
    return {"scores": dict(zip(run.label_names, probs_C.tolist(), strict=True))} if scores else {}


ANSWERS: dict[str, Callable[[FinishedRun, Tensor, bool], Answer]] = {
    "sequence-classification": _answer_label,
    "image-classification": _answer_label,
    "multi-label-classification": _answer_labels,
    "regression": _answer_numbers,
}
"""The tasks with one answer for each input: from its logits, and whether scores are asked for, to the answer."""
