"""Makes the cells of a comparison (variant, partition, seed), each with its recipe."""

import copy
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fftmoe.config import Recipe, apply_override, complete_common, complete_recipe, parse_recipe, read_recipe
from fftmoe.data.partition import IID
from fftmoe.errors import InputError
from fftmoe.methods.registry import METHODS
from fftmoe.report.metric import Metric
from fftmoe.setup.choices import Choices, check_override_keys, read_choices
from fftmoe.setup.partition_text import partition_label, partition_section
from fftmoe.strict import read_small, strict_yaml
from fftmoe.tasks import make_task


@dataclass(frozen=True)
class Variant:
    """Describes one setting to compare: a label, and the values that it changes in the recipe, by dotted keys."""

    label: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """Describes one run of the comparison.

    Attributes:
        fitted: what of the common recipe the method cannot take, and what the cell has instead; sentences.
    """

    variant: str
    partition: str
    seed: int
    recipe: Recipe
    fitted: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the cell's name in messages."""
        return f"{self.variant}, {self.partition}, seed {self.seed}"

    @property
    def method(self) -> str:
        """Return the method of the cell's recipe."""
        return self.recipe.method

    @property
    def head(self) -> str:
        """Return the kind of the head in the cell's recipe; empty if the task has no such head."""
        return self.recipe.head.kind if self.recipe.head else ""

    @property
    def metric(self) -> Metric:
        """Return the metric of the cell's task."""
        return Metric.of_task(make_task(self.recipe.backbone.task))

    @property
    def config(self) -> dict[str, Any]:
        """Return the values of the cell's recipe, as `config.yaml` holds them."""
        return self.recipe.model_dump(mode="json")

    @property
    def path(self) -> Path:
        """Return the cell's folder, relative to the comparison's `cells/`."""
        safe = (re.sub(r"^\.+|[^\w.+-]+", "-", p) for p in (self.partition, self.variant, f"seed-{self.seed}"))
        return Path(*safe)


@dataclass(frozen=True)
class Grid:
    """Holds the cells in the order in which they run: all cells of a seed before those of the next seed.

    A centralized variant has one cell for each seed, on the IID partition or else the first.

    Attributes:
        base: the recipe before methods, heads, partitions and seeds are put into it.
    """

    name: str
    cells: tuple[Cell, ...]
    target: float | None
    base: Recipe


