"""The moving average of the global model: its closed form, what is served, and that training does not see it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.records import ServerState
from fftmoe.rng import generator
from fftmoe.server.average import averaged, served
from fftmoe.store import pack_state, unpack_state


def rounds(num_rounds: int, seed: int) -> list[ServerState]:
    """Random states of rounds 1, 2, …, each with two tensors."""
    random = generator(seed)
    shapes = {"head.weight": (3, 5), "blocks.1.up": (7, 2)}
    return [
        ServerState(t, {name: torch.randn(shape, generator=random) for name, shape in shapes.items()})
        for t in range(1, num_rounds + 1)
    ]


def after(states: list[ServerState], decay: float) -> ServerState:
    """Return the last state with the average of all states."""
    state = averaged(states[0], decay)
    for new in states[1:]:
        state = averaged(replace(new, average=state.average), decay)
    return state


@given(st.integers(1, 11), st.floats(0.05, 0.95), st.integers(0, 2**20))
def test_the_average_weights_every_round_by_its_age(num_rounds: int, decay: float, seed: int):
    states = rounds(num_rounds, seed)
    state = after(states, decay)
    weights = [decay ** (num_rounds - s.round) for s in states]
    for name, average in state.average.items():
        expected = sum(w * s.tensors[name].double() for w, s in zip(weights, states, strict=True)) / sum(weights)
        # It is kept in float32 and rounded in every round.
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_first_round_is_its_own_average_and_equal_rounds_stay_bit_for_bit():
    (first,) = rounds(1, 3)
    state = after([first, replace(first, round=2), replace(first, round=3)], 0.7)
    for name, tensor in first.tensors.items():
        assert torch.equal(state.average[name], tensor)


def test_without_decay_no_average_is_kept_and_the_model_is_served():
    (first,) = rounds(1, 3)
    assert averaged(first, 0.0) is first
    assert served(first) is first


def test_the_average_is_served_and_training_continues_from_the_model():
    states = rounds(2, 4)
    state = after(states, 0.5)
    assert all(torch.equal(state.tensors[name], t) for name, t in states[1].tensors.items())
    shown = served(state)
    assert all(torch.equal(shown.tensors[name], t) for name, t in state.average.items())
    assert served(shown) is shown


def test_a_stored_state_includes_its_average():
    state = after(rounds(3, 5), 0.7)
    again = unpack_state(pack_state(state))
    assert again.average.keys() == state.average.keys()
    assert all(torch.equal(again.average[name], t) for name, t in state.average.items())


def test_a_tensor_that_appears_later_starts_with_its_first_value():
    one, two = rounds(2, 6)
    two = replace(two, tensors=two.tensors | {"merged.0": torch.ones(3)})
    assert torch.equal(after([one, two], 0.7).average["merged.0"], torch.ones(3))


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_the_inputs_are_not_changed(decay: float):
    states = rounds(2, 7)
    before = [{name: t.clone() for name, t in s.tensors.items()} for s in states]
    after(states, decay)
    assert all(torch.equal(s.tensors[n], t) for s, old in zip(states, before, strict=True) for n, t in old.items())
