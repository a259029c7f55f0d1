"""Says what a recipe asks of a site, in plain values, and makes the digest by which a site's operator approves it."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fftmoe.config import Recipe, parse_recipe
from fftmoe.head import LabelAnswers
from fftmoe.strict import exact_json
from fftmoe.tasks import FITTED, make_task

# What has no effect at a site: names, places on the server's machine, and how the server runs and watches its clients.
SERVER_ONLY = (
    "name",
    "trackers",
    "data.source",
    "data.encoding",
    "start_from",
    "engine.kind",
    "engine.workers",
    "engine.ray_address",
    "engine.clients_per_batch",
    "evaluation.baselines",
    "federation.max_update_norm",
)
FOLDER = "<folder>"  # in place of a backbone's folder, which lies elsewhere on every machine
DIGEST_PREFIX = "sha256:"  # in front of the 64 hexadecimal digits
PROFILE, TRAINING, SUMS, EVALUATION = "profile", "training", "feature-sums", "evaluation"
TASK_NAMES = {"train": TRAINING, "sums": SUMS, "validate": EVALUATION, "alone": "local-training", "own": "own-training"}
"""The task of a plan, and its name in a policy; none can list the last two, which no site carries out."""

SINGLE_LABEL = ("sequence-classification", "image-classification")
"""The tasks whose classes are the strata too."""


@dataclass(frozen=True)
class ColumnsRead:
    """Names the columns of a site's rows that a recipe reads, by their use.

    Attributes:
        text: the input: texts, tokens, images, or prompts and completions.
        label: the answers to learn. client: the natural client of a row. strata: the groups of a task without classes.
    """

    text: tuple[str, ...]
    label: tuple[str, ...]
    client: tuple[str, ...]
    strata: tuple[str, ...]


@dataclass(frozen=True)
class SiteRows:
    """Says how many rows a site has.

    Attributes:
        trained: on which it trains. aside: which it sets aside for validation, and over which its answers to it sum.
        by_label: the numbers of rows on which it trains by what its feature statistics are divided by: their label, or
            having a label and having it not.
        summed: from the rows of a label below which they are left out to the rows in feature statistics; None where
            each row has one label, and `by_label` says it.
    """

    trained: int
    aside: int = 0
    by_label: tuple[int, ...] = ()
    summed: Callable[[float], int] | None = None

    @property
    def total(self) -> int:
        """Return all rows of the site."""
        return self.trained + self.aside

    def behind(self, task: str, fewest_of_label: float) -> int:
        """Return the rows behind an answer to this task, by its name in a policy.

        Args:
            fewest_of_label: rows of a label below which they are in no feature statistics.
        """
        if task == SUMS:
            if self.summed is not None:
                return self.summed(fewest_of_label)
            return sum(number for number in self.by_label if number >= fewest_of_label)
        return self.aside if task == EVALUATION else self.trained


@dataclass(frozen=True)
class PrivacyAsked:
    """States the privacy that a recipe promises.

    Attributes:
        mode: `none`; `sums` over clients; `clients`, with noise of the server; `examples`, with noise of the site.
        epsilon, delta: as the recipe states them; None where it states none.
        noise_multiplier, batch_size, steps: of the noise that a site adds in a round; 0 in other modes.
    """

    mode: str
    epsilon: float | None = None
    delta: float | None = None
    noise_multiplier: float = 0.0
    batch_size: int = 0
    steps: int = 0


@dataclass(frozen=True)
class SiteRequest:
    """States what a recipe asks of a site.

    Attributes:
        digest: `sha256:` and the SHA-256 of the canonical recipe.
        values: dotted key -> value, the canonical recipe. own: the keys whose value is not the default.
        labels: names of what is predicted, in the order of the logits, if the recipe states them; none for a task
            without. labels_in_rows: they are values in the site's rows, and not names of columns.
        tasks: what the server will ask for, by the names of a policy.
        backbone: as the recipe names it. is_folder: it is a folder, and not a name that means the same everywhere.
        sends_counts: an answer says how many rows the site has.
        sums_by_label: the tasks whose answers have sums over the rows of each label.
    """

    digest: str
    name: str
    values: Mapping[str, Any]
    own: frozenset[str]
    columns: ColumnsRead
    labels: tuple[str, ...] | None
    labels_in_rows: bool
    tasks: tuple[str, ...]
    privacy: PrivacyAsked
    rounds: int
    backbone: str
    is_folder: bool
    sends_counts: bool
    sums_by_label: tuple[str, ...]


def request_of(values: Mapping[str, Any]) -> SiteRequest:
    """Return what the recipe asks that the server has sent, before a site's own paths are put in.

    Raises:
        InputError: it is not a valid recipe.
    """
    return request_in(parse_recipe(values, "that the server sent"))


def request_in(recipe: Recipe) -> SiteRequest:
    """Return what a recipe asks of a site."""
    canonical = canonical_values(recipe)
    return SiteRequest(
        digest=_digest_of_values(canonical),
        name=recipe.name,
        values=canonical,
        own=frozenset(canonical.keys() & _not_default(recipe)),
        columns=columns_read(recipe),
        labels=stated_labels(recipe),
        labels_in_rows=not recipe.backbone.is_language and recipe.backbone.task != "regression",
        tasks=(PROFILE, *(TASK_NAMES[task] for task in tasks_of(recipe))),
        privacy=privacy_asked(recipe),
        rounds=recipe.federation.rounds,
        backbone=recipe.backbone.model,
        is_folder=is_folder(recipe.backbone.model),
        # Without `privacy` an answer is weighted by its rows; feature statistics count them by label in every mode, and
        # the rows that are set aside are a known fraction.
        # A pass over the rows takes as many steps as there are batches, which the length of an update tells.
        sends_counts=recipe.privacy is None
        or recipe.closed_form is not None
        or recipe.data.validation is not None
        or recipe.federation.local_epochs is not None,
        sums_by_label=_sums_by_label(recipe),
    )


def recipe_digest(recipe: Recipe) -> str:
    """Return the digest by which the operators of sites approve this recipe."""
    return _digest_of_values(canonical_values(recipe))


def canonical_values(recipe: Recipe) -> dict[str, Any]:
    """Return every value of a recipe that has an effect at a site, by dotted key.

    Defaults are written out, so it does not matter which of them a file states; if a version of fftmoe changes a
    default or adds a key, the canonical recipe changes, and sites are asked again.
    """
    values = {key: value for key, value in _flat(recipe.model_dump()) if key not in SERVER_ONLY}
    if is_folder(recipe.backbone.model):
        values["backbone.model"] = FOLDER
    return values


def _digest_of_values(canonical: Mapping[str, Any]) -> str:
    """Return the digest of a canonical recipe, whatever the order of its keys."""
    text = exact_json(canonical, sort_keys=True, compact=True)
    return DIGEST_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def is_folder(model: str) -> bool:
    """Return whether the name of a backbone can only be a folder,
    which lies elsewhere on every machine (see `find.py`).
    """
    return Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or model.endswith("/")


def tasks_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the tasks of plans that a site carries out for this recipe, and no others.

    Feature statistics and validation are exact, so under noise a site sends none. It never trains and measures for a
    server (`alone`).
    """
    exact = {"sums": recipe.closed_form is not None, "validate": recipe.data.validation is not None}
    return ("train", *(task for task, is_asked in exact.items() if is_asked and not recipe.differential))


