"""Writes the model card of an exported adapter: the README.md that model hubs show."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, PackageLoader, StrictUndefined

from fftmoe.backbones import BUILTIN_MINILM, POOLED, loading_arguments
from fftmoe.methods.registry import METHODS
from fftmoe.shown import shown
from fftmoe.strict import yaml_text
from fftmoe.trained.run import FinishedRun

CARD_TEMPLATE = "card.md.jinja"
LISTED_NAMES = 20  # labels that a card names
HUB_IDS = {BUILTIN_MINILM: "sentence-transformers/all-MiniLM-L6-v2"}
AUTOMATIC = {
    "sequence-classification": "AutoPeftModelForSequenceClassification",
    "multi-label-classification": "AutoPeftModelForSequenceClassification",
    "regression": "AutoPeftModelForSequenceClassification",
    "token-classification": "AutoPeftModelForTokenClassification",
    "causal-lm": "AutoPeftModelForCausalLM",
    "preference": "AutoPeftModelForCausalLM",
    "image-classification": "AutoPeftModel",
}
"""By task, the class of PEFT that loads the backbone too."""
# The class of transformers for tasks where it is not named as that of PEFT.
OTHERWISE_NAMED = {"image-classification": "AutoModelForImageClassification"}
PIPELINES = {
    "sequence-classification": "text-classification",
    "causal-lm": "text-generation",
    "preference": "text-generation",
}
SPECIAL = re.compile(r"([\\`*_\[\]<>|])")  # what Markdown reads as markup within a line


@dataclass(frozen=True)
class CardTier:
    """Describes a tier of clients; `top_k` and `experts` are None where the recipe states limits instead."""

    name: str
    fraction: float
    top_k: int | None
    experts: int | None


@dataclass(frozen=True)
class CardPrivacy:
    """States what a private run promises.

    Attributes:
        protects: `clients` or `single examples`; None where the server only kept sums, without noise.
        epsilon, delta, adjacency: of the guarantee, if there is one.
    """

    protects: str | None = None
    epsilon: float = 0.0
    delta: float = 0.0
    adjacency: str = ""


@dataclass(frozen=True)
class CardFacts:
    """Says how a run was trained and what it measured at its end.

    Attributes:
        data_source: a hub id, a file or a folder; of the last two the card shows only the name.
        metric: the name of the main metric. value: of the whole test split, None where it was not measured.
        by_tier: the main metric of the model as each tier uses it.
        test_examples: the size of the test split; None for the whole split of the source.
        interval: of that value, 95 %; None where it has none.
        privacy: None for a run that is not private. The card of a private one shows no name that is not declared.
        over_sites: the clients were sites with data of their own; otherwise one machine held all data.
        own_parts: the exported model has parts that one client has trained and keeps.
    """

    data_source: str
    test_examples: int | None
    partition: str
    num_clients: int | None
    clients_per_round: int
    rounds: int | None
    tiers: Sequence[CardTier]
    metric: str
    value: float | None
    by_tier: Mapping[str, float]
    interval: Sequence[float] | None = None
    over_sites: bool = False
    privacy: CardPrivacy | None = None
    own_parts: bool = False

    @property
    def data(self) -> str:
        """Return the data in words: a hub id or the name of a folder, which a private run keeps to itself."""
        return shown_name(self.data_source) if self.privacy is None else "data that a private run does not name"

    def how_trained(self, method: str) -> str:
        """Return a sentence about the adapter of the run."""
        where = "over sites that kept their data" if self.over_sites else "that was simulated on one machine"
        return f"An adapter of method {method}, trained in a federation {where}."


@dataclass(frozen=True)
class Figures:
    """Holds the measured values of a card.

    Attributes:
        note: which model was measured, when, and on what. metric: the kind, such as "accuracy".
        values: by their description.
        own: whether they belong to the exported model itself; a hub's index gets no others.
    """

    note: str
    metric: str
    values: Mapping[str, float]
    own: bool = True


def model_card(run: FinishedRun, facts: CardFacts, what: str, figures: Figures, plain: bool = False) -> str:
    """Return README.md with YAML front matter.

    Args:
        what: a sentence about this export.
        plain: whether it is a LoRA that PEFT opens without this package, whatever the run's method trained.
    """
    pooled = run.task in POOLED and run.backbone.pooling == "mean"
    lora = plain or (run.method in METHODS and METHODS[run.method].capabilities.trains == "low-rank")
    front = {key: value for key, value in _front(run, facts, figures).items() if value}
    template = _card_templates().get_template(CARD_TEMPLATE)
    return template.render(
        run=run,
        facts=facts,
        figures=figures,
        what=f"{what}{_preferred(run)}",
        front=yaml_text(front),
        backbone=_hub_id(run.backbone.model) or _local_name(run, facts),
        labels=_listed(run.label_names) if facts.privacy is None else f"{len(run.label_names)}",
        loading_arguments=_loading_arguments(run, facts),
        automatic=AUTOMATIC[run.task] if not (lora and pooled) and run.backbone.quantization == "none" else None,
        plain_class=AUTOMATIC[run.task].replace("AutoPeftModel", OTHERWISE_NAMED.get(run.task, "AutoModel")),
        lora=lora,
        plain_head=plain and pooled,
        reader="AutoImageProcessor" if run.reads_images else "AutoTokenizer",
    )


def _preferred(run: FinishedRun) -> str:
    """Return a further sentence about a run that learned from pairs of answers; empty for any other."""
    pairs = run.pair_loss
    if pairs is None:
        return ""
    margin = f" and margin {pairs.margin:g}" if pairs.margin else ""
    return f" The run learned which of two answers is better, with the loss {pairs.kind} (beta {pairs.beta:g}{margin})."


@cache
def _card_templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("fftmoe.exports", ""),
        undefined=StrictUndefined,
        finalize=lambda value: shown(value) if isinstance(value, str) else value,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = escape_markdown
    return environment


def escape_markdown(text: str) -> str:
    """Return the text in one line, with a backslash before every character that Markdown reads as markup."""
    return SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def figures_of_run(facts: CardFacts, own: bool) -> Figures:
    """Return what the run measured at its end, overall and by tier.

    Args:
        own: whether the exported model is the one that the run measured.
    """
    overall = {} if facts.value is None else {f"{facts.metric} on the test split": facts.value}
    tiers = {f"{facts.metric} as tier {tier} uses it": value for tier, value in facts.by_tier.items()}
    note = f"Measured by the run itself, at its end, on {facts.data}"
    note += "." if own else ": the values are those of the global model, of which this model is a part."
    if overall and facts.interval is not None:
        low, high = facts.interval
        note += f" The 95 % interval of the {facts.metric.replace('_', ' ')} is {low:.4g} to {high:.4g}."
    return Figures(note, facts.metric, overall | (tiers if facts.privacy is None else {}), own)


def _listed(names: Sequence[str]) -> str:
    """Return the number of names, and the first ones."""
    more = ", …" if len(names) > LISTED_NAMES else ""
    return f"{len(names)} ({', '.join(names[:LISTED_NAMES])}{more})"


def shown_name(place: str) -> str:
    """Return a hub id; of a file or a folder, here or elsewhere, its name without the path, which is private."""
    if not Path(place).exists():
        try:
            validate_repo_id(place.removeprefix("builtin:"))
            return place
        except HFValidationError:
            pass  # it can only be a path
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1]


def _front(run: FinishedRun, facts: CardFacts, figures: Figures) -> dict[str, Any]:
    """Return the front matter as a hub reads it; an empty value is left out."""
    pipeline, source, is_own = PIPELINES.get(run.task, run.task), facts.data, figures.own and facts.privacy is None
    results = {
        "task": {"type": pipeline},
        "dataset": {"name": source, "type": source, "split": "test"},
        "metrics": [{"type": figures.metric, "name": name, "value": value} for name, value in figures.values.items()],
    }
    return {
        "base_model": _hub_id(run.backbone.model),
        "library_name": "peft",
        "pipeline_tag": pipeline,
        "tags": ["fftmoe", "federated-learning", run.method],
        "metrics": [figures.metric],
        "model-index": [{"name": run.name, "results": [results]}] if is_own and figures.values else None,
    }


def _hub_id(model: str) -> str | None:
    """Return the model's id on a hub; None for a local folder, whose path is private."""
    return HUB_IDS.get(model, None if Path(model).expanduser().is_dir() or ":" in model else model)


def _local_name(run: FinishedRun, facts: CardFacts) -> str:
    """Return the name of a backbone that is no model of a hub."""
    return shown_name(run.backbone.model) if facts.privacy is None else "a local backbone"


def _loading_arguments(run: FinishedRun, facts: CardFacts) -> str:
    """Return the arguments of `fftmoe.load_backbone` for the run's backbone, without the path of a local folder."""
    backbone = run.backbone
    model = _hub_id(backbone.model) or _local_name(run, facts)
    return loading_arguments(
        model,
        num_labels=len(run.label_names) or None,
        task=run.task,
        pooling=backbone.pooling,
        fourier_features=backbone.fourier_features,
        quantization=backbone.quantization,
    )
