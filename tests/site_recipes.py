"""Recipes of a federation over sites in every mode of privacy, which load no model, and the jobs of its server."""

from collections.abc import Mapping
from typing import Any

from fftmoe.config import Recipe, parse_recipe
from fftmoe.deploy.job import make_job

BASE: dict[str, Any] = {
    "backbone": {"model": "builtin:minilm"},
    "data": {
        "source": "data/server",
        "text": "text",
        "label": "label",
        "labels": ["bone", "heart"],
        "validation": "off",
    },
    "partition": {"kind": "natural", "by": "ward"},
    "adapter": {
        "num_experts": 7,
        "expert_dim": 5,
        "shared_rank": 0,
        "shared_targets": "query-value",
        "scale": 1.0,
        "blocks": "all",
    },
    "lora": {"targets": "query-value", "match": "parameters"},
    "head": {"kind": "averaged", "learning_rate": 1.0},
    "budgets": [{"name": "small", "fraction": 1.0, "top_k": 1, "experts": 3}],
    "federation": {
        "rounds": 5,
        "clients_per_round": 3,
        "local_steps": 4,
        "batch_size": 8,
        "learning_rate": 0.002,
        "schedule": "constant",
        "aggregation": "per-expert",
        "server_optimizer": "sgd",
    },
    "evaluation": {"local_only_clients": None},
    "engine": {"workers": 1},
}
CLIENTS = {"clip_norm": 1.0, "epsilon": 3.0, "delta": 1e-3}
EXAMPLES = {"examples": {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3, "epsilon": 7.0}}
PRIVATE = {"adapter": {"residents": "balanced", "balance": "switch"}}
MODES: dict[str, dict[str, Any]] = {
    "none": {},
    "sums": {"privacy": {"min_contributors": 2}, **PRIVATE},
    "clients": {"privacy": CLIENTS, **PRIVATE},
    "examples": {"privacy": EXAMPLES, **PRIVATE},
}


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with these changes within their sections."""
    merged = dict(values)
    for name, change in changes.items():
        merged[name] = {**merged.get(name, {}), **change} if isinstance(change, dict) else change
    return merged


def recipe(changes: Mapping[str, Any] | None = None) -> Recipe:
    """The base recipe with these changes."""
    return parse_recipe(changed(BASE, changes or {}), "test")


def job_of(written: Recipe, run: str = "abc1", labels: tuple[str, ...] = ("bone", "heart")) -> dict[str, Any]:
    """What a server sends with every request of a run of this recipe."""
    return make_job(written.model_dump(mode="json"), labels, run)
