"""A language model's loss, its perplexity, its training and the texts that it writes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fftmoe.backbones import continue_greedily, logits, token_losses
from fftmoe.config import parse_recipe
from fftmoe.evaluate import tally
from fftmoe.records import pack_plan, unpack_update
from fftmoe.server.plan import plan_round
from fftmoe.setup.asked import evaluate_run
from fftmoe.setup.clients import build_client, client_spec
from fftmoe.setup.compose import compose
from fftmoe.setup.finished import load_run
from fftmoe.setup.load import load_split
from fftmoe.setup.run import run
from fftmoe.tasks import CausalLm, NextToken, exact_match, rouge_l
from five_clients import changed
from language import (
    END,
    PAD,
    save_language_model,
)
from plain_sgd import plain_sgd
from run_fixtures import RunLanguage
from summation import additions


def test_the_loss_is_the_mean_over_the_learned_tokens_worked_by_hand():
    """Three words; of the first text words 1 and 0 are learned, of the second word 2.

    Their probabilities are 2/4, 1/4 and 4/8; the mean loss is (log 2 + log 4 + log 2) / 3.
    """
    losses_BS = torch.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 2.0]]).log()
    labels = torch.tensor([[2, 1, 0], [-100, -100, 2]])  # nothing predicts a text's first word
    assert float(NextToken().loss(losses_BS, labels)) == pytest.approx(4 / 3 * math.log(2))
    assert float(NextToken().loss(0 * losses_BS, torch.full_like(labels, -100))) == 0
    task = CausalLm()
    statistics = task.statistics(losses_BS, {"labels": labels})
    torch.testing.assert_close(statistics, torch.tensor([[3 * math.log(2), 2.0], [math.log(2), 1.0]]).double())
    found = task.metrics(statistics.numpy().sum(0))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"perplexity": 2 ** (4 / 3), "loss": 4 / 3 * math.log(2)}
    )
    assert list(found) == [task.metric, "loss"]
    assert np.isnan(task.metrics(np.zeros(2))["perplexity"])
    assert np.isfinite(task.metrics(np.array([1e9, 1.0]))["perplexity"])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_perplexity_is_that_of_transformers_own_loss_on_one_example_at_a_time(
    language_values: dict[str, Any], tmp_path: Path, family: str
):
    model = save_language_model(tmp_path / family, family)
    folder = tmp_path / "run"
    recipe = parse_recipe(changed(language_values, backbone__model=str(model), federation__rounds=1), "test")
    summary = run(recipe, folder).summary
    trained = load_run(folder)
    examples = load_split(recipe, "test", ())
    nats, tokens = 0.0, 0
    for row in range(len(examples)):
        before, after = examples.text(row)  # type: ignore[attr-defined]
        ids = torch.cat([before, after])[None]
        labels = torch.cat([torch.full_like(before, -100), after])[None]
        with torch.inference_mode():
            nats += float(trained.model(input_ids=ids, labels=labels).loss) * len(after)
        tokens += len(after)
    # Padding and batching change the order of float32 sums.
    assert summary["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert summary["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert evaluate_run(folder)["perplexity"] == pytest.approx(summary["perplexity"], rel=1e-5)


def test_padding_changes_no_logit_and_no_loss(language_values: dict[str, Any]):
    experiment = compose(parse_recipe(language_values, "test"))
    examples, model = experiment.test, experiment.model
    longest, shortest = int(examples.lengths.argmax()), int(examples.lengths.argmin())
    length = int(examples.lengths[shortest])
    with torch.inference_mode():
        single = logits(model, examples.batch([shortest]))
        padded = logits(model, examples.batch([shortest, longest]))[:1]
    assert padded.shape[1] > length
    torch.testing.assert_close(padded[:, :length], single)  # another width sums in another order
    with torch.inference_mode():
        single = token_losses(model, examples.batch([shortest]))
        padded = token_losses(model, examples.batch([shortest, longest]))[:1]
    torch.testing.assert_close(padded[:, :length], single)
    assert not padded[:, length:].any()


def test_a_client_with_the_whole_budget_is_plain_fine_tuning_of_the_adapter(language_values: dict[str, Any]):
    """The same adapter, trained by a loop that knows nothing of federations."""
    everything = [{"name": "all", "fraction": 1.0, "top_k": 2, "experts": 5}]
    changes: dict[str, Any] = {"adapter__balance": "none", "adapter__z_strength": 0.0, "budgets": everything}
    changes |= {"partition": {"kind": "iid", "num_clients": 1}, "federation__clients_per_round": 1}
    recipe = parse_recipe(changed(language_values, **changes, engine={"prefix_cache": "off"}), "test")
    experiment = compose(recipe)
    method, state = experiment.method, experiment.method.init(experiment.model)
    plan = plan_round(method, state, 1, [0], experiment.budgets, experiment.training, recipe.seed).clients[0]

    class Nothing:
        def load(self, client_id: int, before: int) -> dict[str, torch.Tensor]:
            return {}

        def save(self, client_id: int, round: int, state: dict[str, torch.Tensor]) -> None:
            pass

    handler = build_client(client_spec(experiment, Nothing()), experiment.model)
    with plain_sgd():  # transformers' loss rounds otherwise
        update = unpack_update(handler([pack_plan(plan, method.download(state, plan))])[0])

    from fftmoe.client.update import local_batches

    method.install(experiment.model, state.tensors, experiment.largest)
    model = experiment.model
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=plan.training.learning_rate)
    for batch_rows in local_batches(plan, experiment.partition.indices[0], experiment.train):
        batch = experiment.train.batch(batch_rows)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = 0
    for block in update.experts:
        trained = list(update.experts[block])
        assert len(trained) > 2
        for part, own in (("up", ".up"), ("down", ".down"), ("router", "router.weight")):
            (name,) = [n for n in parameters if f".{block}." in n and n.endswith(own)]
            change = (parameters[name].detach() - before[name])[trained]
            # A few thousand additions in float32 over all steps, each relative to the parameters that they change.
            torch.testing.assert_close(
                update.tensors[f"blocks.{block}.{part}"], change, rtol=0, atol=additions(4000, change)
            )
            moved += bool(change.any())
    assert moved == 6


def test_a_model_learns_to_answer(run_language: RunLanguage):
    finished = run_language(federation__rounds=8, federation__local_steps=8, evaluation__every=4)
    summary = finished.summary
    by_round = summary["perplexity_by_round"]
    assert [*by_round] == ["0", "4", "8"]
    assert by_round["8"] < by_round["4"] < by_round["0"]
    assert by_round["8"] < 0.7 * by_round["0"]


def test_the_perplexity_of_a_client_is_that_of_its_own_mix_of_tokens(language_values: dict[str, Any]):
    """By hand from the statistics of each kind: expected nats over expected tokens of one of its examples."""
    one_tier = [{"name": "all", "fraction": 1.0, "top_k": 2, "experts": 5}]
    own = {"kind": "dirichlet", "alpha": 0.5, "num_clients": 5}
    recipe = parse_recipe(changed(language_values, budgets=one_tier, data__label="kind", partition=own), "test")
    experiment = compose(recipe)
    assert experiment.strata == ("once", "twice")
    found = tally(experiment.model, experiment.task, experiment.test, 2)
    shares = experiment.partition.label_distribution(experiment.train.labels.numpy(), 2)
    means = found.sums / found.counts[:, None]
    expected = [math.exp((share @ means[:, 0]) / (share @ means[:, 1])) for share in shares]
    np.testing.assert_allclose(found.on_mixes(shares), expected)
    assert len({round(value, 6) for value in expected}) > 1


def test_greedy_text_is_the_most_likely_token_again_and_again(language_values: dict[str, Any]):
    model = compose(parse_recipe(language_values, "test")).model
    generator = torch.Generator().manual_seed(5)
    asked = [torch.randint(4, 14, (length,), generator=generator) for length in (3, 7, 1, 5, 2)]
    with torch.inference_mode():
        expected = [by_hand(model, prompt, 6) for prompt in asked]
    found = continue_greedily(model, asked, 6, end_ids=[END], pad_id=PAD, batch_size=2)
    assert [ids.tolist() for ids in found] == expected
    assert any(len(ids) == 6 for ids in found)


def by_hand(model: Any, prompt: torch.Tensor, steps: int) -> list[int]:
    """Without a cache, a batch or padding."""
    ids: list[int] = prompt.tolist()
    for _ in range(steps):
        best = int(logits(model, {"input_ids": torch.tensor([ids])})[0, -1].argmax())
        if best == END:
            break
        ids.append(best)
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("written", "wanted", "exact", "rouge"),
    [
        ("the cat sat", "the cat sat", 1.0, 1.0),
        (" the cat\nsat", "the cat sat", 1.0, 1.0),
        ("The cat, sat!", "the cat sat", 0.0, 1.0),
        # Lin's own example: "police killed the gunman" against "police kill the gunman": 3 of 4 words in order.
        ("police kill the gunman", "police killed the gunman", 0.0, 0.75),
        ("the gunman kill police", "police killed the gunman", 0.0, 0.5),
        ("a b c d", "b d", 0.0, 2 * 2 / 6),
        ("", "word", 0.0, 0.0),
        ("ñandú 東", "ñandú", 0.0, 2 / 3),
    ],
)
def test_a_generated_text_is_compared_with_its_reference(written: str, wanted: str, exact: float, rouge: float):
    assert exact_match(written, wanted) == exact
    assert rouge_l(written, wanted) == pytest.approx(rouge)
