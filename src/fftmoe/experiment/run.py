"""The round loop: plan a round, clients train, aggregate, evaluate, store, report."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fftmoe.config import Recipe
from fftmoe.engines.base import Engine
from fftmoe.engines.local import make_engine
from fftmoe.evaluate import (
    accuracy,
    accuracy_by_class,
    client_accuracies,
    mean_and_worst_decile,
    predict_logits,
)
from fftmoe.experiment.compose import ClientSpec, Experiment, build_client, compose, holdout
from fftmoe.records import ClientUpdate, RoundPlan, ServerState, Training, pack_plan, unpack_update
from fftmoe.report.html import report_page
from fftmoe.report.progress import Progress
from fftmoe.report.trackers import Trackers, check_trackers
from fftmoe.server.rounds import apply_round, choose_cohort, plan_round
from fftmoe.store import RunFolder, pack_state, save_adapter

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Result:
    """A finished run: its folder and the contents of `summary.json`."""

    folder: Path
    summary: dict[str, Any]


class Ledger:
    """Counts the bytes that were really serialised, per tier and direction, and the seconds clients took."""

    def __init__(self) -> None:
        self.bytes_down = self.bytes_up = 0
        self.seconds = 0.0
        self.tiers: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def per_client_round(self) -> dict[str, dict[str, float]]:
        """By tier: client-rounds so far, and their mean bytes and seconds."""
        return {
            name: {
                "client_rounds": sums["client_rounds"],
                **{key: sums[key] / sums["client_rounds"] for key in ("bytes_down", "bytes_up", "seconds")},
            }
            for name, sums in sorted(self.tiers.items())
        }

    def exchange(
        self, engine: Engine, plan: RoundPlan, download: Callable, done: Callable[[int], None]
    ) -> Iterator[ClientUpdate]:
        """Send every client its plan and tensors; yield the updates in `client_id` order."""
        requests = [(c.client_id, pack_plan(c, download(c))) for c in plan.clients]
        self.bytes_down += sum(len(message) for _, message in requests)
        replies = engine.run_clients(requests)
        for client, (_, message), (client_id, reply, seconds) in zip(plan.clients, requests, replies, strict=True):
            self.bytes_up += len(reply)
            self.seconds += seconds
            took = {"client_rounds": 1, "bytes_down": len(message), "bytes_up": len(reply), "seconds": seconds}
            for key, value in took.items():
                self.tiers[client.budget.name][key] += value
            done(client_id)
            yield unpack_update(reply)


def run(recipe: Recipe, output: Path, progress: Progress | None = None) -> Result:
    """Run an experiment and write its folder.

    Args:
        output: the run folder, new or empty.
        progress: where to show it; silent when None.

    Raises:
        InputError: the recipe, its data or the output cannot be used; nothing has been written.
        RunError: a client failed.
    """
    progress = progress or Progress.silent()
    started = time.perf_counter()
    progress.say("loading data and backbone")
    check_trackers(recipe.trackers)
    experiment = compose(recipe)
    method, federation = experiment.method, recipe.federation
    initial = state = method.init(experiment.model)
    folder = RunFolder.create(output, recipe.model_dump(mode="json"), needed_bytes=4 * len(pack_state(state)))
    shown = holdout(experiment.test, recipe.evaluation.max_examples, recipe.seed)
    rows: list[dict[str, Any]] = []
    ledger = Ledger()
    engine = _engine(experiment, folder)
    trackers = Trackers(recipe.trackers, folder.path, recipe.name)
    try:
        rows.append(_row(state, ledger, {}, _accuracy(experiment, state, shown)))
        _publish(rows[-1], folder, trackers, progress)
        with progress.rounds(federation.rounds, federation.clients_per_round):
            for t in range(1, federation.rounds + 1):
                cohort = choose_cohort(experiment.num_clients, federation.clients_per_round, recipe.seed, t)
                plan = plan_round(method, state, t, cohort, experiment.budgets, experiment.training, recipe.seed)
                updates = ledger.exchange(engine, plan, partial(method.download, state), progress.client_done)
                state, diagnostics = apply_round(method, state, plan, updates)
                folder.save_state(state)
                measured = t % recipe.evaluation.every == 0 and t < federation.rounds
                rows.append(_row(state, ledger, diagnostics, _accuracy(experiment, state, shown) if measured else None))
                if t < federation.rounds:
                    _publish(rows[-1], folder, trackers, progress)
        progress.say("measuring the final model on the whole test set")
        final = _final_metrics(experiment, state)
        rows[-1]["accuracy"] = final["accuracy"]
        _publish(rows[-1], folder, trackers, progress)
        if recipe.evaluation.local_only:
            progress.say("training every client alone, for comparison")
            final["local_only_accuracy"] = _local_only(experiment, initial, engine)
        summary = _summary(experiment, state, rows, ledger, final, started, engine)
    finally:
        engine.close()
        trackers.close()
    _save(experiment, state, folder, summary, rows)
    return Result(folder.path, summary)


def _engine(experiment: Experiment, folder: RunFolder) -> Engine:
    recipe = experiment.recipe
    workers = recipe.engine.workers
    if workers == "auto":
        workers = min(os.cpu_count() or 1, recipe.federation.clients_per_round)
    spec = ClientSpec(
        recipe,
        experiment.label_names,
        experiment.method,
        experiment.train,
        experiment.partition.indices,
        folder.client_states,
        holdout(experiment.test, recipe.evaluation.local_only_examples, recipe.seed),
    )
    handler = build_client(spec, experiment.model) if workers == 1 else None
    return make_engine(workers, partial(build_client, spec), handler)


def _accuracy(experiment: Experiment, state: ServerState, examples: Any) -> float:
    experiment.method.install(experiment.model, state.tensors, experiment.largest)
    return accuracy(experiment.model, examples)


def _row(state: ServerState, ledger: Ledger, diagnostics: dict, measured: float | None) -> dict[str, Any]:
    """One line of `metrics.jsonl`; bytes and client seconds are totals since the start."""
    return {
        "round": state.round,
        "accuracy": measured,
        **diagnostics,
        "bytes_down": ledger.bytes_down,
        "bytes_up": ledger.bytes_up,
        "client_seconds": round(ledger.seconds, 3),
    }


def _publish(row: dict[str, Any], folder: RunFolder, trackers: Trackers, progress: Progress) -> None:
    folder.append_metrics(row)
    trackers.log(row)
    progress.round_done(row)


def _final_metrics(experiment: Experiment, state: ServerState) -> dict[str, Any]:
    """The global model with all experts at each tier's top_k, on the whole test set."""
    labels, num_labels = experiment.test.labels, len(experiment.label_names)
    distribution = experiment.partition.label_distribution(experiment.train.labels.numpy(), num_labels)
    by_tier, per_client = {}, np.full(experiment.num_clients, np.nan)
    for tier in experiment.tiers:
        experiment.method.install(experiment.model, state.tensors, tier)
        predicted = predict_logits(experiment.model, experiment.test).argmax(1)
        by_tier[tier.name] = float((predicted == labels).double().mean())
        members = [c for c, budget in experiment.budgets.items() if budget == tier]
        by_class = accuracy_by_class(predicted, labels, num_labels)
        per_client[members] = client_accuracies(by_class, distribution)[members]
    return {
        "accuracy": by_tier[experiment.largest.name],
        "accuracy_by_tier": by_tier,
        "client_accuracy": mean_and_worst_decile(per_client),
    }


