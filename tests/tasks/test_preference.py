"""Losses of preference pairs, what is measured of them, and the reference, which is the frozen backbone."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.backbones import attach_adapter, load_backbone, outputs, with_references
from fftmoe.backbones.lora import lora_config
from fftmoe.backbones.pairs import answer_scores
from fftmoe.config.preference import IMITATING, PreferenceSection
from fftmoe.data import IGNORED, Preferences
from fftmoe.evaluate import tally
from fftmoe.tasks import PairLoss, Preference
from fftmoe.tasks.preference import PAIR_LOSSES
from language import save_language_model

PAIRS = 5


def scores(seed: int = 0) -> Tensor:
    """Log-probabilities of pairs under a model and a reference, and numbers of tokens, [PAIRS, 2, 3]."""
    draws = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 8, (PAIRS, 2), generator=draws).float()
    policy, reference = (-tokens * (0.1 + torch.rand(PAIRS, 2, generator=draws)) for _ in range(2))
    return torch.stack([policy, reference, tokens], 2)


def trl_loss(scores_B23: Tensor, kind: str, beta: float, margin: float) -> Tensor:
    """The formulas of trl 0.19.1, `DPOTrainer.dpo_loss`, `CPOTrainer.cpo_loss` and `ORPOTrainer.odds_ratio_loss`.

    Label smoothing is 0 and `cpo_alpha` is 1, but 0 for SimPO. The negative log-likelihood is that of CPO, over the
    tokens of the chosen answers; in trl that of ORPO also counts the tokens of prompts.
    """
    policy, reference, tokens = scores_B23.unbind(2)
    if kind in ("ipo", "simpo", "orpo"):  # `average_log_prob`, and `logps / loss_mask.sum(-1)` for IPO
        policy, reference = policy / tokens, reference / tokens
    chosen_logps, rejected_logps = policy.unbind(1)
    logratios = chosen_logps - rejected_logps
    ref_logratios = reference[:, 0] - reference[:, 1]
    nll = -scores_B23[:, 0, 0].sum() / tokens[:, 0].sum()
    if kind == "dpo":
        return -F.logsigmoid(beta * (logratios - ref_logratios)).mean()
    if kind == "ipo":
        return ((logratios - ref_logratios - 1 / (2 * beta)) ** 2).mean()
    if kind == "simpo":
        return -F.logsigmoid(beta * (logratios - margin / beta)).mean()
    if kind == "cpo":
        return -F.logsigmoid(beta * logratios).mean() + nll
    log_odds = logratios - (torch.log1p(-torch.exp(chosen_logps)) - torch.log1p(-torch.exp(rejected_logps)))
    return nll - (beta * F.logsigmoid(log_odds)).mean()


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_losses_and_their_gradients_are_those_of_trl(kind: str):
    margin = 0.7 if kind == "simpo" else 0.0
    for seed in range(7):
        ours, theirs = scores(seed).requires_grad_(), scores(seed).requires_grad_()
        loss = PairLoss(kind, 0.3, margin).loss(ours, torch.empty(0))
        expected = trl_loss(theirs, kind, 0.3, margin)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(one, x)[0] for one, x in ((loss, ours), (expected, theirs))))


def test_a_recipe_can_name_every_loss():
    assert set(get_args(PreferenceSection.model_fields["loss"].annotation)) == set(PAIR_LOSSES)
    assert set(IMITATING) == {name for name, kind in PAIR_LOSSES.items() if kind.imitates}


def test_dpo_worked_by_hand():
    """The model gives the chosen answer twice the odds of the reference, and the rejected one half."""
    one = torch.tensor([[[math.log(0.2), math.log(0.1), 1.0], [math.log(0.1), math.log(0.2), 1.0]]])
    loss = PairLoss("dpo", beta=1.0).loss(one, torch.empty(0))
    assert float(loss) == pytest.approx(-math.log(1 / (1 + 0.25)))  # the odds are 4
    still = one.clone()
    still[..., 1] = still[..., 0]
    assert float(PairLoss("dpo", beta=9.0).loss(still, torch.empty(0))) == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_what_is_measured_adds_up(kind: str):
    """Accuracy, mean margin and loss of all pairs are those of the pairs one at a time; the loss is the trained one."""
    task, all_scores = Preference(PairLoss(kind, 0.3)), scores()
    labels = torch.arange(2 * PAIRS * 3).view(2 * PAIRS, 3)
    found = task.statistics(all_scores, {"labels": labels})
    metrics = {name: float(value) for name, value in task.metrics(found.numpy().sum(0)).items()}
    assert list(metrics) == ["preference_accuracy", "reward_margin", "loss"]
    assert metrics["loss"] == pytest.approx(float(PairLoss(kind, 0.3).loss(all_scores, labels)), rel=1e-6)
    ratios = task.objective.log_ratios(all_scores)
    assert metrics["reward_margin"] == pytest.approx(float(0.3 * (ratios[:, 0] - ratios[:, 1]).mean()), rel=1e-6)
    assert metrics["preference_accuracy"] == float((ratios[:, 0] > ratios[:, 1]).double().mean())


def test_a_model_that_has_not_moved_is_right_by_chance_and_equal_answers_are_not_judged():
    still = scores()
    still[..., 1] = still[..., 0] + 1e-4  # as two batches of other widths round
    labels = torch.arange(2 * PAIRS * 3).view(2 * PAIRS, 3)
    task = Preference()
    assert float(task.metrics(task.statistics(still, {"labels": labels}).numpy().sum(0))[task.metric]) == 0.5
    labels[PAIRS] = labels[0]  # the answers of the first pair
    statistics = task.statistics(scores(), {"labels": labels})
    assert not statistics[0].any()
    assert float(statistics.sum(0)[-1]) == PAIRS - 1
    nothing = task.metrics(np.zeros(6))
    assert np.isnan(nothing[task.metric])


def test_a_score_that_is_no_number_is_no_statistic():
    broken = scores()
    broken[2, 1, 0] = math.nan
    found = Preference().statistics(broken, {"labels": torch.arange(30).view(10, 3)})
    assert found.isfinite().all(1).tolist() == [True, True, False, True, True]


def test_an_answer_that_is_certain_has_a_finite_loss_and_gradient():
    certain = torch.tensor([[[0.0, 0.0, 3.0], [-2e4, -1.0, 5.0]]])
    for kind in PAIR_LOSSES:
        ours = certain.clone().requires_grad_()
        loss = PairLoss(kind).loss(ours, torch.empty(0))
        assert loss.isfinite()
        assert torch.autograd.grad(loss, ours)[0].isfinite().all()


def pairs(num_pairs: int = 7) -> Preferences:
    """Pairs of a tiny vocabulary, of many lengths; the answers of a pair follow one prompt."""
    from fftmoe.data import tokenize_preferences
    from fftmoe.data.table import Origin
    from language import WORDS, tiny_language_tokenizer

    draws = np.random.default_rng(5)
    prompts = [" ".join(draws.choice(WORDS, 1 + row % 4)) for row in range(num_pairs)]
    chosen, rejected = ([" ".join(draws.choice(WORDS, 1 + (row + s) % 3)) for row in range(num_pairs)] for s in (0, 1))
    labels = np.arange(num_pairs) % 2
    return tokenize_preferences(
        Origin("test"), prompts, (chosen, rejected), labels, tiny_language_tokenizer(), max_length=11
    )


def moved_model(folder: Path) -> Any:
    """A language model with a LoRA that changes what it says."""
    backbone: Any = load_backbone(str(save_language_model(folder)), task="preference")
    model = attach_adapter(backbone, lora_config(2, 1.0, ["q_proj", "v_proj"]))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return model


def plain_scores(model: Any, examples: Preferences, row: int) -> list[float]:
    """The log-probabilities of both answers of a pair, one text at a time, from all logits."""
    found = []
    for text in (row, row + len(examples)):
        before, after = examples.answers.text(text)  # type: ignore[attr-defined]
        ids = torch.cat([before, after])[None]
        with torch.inference_mode():
            log_probs = model(input_ids=ids).logits.float().log_softmax(-1)
        found.append(float(log_probs[0, len(before) - 1 : -1].gather(1, after[:, None]).sum()))
    return found


def test_scores_are_summed_log_probabilities_of_the_answers_tokens(tmp_path: Path):
    model, examples = moved_model(tmp_path / "model"), pairs()
    with torch.inference_mode():
        found = outputs(model, examples.batch(range(len(examples))), next_token=True)
    assert found.shape == (len(examples), 2, 3)
    expected = [plain_scores(model, examples, row) for row in range(len(examples))]
    torch.testing.assert_close(found[..., 0], torch.tensor(expected))
    tokens = [len(examples.answers.text(row)[1]) for row in range(2 * len(examples))]  # type: ignore[attr-defined]
    assert found[..., 2].T.flatten().tolist() == tokens


def test_the_reference_is_the_backbone_without_its_adapter_and_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, examples = moved_model(tmp_path / "model"), pairs()
    model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    found = with_references(model, examples, tmp_path / "cache")
    assert isinstance(found, Preferences)
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    backbone: Any = load_backbone(str(tmp_path / "model"), task="preference")
    expected = [plain_scores(backbone, examples, row) for row in range(len(examples))]
    torch.testing.assert_close(found.reference, torch.tensor(expected))
    with torch.inference_mode():  # and the adapter is on again
        moved = answer_scores(model, found.batch([0, 1, 2]))
    assert not torch.allclose(moved[..., 0], moved[..., 1])
    monkeypatch.setattr("fftmoe.backbones.pairs.answer_scores", None)  # nothing is computed again
    again = with_references(model, examples, tmp_path / "cache")
    assert isinstance(again, Preferences)
    assert torch.equal(again.reference, found.reference)
    monkeypatch.undo()
    (file,) = (tmp_path / "cache").iterdir()
    for damage in (b"", file.read_bytes()[:-3], file.read_bytes()[:-4] + b"\0\0\x80\x7f"):
        file.write_bytes(damage)
        again = with_references(model, examples, tmp_path / "cache")
        assert isinstance(again, Preferences)
        assert torch.equal(again.reference, found.reference)


def test_the_reference_is_computed_on_one_thread_and_without_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Clients compute on one thread, and a sum over several may differ in its last bit."""
    seen: list[int] = []

    def watched(*arguments: Any) -> Tensor:
        seen.append(torch.get_num_threads())
        return answer_scores(*arguments)

    monkeypatch.setattr("fftmoe.backbones.pairs.answer_scores", watched)
    model, before = moved_model(tmp_path / "model"), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        (tmp_path / "taken").write_text("no folder")
        found = with_references(model, pairs(), tmp_path / "taken" / "cache")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert isinstance(found, Preferences)
    assert found.reference.all()
    assert "cannot write the cache of references" in caplog.text