def make_grid(
    source: str | Path | Mapping[str, Any],
    flags: Mapping[str, Any],
    variants: Sequence[Variant] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Grid:
    """Make all cells of a comparison, each with its validated recipe.

    Args:
        source: a recipe file, the name of a shipped recipe, or a recipe's values; it may have a `compare:` section.
        flags: what to compare, see `Flags`; what is not None replaces the values of the section.
        variants: the settings to compare, instead of methods and heads.
        overrides: values by dotted keys for every cell; they have precedence over those of the variants.

    Raises:
        InputError: any cell's recipe is wrong, two cells share a name, or there is nothing to run.
    """
    values, where = read_recipe(source)
    choices = read_choices(values.pop("compare", None), flags, where)
    # A comparison needs neither trackers nor baselines, because these are variants of it; a variant or an override may
    # still request them.
    values["trackers"] = []
    apply_override(values, "evaluation.local_only", False)
    apply_override(values, "evaluation.baselines", None)
    for key, value in (overrides or {}).items():
        apply_override(values, key, value)
    base, shared = complete_common(values, where)
    for key, value in shared.items():  # from the data, which is the same for all cells
        apply_override(values, key, value)
    _check_target(choices.target, Metric.of_task(make_task(base.backbone.task)))
    variants = _method_variants(base, choices) if variants is None else variants
    _check_equal_data(variants, overrides or {})
    partitions = _partitions(base.partition.model_dump(exclude_none=True), base, choices.partitions)
    cells = [
        _cell(values, where, variant, partition, seed, overrides or {})
        for seed in _seeds(choices.seeds)
        for partition in partitions.items()
        for variant in variants
        if partition[0] in _partitions_of(variant, base, partitions)
    ]
    _check_distinct(cells)
    return Grid(base.name, tuple(cells), choices.target, base)


def _check_target(target: float | None, metric: Metric) -> None:
    most = metric.bounds[1]
    if target is not None and most is not None and target > most:
        raise InputError(
            f"the target {target:g} is above the largest possible {metric.name}, which is at most {most:g}; lower "
            "--target"
        )


def _method_variants(base: Recipe, choices: Choices) -> list[Variant]:
    """Combine every method with every head; a method written `method+head` is combined with that head only."""
    check_override_keys(choices.overrides)
    methods = [base.method] if choices.methods is None else choices.methods
    # A task without a head section (a language model) compares methods only.
    heads = [base.head.kind if base.head else ""] if choices.heads is None else choices.heads
    pairs = [
        (method, own or head)
        for method, _, own in (name.partition("+") for name in methods)
        for head in (heads[:1] if own else heads)
    ]
    variants = []
    for method, head in pairs:
        label = f"{method}+{head}" if head else method
        merged = {k: v for key in (f"+{head}", method, label) for k, v in choices.overrides.get(key, {}).items()}
        variants.append(Variant(label, {**merged, "method": method, **({"head.kind": head} if head else {})}))
    changes = {"": {}, **choices.variants}
    _check_changes(changes)
    return [
        Variant(f"{variant.label}, {name}" if name else variant.label, {**variant.overrides, **changed})
        for variant in variants
        for name, changed in changes.items()
    ]


def _check_changes(changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a variant that would not be what its label says."""
    for name, changed in changes.items():
        for key in {"method", "head.kind"} & {*changed}:
            option = "--methods" if key == "method" else "--heads"
            raise InputError(f"the variant {name!r} changes {key}, which every label says; name it with {option}")


def _check_equal_data(variants: Sequence[Variant], overrides: Mapping[str, Any]) -> None:
    if "seed" in overrides:
        raise InputError(f"seed={overrides['seed']} cannot be set in a comparison; list seeds, e.g. --seeds 0,1,2")
    for variant in variants:
        for key in variant.overrides:
            if key.partition(".")[0] in ("seed", "partition"):
                raise InputError(
                    f"the overrides of {variant.label!r} change {key}, which must be equal for all variants of a "
                    "comparison; set it for all with --partitions, --seeds or --set"
                )


def _partitions(section: Mapping[str, Any], base: Recipe, texts: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Return the partition sections by label; the recipe's own partition if no text names one."""
    if texts is not None:
        if len(set(texts)) < len(texts):
            raise InputError(f"the partitions {', '.join(texts)} contain one twice; name each once")
        return {text: partition_section(text, section) for text in texts}
    return {partition_label(base.partition): dict(section)}


def _partitions_of(variant: Variant, base: Recipe, partitions: Mapping[str, Any]) -> Iterable[str]:
    """Return the partitions on which a variant runs: all, but only one for a centralized variant,
    which pools all data.
    """
    spec = METHODS.get(variant.overrides.get("method", base.method))
    if spec is None or not spec.capabilities.pools_data:
        return partitions
    return [IID if IID in partitions else next(iter(partitions))]


def _seeds(seeds: int | list[int]) -> Sequence[int]:
    return range(seeds) if isinstance(seeds, int) else seeds


def _cell(
    values: Mapping[str, Any],
    where: str,
    variant: Variant,
    partition: tuple[str, dict[str, Any]],
    seed: int,
    last: Mapping[str, Any],
) -> Cell:
    mine = copy.deepcopy(dict(values))
    if mine.get("head") and isinstance(mine["head"], dict) and mine["head"].get("learning_rate", 0) is None:
        del mine["head"]["learning_rate"]  # of a solved head, and a trained one has a default
    identity = {key: value for key, value in variant.overrides.items() if key in ("method", "head.kind")}
    for key, value in {**variant.overrides, **last, **identity}.items():
        apply_override(mine, key, value)
    fitted = _fit_to_method(mine, {**variant.overrides, **last})
    label, section = partition
    mine.update(partition=section, seed=seed)
    apply_override(mine, "engine.workers", 1)  # the cells themselves run in parallel
    name = f"{variant.label}, {label}, seed {seed}"
    recipe, _ = complete_recipe(mine, f"{where} for the cell {name}", may_read=False, may_load=True)
    return Cell(variant.label, label, seed, recipe, fitted)


def _fit_to_method(values: dict[str, Any], named: Collection[str]) -> tuple[str, ...]:
    """Give a cell's values what its method can take, where the common recipe has a setting for other methods.

    The values change in place. What was named for the cell itself stays, and is refused if the method cannot take it.

    Returns:
        what was changed, as sentences.
    """
    spec = METHODS.get(str(values.get("method")))
    head, federation, evaluation = (values.get(name) or {} for name in ("head", "federation", "evaluation"))
    if spec is None or not all(isinstance(section, dict) for section in (head, federation, evaluation)):
        return ()
    can, wanted = spec.capabilities, {}
    if not can.server_optimizer and federation.get("server_optimizer", "sgd") != "sgd":
        wanted["federation.server_optimizer"] = ("sgd", "has no server optimizer")
    solved = head.get("kind") == "closed-form"
    if can.trains == "head" and solved and head.get("update", "frozen") == "recomputed":
        wanted["head.update"] = ("frozen", "changes no features, so its head is computed once")
    if can.personal and evaluation.get("keep") == "best":
        wanted["evaluation.keep"] = ("last", "has no global model, of which an earlier round could be kept")
    fitted = {key: made for key, made in wanted.items() if key not in named}
    for key, (value, _) in fitted.items():
        apply_override(values, key, value)
    return tuple(
        f"method {values['method']} {reason}: its cells have {key}={value}" for key, (value, reason) in fitted.items()
    )


def _check_distinct(cells: Sequence[Cell]) -> None:
    if not cells:
        raise InputError("there is nothing to compare; name at least one method, head, partition and seed")
    names: dict[Path, str] = {}
    for cell in cells:
        if cell.path in names:
            raise InputError(f"the cells {names[cell.path]!r} and {cell.name!r} are the same; name each once")
        names[cell.path] = cell.name


def first_difference(cell: Cell, config: Path) -> tuple[str, Any, Any] | None:
    """Compare a cell's recipe with the one in a `config.yaml`.

    Returns:
        the dotted key of the first difference, the value in the file, and the cell's value; None if they are equal.

    Raises:
        OSError, ValueError: the file cannot be read, or it holds no recipe.
    """
    values = strict_yaml(read_small(config))
    return _first_difference(parse_recipe(values, str(config)).model_dump(mode="json"), cell.config)


def _first_difference(a: Any, b: Any, path: tuple[str, ...] = ()) -> tuple[str, Any, Any] | None:
    if a == b:
        return None
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next(_first_difference(a[key], b[key], (*path, str(key))) for key in a if a[key] != b[key])
    return ".".join(path), a, b
