"""States what a comparison is bound to: one recipe for its folder, and equal data, backbone and versions for all its
cells.

Cells are compared pair by pair, so a cell of other data, or of another version of the code, must not stand beside the
others unseen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError
from fftmoe.setup.bindings import bound_recipe, inputs_of
from fftmoe.setup.cells import Cell, Grid
from fftmoe.setup.plugins import Plugins
from fftmoe.store import Bindings
from fftmoe.store.bindings import Change, differences, require_same
from fftmoe.strict import hash_text, read_small, strict_json

MOST_RECORD_BYTES = 2**28  # of `comparison.json`, which holds the rows of all cells
MOST_CELLS_SHOWN = 3  # cells


def bind_folder(grid: Grid, output: Path) -> None:
    """Bind the folder of a comparison to the recipe of its cells, and to the cells on its page.

    More methods, heads, partitions and seeds can join them.

    Raises:
        InputError: the folder belongs to a comparison of another recipe, or its page holds cells that this one lacks.
    """
    now = {"recipe": bound_recipe(grid.base)}
    began = Bindings.read(output)
    if began is not None:
        require_same(
            f"{output} holds a comparison of another recipe",
            differences(began.values, now),
            None,
            "name another folder with --output",
        )
    if lost := _cells_lost(grid, output):
        more = f", and {len(lost) - MOST_CELLS_SHOWN} more" if len(lost) > MOST_CELLS_SHOWN else ""
        raise InputError(
            f"the page of {output} holds cells that this comparison lacks "
            f"({'; '.join(lost[:MOST_CELLS_SHOWN])}{more}); ask for them too, or name another folder with --output"
        )
    Bindings(now).write(output)


def _cells_lost(grid: Grid, output: Path) -> list[str]:
    path = output / "comparison.json"
    if not path.is_file():
        return []
    try:
        cells = strict_json(read_small(path, MOST_RECORD_BYTES))["cells"]
        then = {(cell["variant"], cell["partition"], cell["seed"]) for cell in cells if cell["status"] == "done"}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"cannot read {path}: {error}; remove it, and it is made again from the cells") from error
    now = {(cell.variant, cell.partition, cell.seed) for cell in grid.cells}
    return [", ".join((*map(str, place[:2]), f"seed {place[2]}")) for place in sorted(then - now)]


@dataclass
class CurrentInputs:
    """Finds what cells would read now; each data set and backbone is read once.

    Attributes:
        accept_changes: keep cells of other versions of the software. plugins: that cells may name.
    """

    accept_changes: bool = False
    plugins: Plugins | None = None
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def check(self, cell: Cell, folder: Path) -> None:
        """Compare what a finished cell was made of with what it would be made of now.

        A cell that does not record it, because it was written from its numbers or by an older version, is kept.

        Raises:
            InputError: data, labels, tokenizer, backbone or versions are others; the message says which.
        """
        began = Bindings.read(folder)
        if began is None:
            return
        now = self._now(cell)
        found = [
            difference._replace(acceptable=name == "versions")
            for name in now
            for difference in differences({name: began.values.get(name)}, {name: now[name]})
        ]
        require_same(
            f"the cell {cell.name!r} was finished before something changed, so it cannot be compared with others",
            found,
            self.accept_changes,
            f"name another folder with --output, or remove {folder}",
        )

    def _now(self, cell: Cell) -> dict[str, Any]:
        config = cell.config
        key = hash_text([config["data"], config["backbone"], config["partition"].get("by"), cell.recipe.differential])
        if key not in self._known:
            self._known[key] = inputs_of(cell.recipe, self.plugins)
        return self._known[key]


def check_equal_inputs(cells: Sequence[tuple[Cell, Path]]) -> None:
    """Check that all cells of one data set and one backbone read the same, although it may have changed between cells.

    Raises:
        InputError: two cells were not.
    """
    first: dict[str, tuple[Cell, Bindings]] = {}
    for cell, folder in cells:
        found = Bindings.read(folder)
        if found is None:
            continue
        key = hash_text([cell.config["data"], cell.config["backbone"], cell.recipe.differential])
        other, began = first.setdefault(key, (cell, found))
        names = ("training rows", "test rows", "tokenizer", "backbone")
        unlike: list[Change] = differences(
            {name: began.values.get(name) for name in names}, {name: found.values.get(name) for name in names}
        )
        require_same(
            f"the cells {other.name!r} and {cell.name!r} were not made of equal data",
            unlike,
            None,
            f"remove {folder} and run the comparison again",
        )
