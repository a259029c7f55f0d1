"""What a private client sends: messages of equal length and header, within the clip norm."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.client.compress import compress
from fftmoe.client.conceal import concealed
from fftmoe.methods.private import joint_norm
from fftmoe.records import (
    Budget,
    ClientPlan,
    ClientUpdate,
    Tensors,
    pack_update,
    unpack_header,
    unpack_update,
)
from fftmoe.records.codec import decode
from fftmoe.rng import numpy_generator
from private_updates import (
    CLIP,
    TRAINING,
    UPLOADS,
    seeds,
    summed,
    update,
)

HELD = (0, 2, 3, 6)
PLAN = ClientPlan(1, 4, 9, Budget("small", 2, len(HELD), (1,)), {1: HELD}, TRAINING)


def honest(trained: Sequence[int], seed: int, num_examples: int = 37) -> ClientUpdate:
    """Make the result of a client that trained some of its resident experts."""
    shares = tuple(float(s) for s in numpy_generator(seed, "shares").dirichlet([1.0] * len(trained))) if trained else ()
    return replace(
        update(4, trained, seed),
        num_examples=num_examples,
        shares={1: shares},
        preferences={1: tuple(reversed(HELD))},
        metrics={"loss": 0.123456789 * (seed + 1)},
    )


def sent(made: ClientUpdate, upload: str = "float32") -> bytes:
    return pack_update(compress(concealed(made, PLAN), {}, upload)[0])


@pytest.mark.parametrize("upload", UPLOADS)
@given(trained=st.sets(st.sampled_from(HELD)), seed=seeds, num_examples=st.integers(1, 10**6))
@settings(max_examples=30)
def test_a_message_has_the_same_length_and_header_whatever_was_routed_where(
    upload: str, trained: set[int], seed: int, num_examples: int
):
    one, other = sent(honest(sorted(trained), seed, num_examples), upload), sent(honest(HELD, 1), upload)
    assert len(one) == len(other)
    length = int.from_bytes(one[:8], "little")
    assert one[: 8 + length] == other[: 8 + length]
    header = unpack_header(one)
    assert header["num_examples"] == 1
    assert header["experts"] == {"1": [*HELD]}
    assert [header[name] for name in ("shares", "preferences", "metrics")] == [{}, {}, {}]


def test_untrained_experts_are_sent_as_zeros():
    made = honest((2, 6), 3)
    plan = replace(PLAN, training=replace(TRAINING, clip_norm=None))
    arrived = unpack_update(pack_update(concealed(made, plan)))
    for name in ("blocks.1.router", "blocks.1.up", "blocks.1.down"):
        assert torch.equal(arrived.tensors[name][[1, 3]], made.tensors[name])
        assert not arrived.tensors[name][[0, 2]].any()
    assert torch.equal(arrived.tensors["head.weight"], made.tensors["head.weight"])


@given(scale=st.floats(0, 1e6), seed=seeds)
@settings(max_examples=30)
def test_a_clients_update_respects_the_clip_norm(scale: float, seed: int):
    made = honest(HELD, seed)
    arrived = concealed(replace(made, tensors={n: scale * t for n, t in made.tensors.items()}), PLAN)
    assert joint_norm(arrived.tensors) <= CLIP * (1 + 1e-6)  # float32


def test_feedback_of_rounding_stays_with_the_client_and_is_bounded_again_by_the_server():
    feedback: Tensors = {}
    for seed in range(3):
        update, feedback = compress(concealed(honest(HELD[:2], seed), PLAN), feedback, "int8")
        assert all(name.startswith("feedback/") for name in feedback)
        decoded = replace(update, tensors=decode(update.tensors))
        assert joint_norm(summed([decoded]).sums) <= CLIP * (1 + 1e-12)
