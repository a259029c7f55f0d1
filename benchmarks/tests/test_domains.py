"""`benchmarks/domains.py`: its cells are valid recipes, and each of them is the comparison that its name says."""

import importlib
from pathlib import Path

import pytest

from fftmoe.config import load_recipe
from fftmoe.methods.budget import ExpertShape
from fftmoe.setup.cells import make_grid

# d of a block, and d_in + d_out of its query and value and of all its linear layers.
BLOCKS = {"flan8": (64, 224, 1156), "shakespeare": (64, 224, 1156), "pacs32": (128, 512, 1792)}


@pytest.mark.parametrize(("scale", "num_variants", "seeds"), [("committed", 8, 3), ("full", 15, 5)])
@pytest.mark.parametrize("name", ["flan8", "shakespeare", "pacs32"])
def test_every_cell_is_a_valid_recipe(monkeypatch, name: str, scale: str, num_variants: int, seeds: int):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    domains = importlib.import_module("domains")

    parsed = domains.parse(["--data", "data", "--models", "models", "--scale", scale])
    cells = make_grid(
        domains.as_measured(name),
        {"seeds": domains.SCALES[scale][1]},
        variants=domains.variants(name, scale),
        overrides=domains.changes(name, parsed),
    ).cells
    assert len(cells) == num_variants * seeds
    assert {cell.recipe.data.validation_examples for cell in cells} == {400 if scale == "committed" else None}

    # The smallest tier's parameters in a block: its experts without router rows, and what all share.
    dim, attention, linear = BLOCKS[name]
    costs = []
    for recipe in (cell.recipe for cell in cells if cell.recipe.method == "fft-moe" and cell.recipe.seed == 0):
        targets, rank = recipe.adapter.shared_targets, recipe.adapter.shared_rank
        projections = rank * (linear if targets == "all-linear" else attention)
        shape = ExpertShape(dim, recipe.adapter.expert_dim, recipe.adapter.shared_dim, projections)
        experts = recipe.budgets[0].experts
        assert experts is not None
        costs.append((targets, shape.block_parameters(experts) - dim * experts))
    (new,) = (size for targets, size in costs if targets == "all-linear")
    (same,) = {size for targets, size in costs if targets == "query-value"}
    assert len(costs) == 4
    assert 0.94 * same < new <= same


def test_tables_are_measured_in_float32_on_every_machine(monkeypatch: pytest.MonkeyPatch):
    """A recipe that leaves the precision out gets the default of the day, and that of its machine."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    common = importlib.import_module("common")
    files = sorted(common.as_measured("any").parent.glob("*.yaml"))
    assert len(files) == 5
    assert {load_recipe(file, may_read=False).engine.precision for file in files} == {"float32"}
