"""Finds plug-ins: methods, aggregators and partitioners that fftmoe does not ship. A recipe names them `plugin:NAME`.

Plug-ins have two sources. Installed packages announce them as entry points (groups `fftmoe.methods`,
`fftmoe.aggregators`, `fftmoe.partitioners`); every process of a run finds those. A script passes its own plug-ins to
`fftmoe.run(..., plugins=Plugins(...))`, which sends them to its worker processes.

A recipe holds a name and never a module to import. Recipes may come from other people, and only code that was installed
or written on this machine may run.
"""

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from fftmoe.config import Recipe
from fftmoe.config.plugins import PLUGIN_PREFIX
from fftmoe.data import Divide
from fftmoe.errors import InputError, did_you_mean
from fftmoe.methods.base import Method, MethodClass
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.lora import LoraMethod
from fftmoe.methods.merge.aggregate import Merge

MakeMethod = type[FftMoe] | type[LoraMethod] | Callable[[FftMoe], Method]


def is_method_class(plugin: Any) -> TypeGuard[MethodClass]:
    """Return whether a plug-in is a class to be made from the recipe; any other is a function of FFT-MoE's method."""
    return isinstance(plugin, type) and issubclass(plugin, (FftMoe, LoraMethod))


@dataclass(frozen=True)
class Plugins:
    """Holds the plug-ins of a script by the NAME of `plugin:NAME`. They take precedence over installed ones.

    With several worker processes, each plug-in must be picklable: a class or function of a module, or a `partial`.

    Attributes:
        methods: a subclass of `FftMoe` or `LoraMethod`, which is made from the recipe like the methods of fftmoe; or a
            function that takes the method object that the recipe would give for `fft-moe` and returns a `Method` for
            the same adapter.
        aggregators: a function from the shapes of the global tensors to an `Aggregator` (`methods/merge/aggregate.py`).
        partitioners: a function of labels [N], the number of clients and a seed that returns the client of each
            example, integers [N]. One with a parameter `columns` also gets all columns of the training rows by name,
            with the values that the file has.
    """

    methods: Mapping[str, MakeMethod] = field(default_factory=dict)
    aggregators: Mapping[str, Merge] = field(default_factory=dict)
    partitioners: Mapping[str, Divide] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Return whether the script brings no plug-ins."""
        return not (self.methods or self.aggregators or self.partitioners)

    def method(self, name: str) -> MakeMethod | None:
        """Return the plug-in that a recipe calls `plugin:NAME`; None if the name is a method of fftmoe.

        Raises:
            InputError: there is no such plug-in, or it cannot be imported.
        """
        return _find("methods", name, self.methods)

    def aggregator(self, name: str) -> Merge | None:
        """Return the plug-in for the aggregation; otherwise like `method`."""
        return _find("aggregators", name, self.aggregators)

    def partitioner(self, name: str) -> Divide | None:
        """Return the plug-in for the kind of partition; otherwise like `method`."""
        return _find("partitioners", name, self.partitioners)


def check_named(recipe: Recipe, plugins: Plugins) -> None:
    """Check that every plug-in that the recipe names exists, before anything is loaded.

    Raises:
        InputError: see `Plugins.method`.
    """
    plugins.method(recipe.method)
    plugins.aggregator(recipe.federation.aggregation)
    plugins.partitioner(recipe.partition.kind)
    if recipe.engine.kind == "flower" and not plugins.empty:
        raise InputError(
            "engine.kind=flower: Flower's processes know only the recipe and cannot use the plug-ins of a script; set "
            "engine.kind=local, or install the plug-ins as entry points of a package"
        )


def _find(kind: str, name: str, given: Mapping[str, Any]) -> Any:
    if not name.startswith(PLUGIN_PREFIX):
        return None
    bare = name.removeprefix(PLUGIN_PREFIX)
    if bare in given:
        return given[bare]
    group = f"fftmoe.{kind}"
    installed = {entry.name: entry for entry in importlib.metadata.entry_points(group=group)}
    if bare not in installed:
        known = {*given, *installed}
        nearest = did_you_mean(bare, known) if known else f"; there are no {kind} but fftmoe's own here"
        raise InputError(
            f"the recipe names {name}{nearest}; install the package that provides it (entry point group {group!r}), or "
            f"give it to fftmoe.run(..., plugins=Plugins({kind}={{{bare!r}: ...}}))"
        )
    try:
        return installed[bare].load()
    except Exception as error:  # a module of another package can fail in any way
        raise InputError(
            f"{name} is announced as {installed[bare].value!r}, which cannot be imported "
            f"({type(error).__name__}: {error}); repair or uninstall that package"
        ) from error
