"""Asks the model of a finished run: labels of texts and images, numbers, tags of words, and completions of prompts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from fftmoe.backbones import NO_ANSWER, check_finite_outputs, load_tokenizer
from fftmoe.data import Examples, has_content, is_blank
from fftmoe.errors import InputError
from fftmoe.evaluate import predict_logits
from fftmoe.head import make_head
from fftmoe.tasks import make_task
from fftmoe.trained.complete import Writing, completions
from fftmoe.trained.inputs import Inputs, unlabelled_texts
from fftmoe.trained.prior import Prior
from fftmoe.trained.run import FinishedRun, TrainedModel
from fftmoe.trained.tag import tag_words

Prediction = dict[str, Any]

SCORED = ("sequence-classification", "image-classification", "multi-label-classification")


def check_request(run: FinishedRun, batch_size: int, scores: bool, draws: bool) -> None:
    """Check what is asked of a run before its model is loaded.

    Raises:
        InputError: the batch size is below 1, the task has no scores, or tokens should be drawn where none are.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is below 1; set it to at least 1")
    if scores and run.task not in SCORED:
        raise InputError(f"a run of task {run.task} gives no label, so there is no score; leave --scores out")
    if draws and not run.is_language_model:
        raise InputError(f"a run of task {run.task} writes no text, so it draws no token; leave --temperature out")


def predict(
    trained: TrainedModel,
    inputs: Inputs,
    batch_size: int,
    scores: bool,
    writing: Writing,
    prior: Prior | None = None,
) -> Iterator[Prediction]:
    """Yield the answer of a trained model to each input, in the order of the inputs.

    Args:
        scores: add the scores of all labels, `{"scores": {label: score}}`.
        writing: how a language model completes prompts.
        prior: how often labels occur where the inputs come from; None to leave the answers as they are.

    Returns:
        For one label of several `{"text" | "image", "label", "score"}`, whose scores sum to 1 over the labels; for any
        number of labels `{"text", "labels"}`, those with a score above 0.5; for regression `{"text", "values":
        {target: number}}`; for token classification `{"text", "tokens", "tags"}`; for a language model `{"prompt",
        "completion"}`, as soon as the batch of a prompt is done. Where there is no text or image, or no finite output,
        the same with None and a `"reason"`.

    Raises:
        InputError: every prompt with its completion is longer than the model can read. RunError: no output is finite.
    """
    run = trained.run
    answers: Iterator[Prediction]
    if inputs.images is None:
        kind, reasons = "prompt" if run.is_language_model else "text", _reasons(run, inputs)
        texts = [text for text, reason in zip(inputs.names, reasons, strict=True) if text is not None and not reason]
        answers = iter(_answers(trained, texts, batch_size, scores, writing, prior) if texts else [])
    else:
        kind, reasons = "image", inputs.reasons
        names = [name for name, reason in zip(inputs.names, reasons, strict=True) if reason is None]
        answers = iter(_from_images(trained, names, inputs.images, batch_size, scores, prior) if names else [])
    missing = [
        _unanswered(run, kind, name, reason, scores) if reason else None
        for name, reason in zip(inputs.names, reasons, strict=True)
    ]
    return _in_order(missing, answers)


def _in_order(missing: Sequence[Prediction | None], answers: Iterator[Prediction]) -> Iterator[Prediction]:
    """Yield for each input the answer that it cannot have, or else the next of `answers`."""
    for answer in missing:
        yield next(answers) if answer is None else answer
    for _ in answers:
        raise AssertionError("there are more answers than inputs")


def _unanswered(run: FinishedRun, kind: str, name: str | None, reason: str, scores: bool) -> Prediction:
    """Return an input without an answer, and why."""
    return {kind: name, **dict.fromkeys((*ANSWER_FIELDS[run.task], *(["scores"] * scores))), "reason": reason}


def _reasons(run: FinishedRun, inputs: Inputs) -> list[str | None]:
    """Return for each text why there is no answer to it, else None."""
    texts, known = inputs.names, inputs.reasons
    given = [text for text in texts if not is_blank(text)]
    readable = iter(has_content([str(text) for text in given], load_tokenizer(run.backbone.model)))
    dropped = "the model cannot read the text: its tokenizer drops all characters of it"
    own = [_why_blank(text) if is_blank(text) else None if next(readable) else dropped for text in texts]
    return [reason or found for reason, found in zip(known, own, strict=True)]


