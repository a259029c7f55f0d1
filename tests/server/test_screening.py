"""Updates that no honest client could send are rejected with a reason, and the round equals one without them."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fftmoe.backbones import enable_resume
from fftmoe.client.compress import compress
from fftmoe.data import WithPrefix
from fftmoe.engines.base import Fault
from fftmoe.records import ClientUpdate, ServerState, Tensors, digest, pack_plan, pack_update, unpack_update
from fftmoe.records.codec import decode
from fftmoe.records.names import is_scale
from fftmoe.rounds import exchange as exchange_module
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.expectation import LARGEST, MARGIN
from fftmoe.server.lengths import update_length
from fftmoe.server.screening import MOST_EXAMPLES, Rejected, screen
from fftmoe.setup.clients import build_client, client_spec
from fftmoe.setup.expected import expectations
from fftmoe.setup.model import build_model
from fftmoe.store import pack_state
from spoiling import KINDS, SHAPE, of, put_together, say, taken_apart, text
from tampering import CELLS, Kept, Playback, Recorded, recipe_of, record

Record = Callable[[str], Recorded]


@pytest.fixture(scope="module")
def recorded(recipe_values: dict[str, Any]) -> Record:
    """`recorded("fedit-alone")` is the third round of this cell; each round is made once."""
    done: dict[str, Recorded] = {}

    def make(cell: str) -> Recorded:
        if cell not in done:
            done[cell] = record(recipe_of(cell, recipe_values), CELLS[cell][2])
        return done[cell]

    return make


every_cell = pytest.mark.parametrize("cell", CELLS)
trained = pytest.mark.parametrize("cell", [cell for cell, (*_, task, _) in CELLS.items() if task == "train"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_update_is_rejected_with_its_reason_and_changes_nothing(recorded: Record, kind: str):
    """Each kind is tried in every cell where it is possible; the state equals the state without the answer."""
    spoil, reason = KINDS[kind]
    spoilt = 0
    for cell in CELLS:
        known = recorded(cell)
        victim = known.victim
        message = spoil(known.replies[victim])
        if message is None:
            continue
        spoilt += 1
        with pytest.raises(Rejected, match=reason):
            screen(message, known.expectation(victim))
        state, counted = known.play({victim: message})
        (fault,) = counted.new_faults
        assert (fault.client_id, fault.kind) == (victim, "rejected"), cell
        assert re.search(reason, fault.reason), (cell, fault.reason)
        assert len(fault.reason) < 1000
        assert counted.faults == {"rejected": 1}
        assert counted.bytes_up == sum(map(len, {**known.replies, victim: message}.values()))
        without, _ = known.play({victim: Fault(victim, "spare", "enough others had answered")})
        assert pack_state(state) == pack_state(without), cell
    assert spoilt


# Accepted updates


@every_cell
def test_updates_of_honest_clients_pass(recorded: Record, cell: str):
    known = recorded(cell)
    for client_id, message in known.replies.items():
        update, sent = screen(message, known.expectation(client_id)), unpack_update(message)
        assert replace(update, tensors={}) == replace(sent, tensors={})
        assert update.tensors.keys() == sent.tensors.keys()
        assert all(torch.equal(update.tensors[name], tensor) for name, tensor in sent.tensors.items())
    _, counted = known.play({})
    assert counted.faults == {}
    assert counted.bytes_up == sum(map(len, known.replies.values()))


@trained
def test_a_message_may_exceed_the_planned_size_by_the_margin_only(recorded: Record, cell: str):
    known = recorded(cell)
    for client in known.plan.clients:
        method, upload = known.experiment.method, client.training.upload
        widest = method.widest_update(client, method.download(known.state, client))
        most = len(pack_update(compress(widest, {}, upload)[0]))
        assert known.expectation(client.client_id).most_bytes == most + MARGIN
        assert len(known.replies[client.client_id]) <= most


@trained
def test_the_largest_accepted_numbers_give_a_finite_state(recorded: Record, cell: str):
    def grow(header: dict[str, Any], tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            most = LARGEST / 127 if is_scale(name) else min(LARGEST, torch.finfo(torch.float32).max)
            tensor.copy_(torch.full_like(tensor, 127) if tensor.dtype == torch.int8 else torch.full_like(tensor, most))

    known = recorded(cell)
    state, counted = known.play({c: of(grow)(message) or b"" for c, message in known.replies.items()})
    assert counted.faults == {}
    assert all(torch.isfinite(tensor).all() for tensor in (*state.tensors.values(), *state.optimizer.values()))
    if any(
        name.startswith(("head.", "blocks.", "lora."))
        for name in screen(known.replies[known.victim], known.expectation(known.victim)).tensors
    ):
        assert max(float(tensor.abs().max()) for tensor in state.tensors.values()) > 1e12


@pytest.mark.parametrize("cell", ["fft-moe", "hetlora", "fft-moe-sums", "fedit-alone"])
def test_an_update_from_another_backbone_or_global_model_is_rejected(recorded: Record, cell: str):
    """One different bit in either model is enough to reject the update."""
    known = recorded(cell)
    experiment, plan = known.experiment, next(c for c in known.plan.clients if c.client_id == known.victim)
    expected, method = known.expectation(known.victim), experiment.method

    def answer(state: ServerState, model: Any = None) -> bytes:
        handler = build_client(client_spec(experiment, Kept()), model or experiment.model)
        asked = replace(plan, base=digest(state.tensors))
        return handler([pack_plan(asked, method.download(state, asked))])[0]

    screen(answer(known.state), expected)
    for name in ("head.weight", max(known.state.tensors)):
        tensors = {n: t.clone() for n, t in known.state.tensors.items()}
        tensors[name].view(torch.int32).view(-1)[-1] ^= 1
        with pytest.raises(Rejected, match="another global model than the server sent"):
            screen(answer(replace(known.state, tensors=tensors)), expected)
    damaged = build_model(experiment.recipe, experiment.label_names)
    assert isinstance(experiment.train, WithPrefix)
    enable_resume(damaged, experiment.train.block)
    weight = damaged.get_submodule("base_model.model.backbone.embeddings.word_embeddings").weight
    weight.data.view(torch.int32)[3, 5] ^= 1
    with pytest.raises(Rejected, match="another backbone than the server's"):
        screen(answer(known.state, damaged), expected)


def test_an_expert_that_is_not_resident_is_rejected(recorded: Record):
    known = recorded("fft-moe")
    client = next(client for client in known.plan.clients if len(client.experts[2]) == 2)
    (other, *_) = sorted(set(range(5)) - set(client.experts[2]))

    def steal(header: dict[str, Any], tensors: Tensors) -> None:
        header["experts"]["2"][0] = other
        header["experts"]["2"].sort()

    with pytest.raises(Rejected, match=rf"some of \({client.experts[2][0]}, "):
        screen(of(steal)(known.replies[client.client_id]) or b"", known.expectation(client.client_id))


@pytest.mark.parametrize("wrong", [0, -1, MOST_EXAMPLES + 1, True, 7.0])
def test_an_unknown_number_of_examples_must_still_be_plausible(recorded: Record, wrong: Any):
    known = recorded("fedit")
    expected = known.expectation(known.victim, num_examples=None)
    for right in (1, 123, MOST_EXAMPLES):
        assert screen(say(num_examples=right)(known.replies[known.victim]) or b"", expected).num_examples == right
    with pytest.raises(Rejected, match=f"num_examples {wrong}; expected a whole number from 1 to 1000000000"):
        screen(say(num_examples=wrong)(known.replies[known.victim]) or b"", expected)


@pytest.mark.parametrize("cell", ["fft-moe", "fft-moe-int8", "flora"])
def test_the_norm_of_an_update_is_bounded_if_the_expectation_has_a_bound(recorded: Record, cell: str):
    known = recorded(cell)
    message = known.replies[known.victim]
    deltas = decode(unpack_update(message).tensors).values()
    norm = float(torch.cat([delta.double().flatten() for delta in deltas]).norm())
    screen(message, known.expectation(known.victim, max_norm=norm * 1.001))
    with pytest.raises(Rejected, match=r"deltas have the norm \S+; at most \S+ is allowed"):
        screen(message, known.expectation(known.victim, max_norm=norm * 0.999))


def test_local_training_has_no_norm_bound(recorded: Record):
    known = recorded("fedit-alone")
    screen(known.replies[known.victim], known.expectation(known.victim, max_norm=1e-9))


PRIVATE = {"adapter.residents": "balanced", "privacy": {}}


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        ("experts", lambda own: {block: ids[:-1] for block, ids in own.items()}),
        ("experts", lambda own: {block: [True, *ids[1:]] for block, ids in own.items()}),
        ("shares", lambda own: {"2": [0.5, 0.5]}),
        ("preferences", lambda own: {"2": [0, 1]}),
        ("metrics", lambda own: {"loss": 0.5}),
        ("num_examples", lambda own: 26),
    ],
)
def test_an_update_of_a_private_client_that_differs_from_the_common_header_is_rejected(
    recipe_values: dict[str, Any], name: str, stated: Callable[[Any], Any]
):
    """The header of a private update is equal for all clients with the same experts."""
    known = record(recipe_of("fft-moe", recipe_values, **PRIVATE), "train", rounds=1)
    message, expected = known.replies[known.victim], known.expectation(known.victim)
    screen(message, expected)
    with pytest.raises(Rejected, match=r"expected .* from a private client|num_examples 26; expected 1$"):
        screen(of(lambda h, t: h.update({name: stated(h[name])}))(message) or b"", expected)


def test_the_shapes_of_a_sites_statistics_follow_from_its_stated_number_of_examples(recorded: Record):
    """The server does not know this number; the statistics must be over as many examples."""
    known = recorded("fft-moe-sums-of-few")
    message, expected = known.replies[known.victim], known.expectation(known.victim, num_examples=None)
    assert "sums.factor" in screen(message, expected).tensors
    for num_examples, reason in ((25, SHAPE), (10**9, r"lacks the tensors \['sums.gram'\]")):
        with pytest.raises(Rejected, match=reason):
            screen(say(num_examples=num_examples)(message) or b"", expected)


def test_statistics_of_a_private_client_need_at_least_one_example(recipe_values: dict[str, Any]):
    known = record(recipe_of("fft-moe-sums", recipe_values, **PRIVATE), "sums", rounds=1)
    message, expected = known.replies[known.victim], known.expectation(known.victim)
    screen(message, expected)
    with pytest.raises(Rejected, match="num_examples 0; expected a whole number from 1"):
        screen(of(lambda h, t: [x.zero_() for x in t.values()] and None)(message) or b"", expected)


@pytest.mark.parametrize(
    "json", ["[" * 10**5, '{"a":' * 10**5, '"' + r"\"" * 10**5, '{"a":' + "9" * 10**5 + "}", "\\" * 10**5]
)
def test_malicious_json_is_rejected_quickly(recorded: Record, json: str):
    known = recorded("fedit")
    expected = known.expectation(known.victim, most_header=10**7, most_bytes=10**7)
    for message in (put_together(json, b""), text(lambda _: json)(known.replies[known.victim])):
        start = time.process_time()
        with pytest.raises(Rejected, match="is not an fftmoe update"):
            screen(message, expected)
        assert time.process_time() - start < 2


def test_a_rejected_answer_does_not_count_towards_the_quota(recorded: Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exchange_module, "IN_FLIGHT", 2)
    known, asked = recorded("fedit"), {}
    download, expect = partial(known.experiment.method.download, known.state), expectations(known.experiment)
    for first in (known.replies[0], b"nothing"):
        engine = Playback({**known.replies, 0: first})
        updates = Exchange(engine, expect, Ledger()).updates(known.plan, download, enough=3)
        asked[len(list(updates))] = engine.enough
    assert asked == {3: [3, 1], 2: [3, 2]}


def test_an_answer_that_is_too_long_takes_no_honest_clients_place(recorded: Record, monkeypatch: pytest.MonkeyPatch):
    """Two of three are wanted, and the long one answers first."""
    monkeypatch.setattr(exchange_module, "IN_FLIGHT", 1)
    known = recorded("fedit")
    download, expect = partial(known.experiment.method.download, known.state), expectations(known.experiment)
    honest = update_length(unpack_update(known.replies[0]), "train")
    long = of(lambda h, t: [tensor.mul_(1e4) for tensor in t.values()] and None)(known.replies[0])
    ledger, engine = Ledger(), Playback({**known.replies, 0: long or b""})
    ledger.usual(honest)
    updates = list(Exchange(engine, expect, ledger).updates(known.plan, download, enough=2))
    assert [update.client_id for update in updates] == [1, 3]
    assert engine.enough == [2, 2, 1]
    assert [(fault.client_id, fault.kind) for fault in ledger.new_faults] == [(0, "rejected")]


# Random mutations


def mutated(messages: list[bytes], random: np.random.Generator) -> bytes:
    """Change a few bytes, or one value of the JSON, of one of these messages."""
    message = bytearray(messages[random.integers(len(messages))])
    length = 8 + int.from_bytes(message[:8], "little")
    for _ in range(random.integers(1, 4)):
        end = length if random.random() < 0.7 else len(message)  # most possible errors are in the header
        start = int(random.integers(end))
        stop = start + int(random.integers(1, 9))
        match random.integers(6):
            case 0:
                message[start] ^= 1 << int(random.integers(8))
            case 1:
                message[start:stop] = random.bytes(stop - start)
            case 2:
                del message[start:stop]
            case 3:
                message[start:start] = message[start:stop]
            case 4:
                other = messages[random.integers(len(messages))]
                message[start:stop] = other[start:stop]
            case 5:
                return _revalued(bytes(message), random)
        if not message:
            break
    return bytes(message)


def _revalued(message: bytes, random: np.random.Generator) -> bytes:
    """Replace a number or a word of the message's JSON; the lengths still fit."""
    try:
        outer, data = taken_apart(message)
        inner = outer["__metadata__"]["header"]
    except (ValueError, KeyError, TypeError):
        return message
    values = list(re.finditer(r"-?[\d.]+(?:e-?\d+)?|\w+", inner))
    if not values:
        return message
    place = values[random.integers(len(values))]
    new = ("0", "-1", "1", "2", "true", "null", "[]", "{}", "1e999", "0.5", '"x"', "4", "1e16", "NaN", "100000000000")
    outer["__metadata__"]["header"] = inner[: place.start()] + new[random.integers(len(new))] + inner[place.end() :]
    return put_together(outer, data)


