"""Fewer bytes on the wire: the laws of the codec, of error feedback, and whole runs with it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.client.compress import compress, split_state
from fftmoe.errors import InputError
from fftmoe.records import ClientUpdate, Tensors, pack_update, unpack_update
from fftmoe.records.codec import bytes_per_number, decode, encode
from fftmoe.rng import generator

SHAPES = {"head.bias": (3,), "blocks.1.up": (2, 5, 17), "shared.1.query.b": (13, 3), "scalar": ()}
LOSSY = ("bfloat16", "int8")


def tensors(seed: int, scale: float = 1.0) -> Tensors:
    return {name: scale * torch.randn(shape, generator=generator(seed, name)) for name, shape in SHAPES.items()}


# The codec


@given(st.integers(0, 2**20), st.floats(1e-30, 1e20))
def test_int8_is_off_by_half_a_step_of_its_slice(seed: int, scale: float):
    for name, tensor in tensors(seed, scale).items():
        if tensor.dim() == 0:
            continue
        found = decode(encode({name: tensor}, "int8"))[name]
        longest = max(range(tensor.dim()), key=lambda axis: tensor.shape[axis])
        step = tensor.double().abs().amax(longest, keepdim=True) / 127
        # Half a step, and the rounding of the scale and of the product in float32.
        assert ((found.double() - tensor.double()).abs() <= 0.5001 * step).all()


@given(st.integers(0, 2**20))
def test_bfloat16_keeps_eight_bits(seed: int):
    for name, tensor in tensors(seed).items():
        found = decode(encode({name: tensor}, "bfloat16"))[name]
        assert ((found - tensor).abs() <= tensor.abs() / 256).all()
        assert torch.equal(decode(encode({name: found}, "bfloat16"))[name], found)


def test_float32_and_unencoded_tensors_do_not_change():
    own = tensors(1)
    assert all(torch.equal(decode(encode(own, "float32"))[name], tensor) for name, tensor in own.items())
    counts = {"counts": torch.arange(3), "sums": torch.ones(2, dtype=torch.float64)}
    assert all(decode(counts)[name] is tensor for name, tensor in counts.items())


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("shape", [(7,), (3, 11), (0, 5), (2, 0, 3), ()])
def test_zeros_and_empty_tensors_come_back(kind: str, shape: tuple[int, ...]):
    found = decode(encode({"a": torch.zeros(shape)}, kind))["a"]
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.zeros(shape))


def test_an_int8_tensor_takes_a_byte_a_number_and_a_scale_a_slice():
    up = torch.randn(2, 5, 384, generator=generator(1))
    parts = encode({"up": up}, "int8")
    assert {name: (t.dtype, t.shape) for name, t in parts.items()} == {
        "up": (torch.int8, (2, 5, 384)),
        "up:scale": (torch.float32, (2, 5, 1)),
    }
    assert sum(t.nbytes for t in parts.values()) == pytest.approx(bytes_per_number("int8", 384) * up.numel())
    assert encode({"b": torch.ones(384, 6)}, "int8")["b:scale"].shape == (1, 6)  # the longest axis, wherever it is


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="unknown upload 'int4'"):
        encode({}, "int4")


# Error feedback


def update(round: int, experts: tuple[int, ...], seed: int) -> ClientUpdate:
    source = generator(seed, round)
    rows = torch.randn(len(experts), 5, 17, generator=source)
    own = {"blocks.1.up": rows, "head.bias": torch.randn(3, generator=source)}
    return ClientUpdate(round, 4, 23, own, experts={1: experts}, shares={1: (0.5,) * len(experts)})


def scattered(update: ClientUpdate, of: Tensors) -> Tensor:
    """The rows of `blocks.1.up` at their experts, float64 [7, 5, 17]."""
    full = torch.zeros(7, 5, 17, dtype=torch.float64)
    full[list(update.experts[1])] = of["blocks.1.up"].double()
    return full


@given(
    st.lists(st.sets(st.integers(0, 6)).map(lambda ids: tuple(sorted(ids))), min_size=1, max_size=5),
    st.sampled_from(LOSSY),
    st.integers(0, 2**20),
)
def test_uploads_sum_to_the_true_deltas_minus_the_feedback(rounds: list[tuple[int, ...]], kind: str, seed: int):
    feedback: Tensors = {}
    true, sent = torch.zeros(7, 5, 17, dtype=torch.float64), torch.zeros(7, 5, 17, dtype=torch.float64)
    for t, experts in enumerate(rounds, 1):
        mine = update(t, experts, seed)
        packed, feedback = compress(mine, feedback, kind)
        arrived = unpack_update(pack_update(packed))
        assert replace(arrived, tensors={}) == replace(mine, tensors={})
        true += scattered(mine, mine.tensors)
        sent += scattered(mine, decode(arrived.tensors))
    held = torch.zeros_like(true)
    if feedback_rows := feedback.get("feedback/blocks.1.up:experts", torch.tensor([])).tolist():
        held[feedback_rows] = feedback["feedback/blocks.1.up"].double()
    # Equal but for the float32 additions of every round.
    torch.testing.assert_close(sent + held, true, rtol=0, atol=1e-5)
    # Only a step is ever held back, however many rounds there were.
    assert held.abs().max() <= 0.1


def test_float32_uploads_are_exact_and_keep_no_feedback():
    mine = update(1, (0, 3), 5)
    same, feedback = compress(mine, {}, "float32")
    assert same is mine
    assert feedback == {}


def test_feedback_is_separate_from_the_state_of_the_method():
    kept = {"blocks.1.router": torch.ones(2), "feedback/head.bias": torch.ones(3)}
    method, feedback = split_state(kept)
    assert (list(method), list(feedback)) == (["blocks.1.router"], ["feedback/head.bias"])
    assert split_state({}) == ({}, {})
