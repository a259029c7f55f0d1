"""Interrupts runs at a chosen place, and compares the results of two runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from fftmoe.rounds import policy
from fftmoe.rounds.evaluation import Evaluation
from fftmoe.rounds.journal import Journal

ROUNDS = 5
SETTINGS = {
    "plain": (),
    "state on clients": ("adapter.router=personal", "federation.upload=int8", "federation.server_optimizer=adam"),
    "solved head": ("head={kind: closed-form, num_features: 37, every: 2}",),
    "moving average": ("federation.ema_decay=0.6",),
    "validation": ("data.validation=0.2", "evaluation.every=2", "head={kind: closed-form, num_features: 37, every: 2}"),
    "rates and clipping": ("federation.schedule=cosine", "federation.warmup_rounds=2", "federation.clip_gradients=0.5"),
}
# The files that differ between unlike runs and are equal for equal ones.
RESULTS = ("adapter/adapter_model.safetensors", "checkpoints/*.safetensors", "clients/*/*.safetensors")


def settings(name: str, *others: str) -> list[str]:
    return [f"federation.rounds={ROUNDS}", "evaluation.local_only=false", "trackers=[]", *SETTINGS[name], *others]


def results(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for name in RESULTS for path in folder.glob(name)}


def without_clocks(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the rows, without the values that differ between equal runs."""
    clocks = ("seconds", "client_seconds", "phase_seconds", "peak_rss_mib", "expected_rss_mib")
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for values in (summary, *rows):
        for tier in (values.get("per_client_round_by_tier") or values.get("by_tier")).values():
            del tier["seconds"]
        for tier in values.get("prediction", {}).values():
            tier.pop("seconds_per_client_round", None)
        for name in clocks:
            values.pop(name, None)
    return summary, rows


class Killed(Exception):
    """Stands in for a signal."""


def interrupt(monkeypatch: pytest.MonkeyPatch, place: str, round: int) -> None:
    """Ends the run in this round, where `place` says."""
    owner, name = {
        "in training": (policy, "apply_round"),
        "before the row": (Evaluation, "__call__"),
        "before the checkpoint": (Journal, "save"),
    }[place]
    original = getattr(owner, name)

    def ended(*arguments: Any) -> Any:
        if place == "in training":
            plan, updates = arguments[2:4]
            if plan.round == round:
                next(iter(updates))  # a client has trained, and keeps what it keeps
                raise Killed
        elif arguments[1].round == round:  # the state
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(owner, name, ended)
