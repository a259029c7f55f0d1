"""`benchmarks/domains.py`: its cells are valid recipes, and each of them is the comparison that its name says."""

import importlib
from pathlib import Path

import pytest

from fftmoe.experiment.cells import make_grid
from fftmoe.methods.budget import ExpertShape


@pytest.mark.parametrize(("scale", "num_variants", "seeds"), [("committed", 6, 3), ("full", 13, 5)])
@pytest.mark.parametrize("name", ["flan8", "shakespeare", "pacs32"])
def test_every_cell_is_a_valid_recipe(monkeypatch, name: str, scale: str, num_variants: int, seeds: int):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    domains = importlib.import_module("domains")

    parsed = domains.parse(["--data", "data", "--models", "models", "--scale", scale])
    cells = make_grid(
        name,
        {"seeds": domains.SCALES[scale][1]},
        variants=domains.variants(name, scale),
        overrides=domains.changes(name, parsed),
    ).cells
    assert len(cells) == num_variants * seeds
    assert {cell.recipe.data.validation_examples for cell in cells} == {400 if scale == "committed" else None}

    # In a block of dim 11: the experts and what is shared of the smallest tier, by what LoRA's rank is matched to.
    ours = {cell.variant: cell.recipe for cell in cells if cell.recipe.method == "fft-moe"}
    cost = {}
    for variant, recipe in ours.items():
        shape = ExpertShape(11, recipe.adapter.expert_dim, recipe.adapter.shared_dim)
        experts = recipe.budgets[0].experts
        assert experts is not None
        cost[variant] = shape.block_parameters(experts) - 11 * experts  # a dense expert needs no router
    assert len(cost) == 3
    assert set(cost.values()) == {2 * 64 * 11}