def _sums_by_label(recipe: Recipe) -> tuple[str, ...]:
    """Return the tasks whose sums are by label: feature statistics of all tasks with labels,
    statistics of validation where the task counts by label.
    """
    fitted = FITTED.get(recipe.backbone.task)
    has_labels = fitted is not None and isinstance(fitted(), LabelAnswers)
    by_label = {"sums": has_labels, "validate": bool(make_task(recipe.backbone.task).label_parts)}
    return tuple(TASK_NAMES[task] for task in tasks_of(recipe) if by_label.get(task))


def columns_read(recipe: Recipe) -> ColumnsRead:
    """Return the columns that the recipe's task reads (see `LOADERS`), and the one that names natural clients."""
    data, task = recipe.data, recipe.backbone.task
    inputs = {"image-classification": (data.image,), "token-classification": (data.tokens,)}.get(task, (data.text,))
    if recipe.backbone.is_language and data.prompt is not None:
        inputs = tuple(name for name in (data.prompt, data.completion, data.chosen, data.rejected) if name is not None)
    answers = {
        "causal-lm": (),
        "preference": (),
        "token-classification": (data.tags,),
        "regression": tuple(data.targets or ()),
    }.get(task, (data.label,))
    by = () if recipe.partition.by is None else (recipe.partition.by,)
    strata = () if task in SINGLE_LABEL else (data.label, *by)
    taken = () if recipe.backbone.is_language else (*inputs, *answers)
    return ColumnsRead(inputs, answers, by, tuple(name for name in strata if name not in taken))


def stated_labels(recipe: Recipe) -> tuple[str, ...] | None:
    """Return the names of what is predicted, in the order of the logits, if the recipe states them;
    none without labels.
    """
    if recipe.backbone.is_language:
        return ()
    names = recipe.data.targets if recipe.backbone.task == "regression" else recipe.data.labels
    return None if names is None else tuple(names)


def privacy_asked(recipe: Recipe) -> PrivacyAsked:
    """Return the privacy that a recipe promises."""
    privacy, federation = recipe.privacy, recipe.federation
    if privacy is None:
        return PrivacyAsked("none")
    if (examples := privacy.examples) is not None:
        return PrivacyAsked(
            "examples",
            examples.epsilon,
            examples.delta,
            examples.noise_multiplier,
            federation.batch_size,
            federation.local_steps or 0,
        )
    return PrivacyAsked("clients", privacy.epsilon, privacy.delta) if privacy.noisy else PrivacyAsked("sums")


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the values by dotted key; a list is one value."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def _not_default(section: BaseModel, prefix: str = "") -> set[str]:
    """Return the dotted keys whose value is not the default, or that have none."""
    found: set[str] = set()
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            found |= _not_default(value, f"{prefix}{name}.")
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            found.add(prefix + name)
    return found
