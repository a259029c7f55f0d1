"""Methods, aggregators and partitioners that are not fftmoe's own, named in recipes as `plugin:NAME`.

They come from two places. Installed packages announce theirs as entry points (groups `fftmoe.methods`,
`fftmoe.aggregators`, `fftmoe.partitioners`), which every process of a run finds by itself. A script hands its own to
`fftmoe.run(..., plugins=Plugins(...))`, a value that goes where the recipe goes.

A recipe holds a name and never a place to import from: recipes come from other people, and whoever runs one must have
installed, or written, all the code that it can reach.
"""

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fftmoe.config import Recipe
from fftmoe.config.plugins import PREFIX
from fftmoe.data import Divide
from fftmoe.errors import InputError, did_you_mean
from fftmoe.methods.aggregate import Merge
from fftmoe.methods.base import Method
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.lora import LoraMethod

MakeMethod = type[FftMoe] | type[LoraMethod] | Callable[[FftMoe], Method]


@dataclass(frozen=True)
class Plugins:
    """The parts that a script brings, by the NAME of `plugin:NAME`; they come before installed ones of that name.

    With several worker processes each must be picklable: a class or function of a module, or a `partial` of one.

    Attributes:
        methods: a subclass of `FftMoe` or of `LoraMethod`, which is made from the recipe as fftmoe's own are; or, on
            the adapter of experts, a function from what the recipe would make of `fft-moe` to the method.
        aggregators: from the shapes of the global tensors to an `Aggregator` (`methods/aggregate.py`).
        partitioners: from labels [N], the number of clients and a seed to the client of each example, integers [N].
    """

    methods: Mapping[str, MakeMethod] = field(default_factory=dict)
    aggregators: Mapping[str, Merge] = field(default_factory=dict)
    partitioners: Mapping[str, Divide] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there are installed ones alone."""
        return not (self.methods or self.aggregators or self.partitioners)

    def method(self, name: str) -> MakeMethod | None:
        """What the recipe calls `plugin:NAME`; None where the name is one of fftmoe's own. Likewise below.

        Raises:
            InputError: there is no such plug-in, or it cannot be imported.
        """
        return _find("methods", name, self.methods)

    def aggregator(self, name: str) -> Merge | None:
        """See `method`."""
        return _find("aggregators", name, self.aggregators)

    def partitioner(self, name: str) -> Divide | None:
        """See `method`."""
        return _find("partitioners", name, self.partitioners)


def check_named(recipe: Recipe, plugins: Plugins) -> None:
    """Whether everything that the recipe names is here; asked before anything is loaded.

    Raises:
        InputError: see `Plugins.method`.
    """
    plugins.method(recipe.method)
    plugins.aggregator(recipe.federation.aggregation)
    plugins.partitioner(recipe.partition.kind)
    if recipe.engine.kind == "flower" and not plugins.empty:
        raise InputError(
            "Flower's processes make the experiment from the recipe and know no parts that a script brings; use "
            "engine.kind=local, or install the parts as entry points of a package"
        )


def _find(kind: str, name: str, given: Mapping[str, Any]) -> Any:
    if not name.startswith(PREFIX):
        return None
    bare = name.removeprefix(PREFIX)
    if bare in given:
        return given[bare]
    group = f"fftmoe.{kind}"
    installed = {entry.name: entry for entry in importlib.metadata.entry_points(group=group)}
    if bare not in installed:
        known = {*given, *installed}
        nearest = did_you_mean(bare, known) if known else f"; there are no {kind} but fftmoe's own here"
        raise InputError(
            f"the recipe names {name}{nearest}; install the package that has it (entry point group {group!r}), or give "
            f"it to fftmoe.run(..., plugins=Plugins({kind}={{{bare!r}: ...}}))"
        )
    try:
        return installed[bare].load()
    except Exception as error:  # somebody else's module fails in its own way
        raise InputError(
            f"{name} is announced as {installed[bare].value!r}, which cannot be imported "
            f"({type(error).__name__}: {error}); mend or uninstall that package"
        ) from error