def test_the_key_of_the_cache_is_all_that_the_reference_depends_on(tmp_path: Path):
    model, examples, cache = moved_model(tmp_path / "model"), pairs(), tmp_path / "cache"
    with_references(model, examples, cache)
    with_references(model, pairs(8), cache)
    with_references(model, examples, cache, [np.arange(3), np.arange(3, 7)])
    other = copy.deepcopy(model)
    other.backbone_fingerprint = None
    with torch.no_grad():
        other.get_base_model().lm_head.weight.mul_(1.5)
    with_references(other, examples, cache)
    assert len(list(cache.iterdir())) == 4
    with_references(model, examples, cache)
    assert len(list(cache.iterdir())) == 4


def test_groups_have_the_references_that_they_have_alone(tmp_path: Path):
    """A site has its own rows only, and must have the same numbers to the last bit."""
    model, examples = moved_model(tmp_path / "model"), pairs(11)
    groups = [np.array([0, 3, 4, 9]), np.array([1, 2, 5, 6, 7, 8, 10])]
    together = with_references(model, examples, None, groups)
    assert isinstance(together, Preferences)
    for rows in groups:
        alone = with_references(model, examples.select(rows), None)
        assert isinstance(alone, Preferences)
        assert torch.equal(alone.reference, together.reference[rows])


