"""The temperature of a solved head: leave-one-out, from sums, and the same wherever the model is used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fftmoe
from fftmoe.backbones import load_tokenizer, logits
from fftmoe.config import parse_recipe
from fftmoe.head import HeadSums, best_temperature, score_sums
from fftmoe.head.closed_form import solved_with_leverage
from fftmoe.head.temperature import LEVERAGES, TEMPERATURES, usable
from fftmoe.records import names
from fftmoe.rng import generator
from fftmoe.setup.asked import evaluate_run
from fftmoe.setup.finished import load_run
from fftmoe.setup.run import run
from fftmoe.store import RunFolder, pack_state, read_temperature, unpack_state
from five_clients import FOURIER, changed

N, FEATURES, C = 211, 17, 5


def noisy() -> tuple[Tensor, Tensor]:
    """Features of examples, and labels that they do not determine."""
    x = torch.randn(N, FEATURES, generator=generator(3, "x"))
    scores = x[:, :C] * 1.5 + torch.randn(N, C, generator=generator(3, "noise"))
    return x, scores.argmax(1)


def outputs_of(head: dict[str, Tensor], x: Tensor) -> Tensor:
    return (x @ head[names.HEAD_WEIGHT].T + head[names.HEAD_BIAS]).double()


def test_the_sums_are_cross_entropies_of_leave_one_out_outputs_and_add_up():
    x, y = noisy()
    head, _ = solved_with_leverage(HeadSums.of(x, y, C))
    z = outputs_of(head, x)
    found = score_sums(z, y)
    assert torch.allclose(score_sums(z[:50], y[:50]) + score_sums(z[50:], y[50:]), found)
    for row, leverage in enumerate(LEVERAGES):
        left_out = F.one_hot(y, C) - (F.one_hot(y, C) - z) / (1 - leverage)
        for column, temperature in enumerate(TEMPERATURES):
            expected = F.cross_entropy(left_out / temperature, y, reduction="sum")
            torch.testing.assert_close(found[row, column], expected)


def test_the_temperature_is_that_of_heads_that_never_saw_the_example():
    """Each example is left out in turn and the head solved again; the best temperature of these outputs is found."""
    x, y = noisy()
    sums = HeadSums.of(x, y, C)
    head, leverage = solved_with_leverage(sums)
    rho = _strength(sums)
    truly = torch.stack([_left_out(x, y, row, rho) for row in range(N)])
    finest = [0.005 * 1.02**step for step in range(300)]
    best = min(finest, key=lambda t: float(F.cross_entropy(truly / t, y)))
    found = best_temperature(score_sums(outputs_of(head, x), y), leverage, N, C)
    assert found == pytest.approx(best, rel=0.1)
    trained_on = best_temperature(score_sums(outputs_of(head, x), y), 0.0, 10**9, C)  # as if the bound were none
    assert trained_on < 0.9 * best  # outputs on examples that the head was made of are too sure


def _strength(sums: HeadSums) -> float:
    from fftmoe.head.closed_form import solve_ridge

    return solve_ridge(sums)[2] * float(torch.linalg.eigvalsh(sums.gram).clamp_min(0).mean())


def _left_out(x: Tensor, y: Tensor, row: int, rho: float) -> Tensor:
    kept = torch.arange(N) != row
    sums = HeadSums.of(x[kept], y[kept], C)
    solution = torch.linalg.solve(sums.gram + rho * torch.eye(FEATURES + 1, dtype=torch.float64), sums.moment)
    return torch.cat([x[row].double(), torch.ones(1, dtype=torch.float64)]) @ solution


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e300])
def test_any_outputs_give_a_temperature_that_can_be_used(scale: float):
    x, y = noisy()
    scores = score_sums(x[:, :C].double() * scale, y)
    assert scores.float().isfinite().all()
    assert all(usable(best_temperature(scores, leverage, N, C)) for leverage in (-1.0, 0.0, 0.17, 0.5, 3.0))


@pytest.mark.parametrize("classes", [1, 2, 40])
@pytest.mark.parametrize("size", [1, 12, 100, 10**9])
def test_right_answers_alone_do_not_make_errors_rarer_than_their_number_shows(size: int, classes: int):
    """It was 1e-40 after 43 right answers."""
    labels = torch.arange(min(size, 400)) % classes
    outputs = F.one_hot(labels, classes).double()
    temperature = best_temperature(score_sums(outputs, labels), 0.0, size, classes)
    error = float((outputs[0] / temperature).softmax(0)[1:].sum())
    assert usable(temperature)
    assert error == 0 if classes == 1 else error == pytest.approx(1 / (2 * size + 1))


@pytest.fixture(scope="module")
def solved(recipe_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = changed(recipe_values, head=FOURIER, federation__rounds=2) | {"evaluation": {}}
    return run(parse_recipe(values, "here"), tmp_path_factory.mktemp("solved") / "run").folder


def test_a_run_stores_its_temperature_and_every_use_has_the_same_probabilities(solved: Path, tmp_path: Path):
    temperature, state = read_temperature(solved / "adapter"), RunFolder(solved).load_newest().state
    assert state is not None
    assert state.temperature == temperature is not None
    texts = ["red ash", "blue cod dew", "green"]
    answers = fftmoe.predict(solved, texts, scores=True)
    trained = load_run(solved, exact=True)
    batch = load_tokenizer(trained.run.backbone.model)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = logits(trained.model, dict(batch))
    for answer, row in zip(answers, found.softmax(1), strict=True):
        assert list(answer["scores"].values()) == pytest.approx(row.tolist(), abs=1e-5)
    head = {name: p for name, p in trained.model.named_parameters() if ".classifier." in name and "modules_to" in name}
    [bias] = [p for name, p in head.items() if name.endswith("bias")]
    torch.testing.assert_close(bias.detach() * temperature, state.tensors[names.HEAD_BIAS], rtol=1e-6, atol=1e-7)
    summary = json.loads((solved / "summary.json").read_text())
    assert evaluate_run(solved)["accuracy"] == summary["accuracy"]
    for form, options in (("peft", {}), ("personal", {"client": 1}), ("personal", {"experts": [0, 1]})):
        out = tmp_path / f"{form}-{len(options)}-{min(options, default='')}"
        fftmoe.export(solved, form, out, **options)
        assert read_temperature(out) == temperature


def test_a_start_from_a_calibrated_adapter_takes_its_head_as_the_server_had_it(
    solved: Path, recipe_values: dict[str, Any]
):
    from fftmoe.setup.compose import compose

    state = RunFolder(solved).load_newest().state
    assert state is not None
    values = changed(recipe_values, head=FOURIER) | {"start_from": str(solved), "evaluation": {}}
    start = compose(parse_recipe(values, "here")).first_state()
    for name in (names.HEAD_WEIGHT, names.HEAD_BIAS):
        torch.testing.assert_close(start.tensors[name], state.tensors[name], rtol=1e-6, atol=1e-7)


def test_a_state_keeps_its_temperature_and_refuses_another(solved: Path):
    state = RunFolder(solved).load_newest().state
    assert state is not None
    data = pack_state(state)
    assert unpack_state(data).temperature == state.temperature
    text = json.dumps(state.temperature).encode()
    assert data.count(text) == 1
    with pytest.raises(ValueError, match="temperature"):
        unpack_state(data.replace(text, b"9" * len(text)))
