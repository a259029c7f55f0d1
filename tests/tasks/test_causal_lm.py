"""Federations of language models: what is learned, what is measured, and whole runs on tiny ones."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml

from fftmoe.backbones import continue_greedily, logits
from fftmoe.config import parse_recipe
from fftmoe.data import Completions, SplitRequest, tokenize_completions
from fftmoe.errors import InputError
from fftmoe.evaluate import batch_size_for, tally
from fftmoe.records import pack_plan, unpack_update
from fftmoe.server.plan import plan_round
from fftmoe.setup.clients import build_client, client_spec
from fftmoe.setup.compose import compose
from fftmoe.setup.finished import evaluate_run, load_run
from fftmoe.setup.forecast import forecast
from fftmoe.setup.load import load_split
from fftmoe.setup.run import resume, run
from fftmoe.setup.splits import Splits, load_splits
from fftmoe.tasks import CausalLm, NextToken, exact_match, rouge_l
from interrupting import Killed, interrupt, results
from language import (
    BEGIN,
    CHAT,
    END,
    PAD,
    language_recipe,
    save_language_model,
    save_prompts,
    tiny_language_tokenizer,
)
from plain_sgd import plain_sgd
from shared_fixtures import Cli

ASH, BAY, SAY = 4, 5, 9


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("language")
    return language_recipe(save_language_model(folder / "model"), save_prompts(folder / "data"))


Finish = Callable[..., Path]


@pytest.fixture(scope="module")
def finish(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Finish:
    """`finish({"federation.rounds": 1})`: the folder of a finished run; one of each."""
    made: dict[str, Path] = {}

    def make(**changes: Any) -> Path:
        key = repr(changes)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("run") / "run"
            run(parse_recipe(changed(values, **changes), "test"), made[key])
        return made[key]

    return make


def changed(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """`changed(values, federation__rounds=1)`."""
    made = copy.deepcopy(values)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            made.setdefault(section, {})[name] = value
        else:
            made[section] = value
    return made


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


Content = tuple[str, tuple[str, ...] | None, tuple[str, ...], np.ndarray]  # the first arguments of tokenization


def prompts(*pairs: tuple[str, str]) -> Content:
    first, second = zip(*pairs, strict=True)
    return "here", first, second, np.zeros(len(pairs), dtype=np.int64)


def texts(*learned: str) -> Content:
    return "here", None, learned, np.zeros(len(learned), dtype=np.int64)


def rows(examples: Completions) -> list[tuple[list[int], list[int]]]:
    """What comes before, and what is learned."""
    return [(before.tolist(), after.tolist()) for before, after in map(examples.text, range(len(examples)))]


# What is learned


def test_a_completion_is_learned_to_its_end_and_its_prompt_is_not():
    found = tokenize_completions(*prompts(("say ash", "ash ash"), ("say", "bay")), tiny_language_tokenizer(), 19)
    assert rows(found) == [([BEGIN, SAY, ASH], [ASH, ASH, END]), ([BEGIN, SAY], [BAY, END])]
    batch = found.batch([1, 0])
    assert batch["input_ids"].tolist() == [[BEGIN, SAY, BAY, END, PAD, PAD], [BEGIN, SAY, ASH, ASH, ASH, END]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch["labels"].tolist() == [[-100, -100, BAY, END, -100, -100], [-100, -100, -100, ASH, ASH, END]]
    chosen = found.select([1])
    assert rows(chosen) == rows(found)[1:]


def test_a_text_is_learned_whole():
    found = tokenize_completions(*texts("say ash", "bay"), tiny_language_tokenizer(), 19)
    assert rows(found) == [([], [BEGIN, SAY, ASH, END]), ([], [BEGIN, BAY, END])]


@pytest.mark.parametrize(
    ("max_length", "before", "after"),
    [
        (7, [BEGIN, SAY, SAY, BAY], [ASH, ASH, END]),
        (6, [BEGIN, SAY, BAY], [ASH, ASH, END]),  # of a prompt the beginning goes, not what the answer follows
        (5, [BEGIN, BAY], [ASH, ASH, END]),
        (4, [BAY], [ASH, ASH, END]),
        (3, [BAY], [ASH, ASH]),
        (2, [BAY], [ASH]),
    ],
)
def test_what_is_too_long_loses_its_prompt_first(
    max_length: int, before: list[int], after: list[int], caplog: pytest.LogCaptureFixture
):
    split = prompts(("say say bay", "ash ash"), ("say", "bay"))
    assert rows(tokenize_completions(*split, tiny_language_tokenizer(), max_length))[0] == (before, after)
    cut = 0 if max_length == 7 else 2 if max_length < 4 else 1
    assert [f"{cut} of 2 rows have more than data.max_length={max_length}" in text for text in caplog.messages] == [
        True
    ] * bool(cut)


def test_a_long_text_loses_its_end():
    assert rows(tokenize_completions(*texts("say ash bay"), tiny_language_tokenizer(), 3)) == [([], [BEGIN, SAY, ASH])]


def test_a_chat_template_says_who_speaks():
    tokenizer = tiny_language_tokenizer(CHAT)
    user, bot = (int(tokenizer.get_vocab()[word]) for word in ("user", "bot"))
    found = tokenize_completions(*prompts(("say ash", "ash")), tokenizer, 19, chat_template=True)
    assert rows(found) == [([user, SAY, ASH, bot], [ASH, END])]


@pytest.mark.parametrize(
    ("tokenizer", "split", "max_length", "chat", "message"),
    [
        (
            tiny_language_tokenizer(),
            prompts(("say", "ash"), ("say", "#")),
            19,
            False,
            r"'#' \(row 2\) is left to learn",
        ),
        (tiny_language_tokenizer(), texts("#"), 19, False, r"'#' \(row 1\) is left"),
        (tiny_language_tokenizer(), prompts(("say", "ash")), 1, False, "max_length=1 leaves nothing"),
        (tiny_language_tokenizer(), prompts(("say", "ash")), 19, True, "has no chat template; set"),
        (
            tiny_language_tokenizer("{{ raise_exception('no') }}"),
            prompts(("say", "ash")),
            19,
            True,
            "rejects a user's message",
        ),
        (
            tiny_language_tokenizer("{{ messages | length }} {{ messages[-1].content }}"),
            prompts(("say", "ash")),
            19,
            True,
            "changes the prompt of row 1 once it is answered",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(tokenizer: Any, split: Content, max_length: int, chat: bool, message: str):
    with pytest.raises(InputError, match=message):
        tokenize_completions(*split, tokenizer, max_length, chat)


def test_a_tokenizer_that_ends_no_text_is_refused():
    tokenizer = tiny_language_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        tokenize_completions(*texts("ash"), tokenizer, 19)


def test_strata_are_those_of_the_first_column_that_all_splits_have(values: dict[str, Any], tmp_path: Path):
    folder = save_prompts(tmp_path / "data")

    def load(columns: tuple[str, ...] = (), **changes: Any) -> Splits:
        recipe = parse_recipe(changed(values, **changes), "test")
        return load_splits(recipe, str(folder), SplitRequest(), columns)

    natural = {"kind": "natural", "by": "author"}
    found = load(partition=natural)  # no split has a column `label`, which is asked for first
    assert found.strata == ("author-0", "author-1", "author-2")
    np.testing.assert_array_equal(found.examples["test"].labels, np.arange(23) % 3)
    whole = {"data__prompt": None, "data__completion": None}
    found = load(("author",), **whole)
    assert found.strata == ("all",)
    assert found.label_names == ()
    assert not found.examples["train"].labels.any()
    assert not cast(Completions, found.examples["train"]).starts.any()  # no prompts
    assert found.columns["train"]["author"][:2] == ["author-0", "author-1"]
    with pytest.raises(InputError, match=r"no column 'answer'.*data.completion"):
        load(data__completion="answer")
    (folder / "test.csv").write_text("prompt,completion\nsay,\n")
    with pytest.raises(InputError, match="'completion' is empty in row 1"):
        load()


# What it costs


def test_the_loss_is_of_the_learned_tokens_each_from_the_one_before_worked_by_hand():
    """Three words; of the first text words 1 and 0 are learned, of the second word 2.

    The logits before them are log(1, 2, 1), log(1, 1, 2) and log(3, 1, 4), so that their probabilities are
    2/4, 1/4 and 4/8; the mean loss is (log 2 + log 4 + log 2) / 3.
    """
    logits_BSV = torch.full((2, 3, 3), 7.0)
    logits_BSV[0, 0] = torch.tensor([1.0, 2.0, 1.0]).log()
    logits_BSV[0, 1] = torch.tensor([1.0, 1.0, 2.0]).log()
    logits_BSV[1, 1] = torch.tensor([3.0, 1.0, 4.0]).log()
    labels = torch.tensor([[2, 1, 0], [-100, -100, 2]])  # nothing predicts a text's first word
    assert float(NextToken().loss(logits_BSV, labels)) == pytest.approx(4 / 3 * math.log(2))
    task = CausalLm()
    statistics = task.statistics(logits_BSV, {"labels": labels})
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
    values: dict[str, Any], tmp_path: Path, family: str
):
    model = save_language_model(tmp_path / family, family)
    folder = tmp_path / "run"
    recipe = parse_recipe(changed(values, backbone__model=str(model), federation__rounds=1), "test")
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


def test_padding_changes_no_logit_and_no_loss(values: dict[str, Any]):
    experiment = compose(parse_recipe(values, "test"))
    examples, model = experiment.test, experiment.model
    longest, shortest = int(examples.lengths.argmax()), int(examples.lengths.argmin())
    length = int(examples.lengths[shortest])
    with torch.inference_mode():
        alone = logits(model, examples.batch([shortest]))
        padded = logits(model, examples.batch([shortest, longest]))[:1]
    assert padded.shape[1] > length
    torch.testing.assert_close(padded[:, :length], alone)  # another width sums in another order
    loss = NextToken()
    torch.testing.assert_close(
        loss.loss(padded, examples.batch([shortest, longest])["labels"][:1]),
        loss.loss(alone, examples.batch([shortest])["labels"]),
    )


def test_a_large_vocabulary_is_measured_in_smaller_batches(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    experiment = compose(parse_recipe(values, "test"))
    task, test = experiment.task, experiment.test
    whole = tally(experiment.model, task, test, len(experiment.strata))
    monkeypatch.setattr("fftmoe.evaluate.MOST_LOGITS", 17 * int(test.lengths.max()) * 3)
    assert batch_size_for(experiment.model, task, test) == 3
    parts = tally(experiment.model, task, test, len(experiment.strata))
    np.testing.assert_allclose(parts.sums, whole.sums, rtol=1e-5)


# Training


def test_a_client_with_the_whole_budget_is_plain_fine_tuning_of_the_adapter(values: dict[str, Any]):
    """The same adapter, trained by a loop that knows nothing of federations."""
    everything = [{"name": "all", "fraction": 1.0, "top_k": 2, "experts": 5}]
    changes: dict[str, Any] = {"adapter__balance": "none", "adapter__z_strength": 0.0, "budgets": everything}
    changes |= {"partition": {"kind": "iid", "num_clients": 1}, "federation__clients_per_round": 1}
    recipe = parse_recipe(changed(values, **changes, engine={"prefix_cache": "off"}), "test")
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
            bound = 4000 * torch.finfo(torch.float32).eps * float(change.abs().max())
            torch.testing.assert_close(update.tensors[f"blocks.{block}.{part}"], change, rtol=0, atol=bound)
            moved += bool(change.any())
    assert moved == 6


def test_a_model_learns_to_answer(finish: Finish):
    folder = finish(federation__rounds=8, federation__local_steps=8, evaluation__every=4)
    summary = summary_of(folder)
    by_round = summary["perplexity_by_round"]
    assert [*by_round] == ["0", "4", "8"]
    assert by_round["8"] < by_round["4"] < by_round["0"]
    assert by_round["8"] < 0.7 * by_round["0"]


# Whole runs


def test_a_run_reports_its_perplexity_under_the_name_of_the_metric(finish: Finish):
    folder = finish(
        partition={"kind": "natural", "by": "author"},
        evaluation={"personal": True, "local_only": True, "generate": {"examples": 7, "max_new_tokens": 5}},
    )
    summary = summary_of(folder)
    assert summary["metric"] == "perplexity"
    assert summary["perplexity"] == pytest.approx(math.exp(summary["loss"]))
    assert summary["perplexity_by_tier"]["large"] == summary["perplexity"]
    assert summary["num_clients"] == 3
    for key in ("client_perplexity", "personal_perplexity", "local_only_perplexity", "local_only_client_perplexity"):
        assert summary[key]["worst_decile"] >= summary[key]["mean"] > 1  # the bad side is the high one
    assert 0 <= summary["exact_match"] <= summary["rouge_l"] <= 1
    assert summary["generated"] == 7
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["metric"] for row in rows] == ["perplexity"] * 3
    assert rows[-1]["perplexity"] == summary["perplexity"]
    assert rows[-1]["loss"] == summary["loss"]
    assert not any("accuracy" in key for key in (*summary, *rows[-1]))
    assert json.loads((folder / "adapter" / "labels.json").read_text()) == {"labels": []}
    measured = evaluate_run(folder)
    assert measured["perplexity"] == pytest.approx(summary["perplexity"], rel=1e-5)
    assert [*measured["perplexity_by_label"]] == ["author-0", "author-1", "author-2"]
    assert measured["exact_match"] == summary["exact_match"]


def test_the_perplexity_of_a_client_is_that_of_its_own_mix_of_tokens(values: dict[str, Any]):
    """By hand from the statistics of each kind: expected nats over expected tokens of an example of its own."""
    one_tier = [{"name": "all", "fraction": 1.0, "top_k": 2, "experts": 5}]
    own = {"kind": "dirichlet", "alpha": 0.5, "num_clients": 5}
    recipe = parse_recipe(changed(values, budgets=one_tier, data__label="kind", partition=own), "test")
    experiment = compose(recipe)
    assert experiment.strata == ("once", "twice")
    found = tally(experiment.model, experiment.task, experiment.test, 2)
    shares = experiment.partition.label_distribution(experiment.train.labels.numpy(), 2)
    means = found.sums / found.counts[:, None]
    expected = [math.exp((share @ means[:, 0]) / (share @ means[:, 1])) for share in shares]
    np.testing.assert_allclose(found.on_mixes(shares), expected)
    assert len({round(value, 6) for value in expected}) > 1


@pytest.mark.parametrize(
    "method",
    [
        "fedit",
        "local-only",
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in ("ffa-lora", "fedsa-lora", "hetlora", "flora", "flexlora", "flame", "centralized")
        ),
    ],
)
def test_every_method_trains_a_language_model(finish: Finish, method: str):
    summary = summary_of(finish(method=method))
    assert summary["clients_failed"] == 0
    assert summary["perplexity"] < summary["perplexity_by_round"].get("0", math.inf)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"text": "text", "max_length": 19}},
        {"partition": {"kind": "shards", "num_clients": 5, "shards_per_client": 1}, "data__label": "kind"},
        {"privacy": {"min_contributors": 2}, "adapter__residents": "balanced"},
        {"federation__upload": "int8", "adapter__shared_dim": 2, "adapter__shared_rank": 1},
    ],
    ids=["texts", "shards", "private", "int8"],
)
def test_other_data_and_settings(finish: Finish, values: dict[str, Any], changes: dict[str, Any]):
    changes = {
        key: value if key != "data" else {"source": values["data"]["source"], **value} for key, value in changes.items()
    }
    summary = summary_of(finish(**changes))
    assert summary["clients_failed"] == 0
    assert summary["perplexity"] < summary["perplexity_by_round"]["0"]


def test_a_plan_costs_no_head(values: dict[str, Any]):
    found = forecast(parse_recipe(values, "test"))
    small, large = found.tiers
    # Two blocks, each expert with 2 * 4 * 20 numbers and a router row of 20.
    assert small.trainable_parameters == 2 * 2 * (2 * 4 * 20 + 20)
    assert large.trainable_parameters == 2 * 5 * (2 * 4 * 20 + 20)
    assert found.sums is None
    assert found.prefix_refused is None


def test_the_states_below_the_adapter_are_kept(values: dict[str, Any], finish: Finish):
    kept, computed = finish(), finish(engine={"prefix_cache": "off"})
    assert hasattr(compose(parse_recipe(values, "test")).train, "block")
    # Batches of other widths round otherwise, and training carries it on.
    assert summary_of(kept)["perplexity"] == pytest.approx(summary_of(computed)["perplexity"], rel=1e-4)


@pytest.mark.slow
def test_one_and_two_workers_give_the_same_bytes(finish: Finish):
    one, two = (finish(engine={"workers": workers}) for workers in (1, 2))
    assert results(one) == results(two)
    assert len(results(one)) > 3
    assert summary_of(one)["perplexity_by_round"] == summary_of(two)["perplexity_by_round"]


def test_the_rest_of_a_run_gives_the_bytes_of_the_whole(
    values: dict[str, Any], finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, "before the checkpoint", 1)
        with pytest.raises(Killed):
            run(parse_recipe(values, "test"), folder)
    resume(folder)
    assert results(folder) == results(finish())
    assert summary_of(folder)["perplexity_by_round"] == summary_of(finish())["perplexity_by_round"]


# What it writes


def test_greedy_text_is_the_most_likely_token_again_and_again(values: dict[str, Any]):
    model = compose(parse_recipe(values, "test")).model
    generator = torch.Generator().manual_seed(5)
    asked = [torch.randint(4, 14, (length,), generator=generator) for length in (3, 7, 1, 5, 2)]
    with torch.inference_mode():
        expected = [by_hand(model, prompt, 6) for prompt in asked]
    found = continue_greedily(model, asked, 6, end_id=END, pad_id=PAD, batch_size=2)
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


# What cannot be run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": {"kind": "averaged", "learning_rate": 1.0}}, ("no head", "remove the section `head`")),
        ({"head": {"kind": "closed-form"}}, ("no head", "remove the section `head`")),
        ({"method": "head-only"}, ("head-only", "language model", "choose another")),
        ({"data__prompt": "question"}, ("no column 'question'", "data.prompt")),
        ({"data__completion": None}, ("data.prompt and data.completion belong together",)),
        ({"data__chat_template": True}, ("has no chat template",)),
        ({"data": {"source": ".", "chat_template": True}}, ("data.chat_template", "data.prompt")),
        ({"data__max_length": 38}, ("data.max_length=38", "37 tokens")),
        ({"data__label": "topic"}, ("no column 'topic'",)),
        ({"partition": {"kind": "dirichlet", "alpha": 1.0, "num_clients": 5}}, ("no column 'label'", "data.label")),
        ({"engine__clients_per_batch": 2}, ("clients_per_batch=2", "causal-lm", "one client at a time")),
        ({"evaluation__generate": {"examples": 3, "max_new_tokens": 30}}, ("max_new_tokens=30", "37 tokens")),
        ({"backbone__task": "sequence-classification"}, ("missing key 'head'",)),
    ],
)
def test_a_recipe_that_cannot_be_run(
    values: dict[str, Any], tmp_path: Path, cli: Cli, changes: dict[str, Any], words: tuple[str, ...]
):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(values, **changes)))
    outcome = cli("run", path, "--output", tmp_path / "run")
    assert outcome.status == 2
    assert not (tmp_path / "run").exists()
    for word in words:
        assert word in outcome.err, outcome.err


def test_classification_takes_nothing_of_a_language_model(recipe_values: dict[str, Any]):
    for key, value in (("data__prompt", "text"), ("evaluation__generate", {"examples": 3, "max_new_tokens": 3})):
        more = {"data__completion": "label"} if key == "data__prompt" else {}
        with pytest.raises(InputError, match=f"{key.replace('__', '.')} is for language models"):
            parse_recipe(changed(recipe_values, **{key: value}, **more), "test")


def test_the_command_line_prints_the_perplexity(values: dict[str, Any], tmp_path: Path, cli: Cli):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(values, federation__rounds=1)))
    outcome = cli("run", path, "--output", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    assert re.search(r"round   1 .*perplexity \d", outcome.out)
    assert re.search(r"^perplexity \d+\.\d+ on the whole test set", outcome.out, re.MULTILINE)
    assert "accuracy" not in outcome.err + outcome.out


def test_methods_are_compared_by_perplexity_and_without_a_head(values: dict[str, Any], tmp_path: Path, cli: Cli):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(values, federation__rounds=1)))
    flags = ("--methods", "fft-moe,fedit", "--seeds", "1", "--workers", "1", "--output", tmp_path / "compared")
    outcome = cli("compare", path, *flags)
    assert outcome.status == 0, outcome.err
    for words in (r"\[2/2, .*\] fedit, .*: perplexity \d", r"fft-moe − fedit +[+-]\d", "below 0"):
        assert re.search(words, outcome.out), words
    assert "accuracy" not in outcome.err + outcome.out
    known = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert (known["metric"], *known["variants"]) == ("perplexity", "fft-moe", "fedit")
    (ours,) = known["variants"]["fft-moe"]["by_partition"].values()
    run(parse_recipe(changed(values, seed=0, federation__rounds=1), "test"), tmp_path / "alone")
    assert ours["mean"] == summary_of(tmp_path / "alone")["perplexity"]
