"""Takes one combination of features through the whole program, and checks what comes out of each part."""

import json
import math
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import torch

from crossed_features import ABSENT, Combination, recipe_values, task_of
from crossed_inputs import Inputs, own_task_row
from crossed_rules import LATER, OWN_PARTS, RULES, can, differential, matches, reasons
from fftmoe.backbones import logits
from fftmoe.comparison.run import compare
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.exports.graphs import GRAPH, ONNX
from fftmoe.exports.load import reload
from fftmoe.report.metric import Metric
from fftmoe.setup.asked import evaluate_run, predict_run
from fftmoe.setup.cells import Variant
from fftmoe.setup.export import export_run
from fftmoe.setup.finished import load_run, recipe_of
from fftmoe.setup.load import read_split
from fftmoe.setup.run import resume, run
from fftmoe.store import read_config
from fftmoe.tasks import make_task
from fftmoe.trained.metrics import metrics_on
from fftmoe.trained.predict import ANSWER_FIELDS, SCORED
from fftmoe.trained.run import TrainedModel
from finished import Finished, check_same, strict

OPTIONS: dict[str, dict[str, Any]] = {"personal": {"client": 0}, "lora": {"rank": 2, "steps": 1}}
NOT_A_NUMBER = re.compile(r"\b(nan|inf|infinity)\b", re.IGNORECASE)


def check(c: Combination, inputs: Inputs, folder: Path) -> str:
    """Check a combination: it is refused with a predicted reason before anything is written, or it goes all the way.

    Returns:
        `refused` or `went through`.
    """
    with own_task_row(c["task"]):
        words = reasons(RULES, c)
        if refusal(lambda: run(parse_recipe(recipe_values(c, inputs), "crossed"), folder / "run"), words):
            assert not (folder / "run").exists()
            return "refused"
        finished = Finished(folder / "run")
        check_summary(c, finished)
        check_page(c, finished)
        check_evaluation(c, finished)
        check_answers(c, inputs, finished)
        use, _, kind = c["use"].partition(" ")
        {"resume": check_resumed, "compare": check_compared, "export": check_exported}[use](c, inputs, folder, kind)
    return "went through"


def refusal(attempt: Callable[[], object], words: list[str]) -> bool:
    """Whether the attempt is refused; it must be, with one of these words, if there are any."""
    message = None
    try:
        attempt()
    except InputError as error:
        message = str(error)
    if message is None:
        assert not words, f"not refused, although: {words}"
        return False
    assert words, f"no declared reason says so: {message}"
    check_message(message, words)
    return True


def check_message(message: str, words: list[str]) -> None:
    assert matches(words, message), f"{message!r} gives none of the reasons {words}"
    assert "\n" not in message
    assert len(message) < 700


def direction(c: Combination) -> int:
    return 1 if make_task(task_of(c)).higher_is_better else -1


def check_summary(c: Combination, finished: Finished) -> None:
    """Its numbers are finite, and what it calls better is better for the task."""
    summary, sign = finished.summary, direction(c)
    name = summary["metric"]
    assert name == make_task(task_of(c)).metric
    assert math.isfinite(summary[name])
    assert summary["rounds_completed"] == 2 or summary.get("stopped_early")
    metric = Metric.of(summary)
    assert metric.better(0.0, 1.0) == (sign < 0)
    if found := summary.get("verdict"):
        assert math.isclose(found["gain"], sign * (found["end"] - found["start"]), abs_tol=1e-9)
        expected = "level" if abs(found["gain"]) <= found["margin"] else "better" if found["gain"] > 0 else "worse"
        diverged = found["result"] == "diverged" and found["last_loss"] > found["first_loss"]
        assert diverged or found["result"] == expected
    for whose in (
        "client",
        "personal",
        "local_only_client",
        "reweighted",
        "reweighted_personal",
        "reweighted_local_only",
    ):
        values = summary.get(f"{whose}_{name}", {})
        if "worst_decile" in values:  # a private run leaves out that of too few clients
            assert sign * (values["mean"] - values["worst_decile"]) >= -1e-9, whose


def check_page(c: Combination, finished: Finished) -> None:
    """The page shows the metric, finite numbers, and the gain over local training with its sign."""
    page, summary = (finished.folder / "report.html").read_text(), finished.summary
    text = plain(page)
    metric = Metric.of(summary)
    assert metric.text(summary[metric.name]) in text
    assert metric.label in text
    outside = plain(re.sub(r"<pre>.*?</pre>", " ", page, flags=re.DOTALL))
    assert not (found := NOT_A_NUMBER.search(outside)), outside[max(0, found.start() - 60) : found.end() + 60]
    assert (can(c["method"]).personal) == ("mean of the clients' own models" in text)
    if local := summary.get(f"local_only_{metric.name}"):
        gain = direction(c) * (summary[metric.name] - local["mean"])
        assert f"{gain + 0.0:+.3f}" in text  # never -0.000


def plain(page: str) -> str:
    without = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return unescape(re.sub(r"<[^>]*>", " ", without))


def near(c: Combination) -> float:
    return 1e-5 if c["engine.precision"] == "float32" else 0.05


def is_close(c: Combination, one: float, two: float) -> bool:
    return math.isclose(one, two, rel_tol=near(c), abs_tol=near(c))


