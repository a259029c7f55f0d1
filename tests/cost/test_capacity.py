"""The tier that a site's machine can take, by its limits."""

import pytest

from fftmoe.cost import capacity
from fftmoe.cost.capacity import fitting_tier
from fftmoe.errors import InputError
from fftmoe.methods.budget import MIB, ExpertShape
from fftmoe.records import Budget

SHAPE = ExpertShape(dim=384, expert_dim=16)  # 2 * 16 * 384 + 384 = 12,672 parameters an expert
EXPERT_MIB = 12_672 * 16 / MIB  # in training
NARROW = Budget("narrow", 1, 16, (5,))  # 16 experts in one block
WIDE = Budget("wide", 1, 16, (0, 1, 2, 3, 4, 5))
TINY = Budget("tiny", 1, 2, (5,))
TIERS = (TINY, NARROW, WIDE)


def fitting(budget: str, upload: str = "float32", deadline_seconds: float = 100.0) -> str:
    names = ["derived", *(tier.name for tier in TIERS)]
    return fitting_tier(budget, names, TIERS, SHAPE, upload, 1000, deadline_seconds)


def test_a_tier_is_chosen_by_its_own_blocks():
    """The narrow tier needs 3.1 MiB; in all six blocks, 10 MiB would hold 8 experts of its 16."""
    assert pytest.approx(3.09, abs=0.01) == 16 * EXPERT_MIB
    assert fitting("memory_mib=10") == "narrow"
    assert fitting(f"memory_mib={6 * 16 * EXPERT_MIB + 0.001}") == "wide"
    assert fitting("memory_mib=1") == "tiny"


def test_an_uplink_is_compared_with_the_bytes_that_are_sent():
    """In float32 the narrow tier sends 0.77 MiB, in 16 bits half of it."""
    assert fitting("uplink_mib=0.5") == "tiny"
    assert fitting("uplink_mib=0.5", upload="bfloat16") == "narrow"


def test_every_limit_must_hold():
    flops = 1000 * SHAPE.flops_per_token(1, 16) / 1e9
    assert fitting(f"gflops={flops * 1.001}") == "narrow"
    assert fitting(f"gflops={flops * 0.999}") == "tiny"
    assert fitting(f"memory_mib=1000,gflops={flops * 1.001}") == "narrow"
    assert fitting(f"memory_mib=1, gflops={flops * 1.001}") == "tiny"


def test_auto_takes_a_quarter_of_the_memory_and_of_the_time(monkeypatch: pytest.MonkeyPatch):
    flops = 1000 * SHAPE.flops_per_token(1, 16) / 1e9
    monkeypatch.setattr(capacity, "available_mib", lambda: 40.0)
    monkeypatch.setattr(capacity, "gflops_per_second", lambda: flops)
    assert fitting("auto") == "narrow"  # 10 MiB, and 25 times the time that it needs
    assert fitting("auto", deadline_seconds=4.001) == "narrow"
    assert fitting("auto", deadline_seconds=3.999) == "tiny"
    monkeypatch.setattr(capacity, "available_mib", lambda: 0.1)
    with pytest.raises(InputError, match=r"'tiny', needs memory_mib 0\.3867, gflops"):
        fitting("auto")


def test_a_tier_that_states_no_numbers_is_taken_by_name_only():
    assert fitting("derived") == "derived"
    with pytest.raises(InputError, match="no tier states its experts and top_k; raise the limits, or name a tier: d"):
        fitting_tier("memory_mib=9", ["d"], [], SHAPE, "float32", 1000, 1.0)