def _why_blank(text: str | None) -> str:
    if text is None:
        return "there is no text"
    return "the text is only white space" if text else "the text is empty"


def _answers(
    trained: TrainedModel,
    texts: Sequence[str],
    batch_size: int,
    scores: bool,
    writing: Writing,
    prior: Prior | None,
) -> Iterable[Prediction]:
    """Return the answers to texts none of which is blank."""
    run = trained.run
    if run.is_language_model:
        return completions(trained, texts, writing)
    if make_task(run.task).by_token:
        return tag_words(trained, texts, batch_size, prior)
    logits = predict_logits(trained.model, unlabelled_texts(run, texts), batch_size)
    return _from_logits(run, "text", texts, _corrected(logits, prior), scores)


def _corrected(logits_NC: Tensor, prior: Prior | None) -> Tensor:
    return logits_NC if prior is None else prior.corrected(logits_NC)


def _from_images(
    trained: TrainedModel,
    names: Sequence[str | None],
    images: Examples,
    batch_size: int,
    scores: bool,
    prior: Prior | None,
) -> list[Prediction]:
    """Return the answers to images."""
    logits = predict_logits(trained.model, images, batch_size)
    return _from_logits(trained.run, "image", names, _corrected(logits, prior), scores)


def _from_logits(
    run: FinishedRun, kind: str, names: Sequence[str | None], logits_NC: Tensor, scores: bool
) -> list[Prediction]:
    """Return the answers to inputs whose logits are finite; to the others None with the reason.

    Raises:
        RunError: the logits of no input are finite.
    """
    answer, sound_N = ANSWERS[run.task], logits_NC.isfinite().all(1)
    if not sound_N.any():
        check_finite_outputs(sound_N)
    return [
        {kind: name, **answer(run, row, scores)} if sound else _unanswered(run, kind, name, NO_ANSWER, scores)
        for name, row, sound in zip(names, logits_NC, sound_N.tolist(), strict=True)
    ]


def _answer_label(run: FinishedRun, logits_C: Tensor, scores: bool) -> Prediction:
    """Return the most probable of C labels."""
    assert run.head is not None, "a task with one label has a head"
    calibrated = run.temperature is not None
    probs = logits_C.softmax(-1) if calibrated else make_head(run.head).probabilities(logits_C)
    best = int(logits_C.argmax())
    return {"label": run.label_names[best], "score": float(probs[best]), **_scores(run, probs, scores)}


def _answer_labels(run: FinishedRun, logits_C: Tensor, scores: bool) -> Prediction:
    """Return all of C labels whose probability is above one half. A solved head without a temperature answers 1 for a
    label that is certain, and -1 for one that is certainly absent.
    """
    solved = run.head == "closed-form" and run.temperature is None
    probs = ((1 + logits_C) / 2).clamp(0, 1) if solved else logits_C.sigmoid()
    labels = [name for name, prob in zip(run.label_names, probs, strict=True) if prob > 0.5]
    return {"labels": labels, **_scores(run, probs, scores)}


def _answer_numbers(run: FinishedRun, logits_C: Tensor, scores: bool) -> Prediction:
    """Return the numbers of C targets."""
    return {"values": dict(zip(run.label_names, logits_C.tolist(), strict=True))}


def _scores(run: FinishedRun, probs_C: Tensor, scores: bool) -> Prediction:
    return {"scores": dict(zip(run.label_names, probs_C.tolist(), strict=True))} if scores else {}


ANSWERS: dict[str, Callable[[FinishedRun, Tensor, bool], Prediction]] = {
    "sequence-classification": _answer_label,
    "image-classification": _answer_label,
    "multi-label-classification": _answer_labels,
    "regression": _answer_numbers,
}
"""The tasks with one answer for each input: from its logits, and whether scores are asked for, to the answer."""

ANSWER_FIELDS: Mapping[str, Sequence[str]] = {
    "sequence-classification": ("label", "score"),
    "image-classification": ("label", "score"),
    "multi-label-classification": ("labels",),
    "regression": ("values",),
    "token-classification": ("tokens", "tags"),
    "causal-lm": ("completion",),
    "preference": ("completion",),
}
"""What an answer holds, besides its input."""