def check_evaluation(c: Combination, finished: Finished) -> None:
    """The saved model measures what the run measured, where both measure the same model on the same rows."""
    found = evaluate_run(finished.folder)
    name = finished.summary["metric"]
    assert found["metric"] == name
    assert math.isfinite(found[name])
    if not can(c["method"]).personal and c["data.validation_examples"] == ABSENT:
        assert is_close(c, found[name], finished.summary[name]), (found[name], finished.summary[name])


def check_answers(c: Combination, inputs: Inputs, finished: Finished) -> None:
    """There is an answer for every row, with finite numbers, and a reason where there is none."""
    task = task_of(c)
    questions, scores = inputs.questions(task), task in SCORED
    answers = predict_run(finished.folder, questions, scores=scores, max_new_tokens=2)
    assert len(answers) == len(questions)
    for question, answer in zip(questions, answers, strict=True):
        strict(json.dumps(answer))
        if question and question.strip():
            assert all(answer[name] is not None for name in ANSWER_FIELDS[task])
            assert "reason" not in answer
        else:
            assert all(answer[name] is None for name in ANSWER_FIELDS[task])
            assert answer["reason"]
        if scores and answer["scores"]:
            assert set(answer["scores"]) == set(
                json.loads((finished.folder / "adapter/labels.json").read_text())["labels"]
            )


def check_resumed(c: Combination, inputs: Inputs, folder: Path, kind: str) -> None:
    """A run that was stopped after its first round ends with the same bytes, or, with noise, after all its rounds."""
    stopped = Path(shutil.copytree(folder / "run", folder / "stopped"))
    for name in ("summary.json", "report.html"):
        (stopped / name).unlink()
    shutil.rmtree(stopped / "adapter")
    for path in (stopped / "checkpoints").glob("round-000002*"):
        path.unlink()
    resume(stopped)
    if differential(c["privacy"]):
        assert Finished(stopped).summary["rounds_completed"] == 2
    else:
        assert check_same(Finished(folder / "run"), Finished(stopped)) >= 2


def check_compared(c: Combination, inputs: Inputs, folder: Path, kind: str) -> None:
    """The comparison with another learning rate finds the same value, and names the better one as the best."""
    others = [Variant("this"), Variant("other", {"federation.learning_rate": 0.03})]
    made = compare(read_config(folder / "run"), folder / "compared", variants=others, seeds=[3])
    assert [cell.status for cell in made.cells] == ["done", "done"], [cell.reason for cell in made.cells]
    summary = Finished(folder / "run").summary
    metric = Metric.of(summary)
    values = {cell.variant: cell.summary[metric.name] for cell in made.cells}
    if not differential(c["privacy"]):
        assert values["this"] == summary[metric.name]
    sign = direction(c)
    best = max(values, key=lambda variant: sign * values[variant])  # of equal values the first
    text = " ".join(plain((folder / "compared" / "comparison.html").read_text()).split())
    assert f"{best}: {'highest' if sign > 0 else 'lowest'} {metric.label}" in text
    strict((folder / "compared" / "comparison.json").read_text())


def check_exported(c: Combination, inputs: Inputs, folder: Path, kind: str) -> None:
    """The export answers as the run, and its card names the run's metric; or it is refused as predicted."""
    words, out = reasons(LATER, c), folder / "exported"
    if "last" not in Finished(folder / "run").summary:  # its last round is the one that is kept
        words = [reason for reason in words if reason != OWN_PARTS]
    if refusal(lambda: export_run(folder / "run", kind, out, OPTIONS.get(kind, {})), words):
        assert not out.exists()
        return
    assert strict((out / "export.json").read_text())["format"] == kind
    if kind in READ:
        READ[kind](c, folder / "run", out)
    if (out / "README.md").exists():
        summary = Finished(folder / "run").summary
        assert f"{summary['metric']} on the test split" in (out / "README.md").read_text().replace("\\", "")


def _same_metric(c: Combination, folder: Path, out: Path) -> None:
    """The exported folder measures on the test rows what the saved run measures."""
    trained = load_run(folder, exact=True)
    test = read_split(recipe_of(folder), "test", trained.run.label_names)
    of_run, of_export = (
        metrics_on(TrainedModel(trained.run, model), test.examples["test"], test.strata)
        for model in (trained.model, reload(trained.run, out))
    )
    assert of_run == of_export


def _graph(ask: Callable[[Path, dict[str, torch.Tensor]], torch.Tensor]) -> Callable[[Combination, Path, Path], None]:
    """The graph gives the run's logits for test rows."""

    def compared(c: Combination, folder: Path, out: Path) -> None:
        trained = load_run(folder, exact=True)
        test = read_split(recipe_of(folder), "test", trained.run.label_names).examples["test"]
        batch = {name: value for name, value in test.batch([0, 1, 2, 3]).items() if name in GRAPH_INPUTS}
        with torch.inference_mode():
            expected = logits(trained.model, batch)
        assert torch.allclose(ask(out, batch), expected, rtol=1e-3, atol=1e-3)

    return compared


def _ask_torch(out: Path, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.export.load(out / GRAPH).module()(**batch)


def _ask_onnx(out: Path, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out / ONNX), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in batch.items()})[0])


GRAPH_INPUTS = ("input_ids", "attention_mask", "pixel_values")
READ: dict[str, Callable[[Combination, Path, Path], None]] = {
    "peft": _same_metric,
    "onnx": _graph(_ask_onnx),
    "torch-export": _graph(_ask_torch),
}