def _local_only(experiment: Experiment, state: ServerState, engine: Engine) -> dict[str, float]:
    """What each client reaches alone from the initial `state`, with the compute it spends in the federation."""
    federation, method = experiment.recipe.federation, experiment.method
    rounds_each = federation.rounds * federation.clients_per_round / experiment.num_clients
    training = _repeat(experiment.training, rounds_each)
    everyone = tuple(range(experiment.num_clients))
    # Round 0 marks training alone: the client keeps no state and measures its own model.
    plan = plan_round(method, state, 0, everyone, experiment.budgets, training, experiment.recipe.seed)
    updates = Ledger().exchange(engine, plan, partial(method.download, state), lambda _: None)
    return mean_and_worst_decile([update.metrics["holdout_accuracy"] for update in updates])


def _repeat(training: Training, times: float) -> Training:
    if training.local_steps is not None:
        return replace(training, local_steps=max(1, round(training.local_steps * times)))
    return replace(training, local_epochs=max(1, round((training.local_epochs or 1) * times)))


def _summary(
    experiment: Experiment,
    state: ServerState,
    rows: Sequence[dict[str, Any]],
    ledger: Ledger,
    final: dict[str, Any],
    started: float,
    engine: Engine,
) -> dict[str, Any]:
    head = sum(t.numel() for name, t in state.tensors.items() if name.startswith("head."))
    per_expert = experiment.method.shape.parameters
    return {
        "schema_version": SCHEMA_VERSION,
        "method": experiment.recipe.method,
        "seed": experiment.recipe.seed,
        "rounds_completed": state.round,
        "num_clients": experiment.num_clients,
        **final,
        "accuracy_by_round": {str(r["round"]): r["accuracy"] for r in rows if r["accuracy"] is not None},
        "bytes_up": ledger.bytes_up,
        "bytes_down": ledger.bytes_down,
        "trainable_parameters": sum(t.numel() for t in state.tensors.values()),
        "trainable_parameters_by_tier": {
            tier.name: len(tier.blocks) * tier.experts * per_expert + head for tier in experiment.tiers
        },
        "expert_load_cv": rows[-1]["expert_load_cv"],
        "seconds": round(time.perf_counter() - started, 1),
        "client_seconds": round(ledger.seconds, 1),
        "per_client_round_by_tier": ledger.per_client_round(),
        "peak_rss_mib": round(engine.peak_rss_mib(), 1),
        "clients_failed": 0,
        "faults": {},
    }


def _save(
    experiment: Experiment,
    state: ServerState,
    folder: RunFolder,
    summary: dict[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    """The adapter as a PEFT folder, then the report, then the summary: a summary means a whole run."""
    experiment.method.install(experiment.model, state.tensors, experiment.largest)
    save_adapter(experiment.model, folder.path / "adapter", experiment.label_names)
    folder.write_report(report_page(summary, rows, state.load))
    folder.write_summary(summary)