def test_a_language_model_is_measured_in_any_order(tmp_path: Path):
    model, examples = moved_model(tmp_path / "model"), pairs()
    examples = with_references(model, examples, None)
    one = tally(model, Preference(), examples, 2).metrics()
    other = tally(model, Preference(), examples.select(np.arange(len(examples))[::-1].copy()), 2).metrics()
    assert one == pytest.approx(other, rel=1e-5)


def test_the_labels_of_a_batch_are_those_of_the_answers_only():
    examples = pairs()
    batch = examples.batch([4, 1])
    assert batch["input_ids"].shape[0] == 4
    assert batch["reference"].shape == (2, 2)
    for place, text in enumerate((4, 1, 4 + len(examples), 1 + len(examples))):
        before, after = examples.answers.text(text)  # type: ignore[attr-defined]
        labels = batch["labels"][place]
        assert labels[labels != IGNORED].tolist() == after.tolist()
        assert batch["input_ids"][place][: len(before)].tolist() == before.tolist()
    chosen = replace(examples, reference=torch.arange(14.0).view(7, 2)).select([4, 1])
    assert torch.equal(chosen.reference, torch.tensor([[8.0, 9.0], [2.0, 3.0]]))
    assert torch.equal(chosen.batch([0, 1])["input_ids"], batch["input_ids"])
    assert torch.equal(chosen.lengths, examples.lengths[[4, 1]])