def assert_like(update: ClientUpdate, honest: ClientUpdate, known: Recorded) -> None:
    """Check that an honest client could have sent the update, given the update that it did send."""
    plan = next(client for client in known.plan.clients if client.client_id == honest.client_id)
    for name in ("round", "client_id", "num_examples"):
        assert type(getattr(update, name)) is int
        assert getattr(update, name) == getattr(honest, name)
    assert update.tensors.keys() == honest.tensors.keys()
    assert update.metrics.keys() <= honest.metrics.keys()
    for table in ("experts", "shares", "preferences"):
        assert getattr(update, table).keys() == getattr(honest, table).keys()
    for block, ids in update.experts.items():
        assert all(type(m) is int and m in plan.experts[block] for m in ids)
        assert list(ids) == sorted(set(ids))
        assert len(update.shares[block]) == len(ids)
    for name, tensor in update.tensors.items():
        other = honest.tensors[name]
        rows = len(update.experts[int(name.split(".")[1])]) if name.startswith("blocks.") else len(other)
        assert tensor.dtype == other.dtype
        if not is_scale(name):
            assert tensor.shape == (rows, *other.shape[1:])
    assert all(torch.isfinite(tensor).all() for tensor in decode(update.tensors).values())


def try_mutations(known: Recorded, number: int, seed: int) -> int:
    """Mutate the victim's message `number` times; return how many mutations were accepted. Each must be valid."""
    victim, accepted = known.victim, 0
    messages = [known.replies[victim], *(m for c, m in known.replies.items() if c != victim)]
    expected, honest = known.expectation(victim), unpack_update(messages[0])
    for trial in range(number):
        message = mutated(messages, np.random.default_rng([seed, trial]))
        try:
            update = screen(message, expected)
        except Rejected:
            continue
        accepted += 1
        assert_like(update, honest, known)
        state, _ = known.play({victim: message})
        assert all(torch.isfinite(tensor).all() for tensor in state.tensors.values())
    return accepted


def test_mutated_messages_are_rejected_or_valid(recorded: Record):
    accepted = sum(try_mutations(recorded(cell), 25, seed) for seed, cell in enumerate(CELLS))
    assert 10 < accepted < 400


@pytest.mark.slow
@every_cell
def test_ten_thousand_mutated_messages_are_rejected_or_valid(recorded: Record, cell: str):
    assert try_mutations(recorded(cell), 10_000 // len(CELLS) + 1, seed=99) > 0
