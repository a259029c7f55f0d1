"""The model card of an exported adapter: README.md as model hubs read it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fftmoe.backbones import BUILTIN_MINILM
from fftmoe.config import Recipe

HUB_IDS = {BUILTIN_MINILM: "sentence-transformers/all-MiniLM-L6-v2"}
PIPELINES = {"sequence-classification": "text-classification", "causal-lm": "text-generation"}


@dataclass(frozen=True)
class Measured:
    """Figures for a card.

    Attributes:
        note: whose they are. values: by what they are called. kind: the metric, such as "accuracy".
        own: whether they are those of this very model; else a hub is told none.
    """

    note: str
    kind: str
    values: Mapping[str, float]
    own: bool = True


def model_card(recipe: Recipe, summary: Mapping[str, Any], num_labels: int, what: str, measured: Measured) -> str:
    """README.md with YAML front matter.

    Args:
        summary: the run's. what: a sentence on this export.
    """
    front = {key: value for key, value in _front(recipe, measured).items() if value}
    parts = (
        f"# {recipe.name}",
        what,
        "## Trained on\n\n" + _trained(recipe, summary, num_labels),
        "## Measured\n\n" + _table(measured),
        f"## Load it\n\n```python\n{_loading_code(recipe, num_labels)}\n```",
        "## Limits\n\n" + _limits(recipe, summary),
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n" + "\n\n".join(parts) + "\n"


def of_run(recipe: Recipe, summary: Mapping[str, Any], own: bool) -> Measured:
    """What the run measured at its end, overall and by tier; `own`: this is the model that it measured."""
    kind = next((name for name in ("accuracy", "perplexity", "loss") if name in summary), "accuracy")
    overall = {f"{kind} on the test split": summary[kind]} if kind in summary else {}
    tiers = {f"{kind} as tier {tier} uses it": value for tier, value in summary.get(f"{kind}_by_tier", {}).items()}
    note = f"By the run itself, at its end, on {_named(recipe.data.source)}"
    return Measured(note + ("." if own else ": the global model, of which this is a part."), kind, overall | tiers, own)


def _front(recipe: Recipe, measured: Measured) -> dict[str, Any]:
    pipeline = PIPELINES.get(recipe.backbone.task, recipe.backbone.task)
    source = _named(recipe.data.source)
    results = {
        "task": {"type": pipeline},
        "dataset": {"name": source, "type": source, "split": "test"},
        "metrics": [{"type": measured.kind, "name": name, "value": value} for name, value in measured.values.items()],
    }
    return {
        "base_model": _hub_id(recipe.backbone.model),
        "library_name": "peft",
        "pipeline_tag": pipeline,
        "tags": ["fftmoe", "federated-learning", recipe.method],
        "metrics": [measured.kind],
        "model-index": [{"name": recipe.name, "results": [results]}] if measured.own and measured.values else None,
    }


def _table(measured: Measured) -> str:
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in measured.values.items())
    return f"{measured.note}\n\n| measure | value |\n| --- | --- |\n{rows}"


def _hub_id(model: str) -> str | None:
    """None of a local folder, whose path is nobody else's business."""
    return HUB_IDS.get(model, None if Path(model).expanduser().is_dir() or ":" in model else model)


def _named(place: str) -> str:
    return Path(place).name if Path(place).expanduser().is_dir() else place


def _trained(recipe: Recipe, summary: Mapping[str, Any], num_labels: int) -> str:
    labels = f"{num_labels} labels, " if num_labels else ""
    tiers = "; ".join(f"{b.name} ({b.fraction:.0%} of the clients{_uses(b.top_k, b.experts)})" for b in recipe.budgets)
    return "\n".join(
        (
            f"- backbone: {_hub_id(recipe.backbone.model) or _named(recipe.backbone.model)}, frozen",
            f"- data: {_named(recipe.data.source)}, {labels}partition {recipe.partition.kind} over "
            f"{summary.get('num_clients')} clients",
            f"- method: {recipe.method}" + (f", head {recipe.head.kind}" if recipe.head else ""),
            f"- rounds: {summary.get('rounds_completed')} of {recipe.federation.clients_per_round} clients each",
            f"- tiers: {tiers}",
        )
    )


def _uses(top_k: int | None, experts: int | None) -> str:
    return "" if top_k is None or experts is None else f", {top_k} of {experts} experts a token"


def _loading_code(recipe: Recipe, num_labels: int) -> str:
    """Python that opens an exported PEFT folder."""
    backbone, lifted = recipe.backbone, recipe.fourier_features
    model = _hub_id(backbone.model) if backbone.model in HUB_IDS else backbone.model
    model = _named(model or "") if Path(model or "").is_dir() else model
    given = {
        "num_labels": num_labels,
        "task": "" if backbone.task == "sequence-classification" else backbone.task,
        "pooling": "" if backbone.pooling == "mean" else backbone.pooling,
        "fourier_features": lifted,
        "quantization": "" if backbone.quantization == "none" else backbone.quantization,
    }
    options = "".join(f", {name}={value!r}" for name, value in given.items() if value)
    return "\n".join(
        (
            "import fftmoe",
            "from peft import PeftModel",
            f"backbone = fftmoe.load_backbone({model!r}{options})",
            'model = PeftModel.from_pretrained(backbone, "this folder")',
        )
    )


def _limits(recipe: Recipe, summary: Mapping[str, Any]) -> str:
    privacy = summary.get("privacy", {})
    if "epsilon" in privacy:
        private = (
            f"Trained with differential privacy of clients: epsilon {privacy['epsilon']:.3g} at delta "
            f"{privacy['delta']:g}. That bounds what the shared weights tell of any one client, and nothing else."
        )
    else:
        private = (
            "Adapters are not private by themselves: this one was trained without differential privacy, and its "
            "weights can tell of single training examples to whoever holds them. The raw data never left the clients."
        )
    test = "the test split" if recipe.data.test_examples is None else f"{recipe.data.test_examples} test examples"
    return "\n".join(
        (
            f"- {private}",
            f"- The figures above are of one run with one seed on {test}; other data can give others.",
            "- Label names, where there are some, are in `labels.json` in the order of the logits. No tokenizer comes "
            "with it: use the backbone's.",
        )
    )
