"""Centralized training is one client of the largest tier, which takes as many steps as a cohort together."""

import pytest

from run_fixtures import ComposeFive


def test_centralized_is_one_client_of_the_largest_tier_with_a_cohorts_steps(compose_five: ComposeFive):
    experiment = compose_five("centralized")
    assert (experiment.num_clients, experiment.partition.sizes.tolist()) == (1, [113])
    assert [tier.name for tier in experiment.tiers] == ["large"]
    assert experiment.training.local_steps == 3 * 2
    assert experiment.recipe.federation.clients_per_round == 1


def test_centralized_takes_a_cohorts_share_of_an_epoch(compose_five: ComposeFive):
    lengths = {"federation.local_steps": None, "federation.local_epochs": 2}
    # Two epochs of three of five clients: 2 * 3 / 5 of 113 examples in batches of 5, rounded per client.
    assert compose_five("centralized", **lengths).training.local_steps == 3 * round(2 * 113 / 5 / 5)
    natural = {"partition": {"kind": "natural", "by": "author"}}  # four of them
    assert compose_five("centralized", **lengths, **natural).training.local_steps == 3 * round(2 * 113 / 4 / 5)


@pytest.mark.parametrize("order", [1, -1])
def test_the_largest_tier_is_the_one_with_all_blocks_and_the_widest_limits(compose_five: ComposeFive, order: int):
    narrow = {"name": "narrow", "fraction": 0.4, "top_k": 3, "experts": 5, "blocks": "last-1"}
    limits = [
        {"name": "little", "fraction": 0.2, "top_k": 1, "memory_mib": 0.02},
        {"name": "much", "fraction": 0.4, "top_k": 1, "memory_mib": 1},
    ]
    experiment = compose_five("centralized", budgets=[narrow, *limits][::order])
    assert [tier.name for tier in experiment.tiers] == ["much"]
