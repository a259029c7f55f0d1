"""The round loop: plan a round, clients train, aggregate, evaluate, store, report."""

import os
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fftmoe.config import Recipe
from fftmoe.engines.base import Engine
from fftmoe.engines.local import make_engine
from fftmoe.experiment.at_once import clients_at_once
from fftmoe.experiment.compose import ClientSpec, Experiment, build_client, compose, holdout
from fftmoe.experiment.ledger import Ledger
from fftmoe.experiment.measure import local_only, measure
from fftmoe.records import ServerState
from fftmoe.report.html import report_page
from fftmoe.report.progress import Progress
from fftmoe.report.trackers import Trackers, check_trackers
from fftmoe.server.average import averaged, served
from fftmoe.server.rounds import apply_round, choose_cohort, plan_round
from fftmoe.server.solve import plan_sums, solve_head
from fftmoe.store import RunFolder, check_output, pack_state, save_adapter

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Result:
    """A finished run: its folder and the contents of `summary.json`."""

    folder: Path
    summary: dict[str, Any]


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
    check_trackers(recipe.trackers)
    check_output(output)  # again when it is made; here to spare a person the wait
    progress.say("loading data and backbone")
    experiment = compose(recipe)
    at_once = clients_at_once(experiment)  # refused before anything is written
    initial = experiment.method.init(experiment.model)
    folder = RunFolder.create(output, recipe.model_dump(mode="json"), needed_bytes=4 * len(pack_state(initial)))
    ledger = Ledger()
    with (
        closing(Trackers(recipe.trackers, folder.path, recipe.name)) as trackers,
        closing(_engine(experiment, folder)) as engine,
    ):
        journal = Journal(folder, trackers, progress, ledger)
        state, metrics = _rounds(experiment, initial, engine, journal, at_once)
        if recipe.evaluation.local_only:
            progress.say("training clients alone, for comparison")
            metrics |= local_only(experiment, initial, engine)
        peak = engine.peak_rss_mib()
    summary = {
        **_facts(experiment, state),
        **metrics,
        **journal.totals(),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_rss_mib": round(peak, 1),
    }
    _save(experiment, state, folder, summary, journal.rows)
    return Result(folder.path, summary)


def _rounds(
    experiment: Experiment, state: ServerState, engine: Engine, journal: "Journal", at_once: int
) -> tuple[ServerState, dict[str, Any]]:
    """All rounds; the final state and what was measured on it."""
    method, recipe = experiment.method, experiment.recipe
    num_rounds, cohort_size = recipe.federation.rounds, recipe.federation.clients_per_round
    sample = holdout(experiment.test, recipe.evaluation.max_examples, recipe.seed)
    states = journal.folder.client_states
    state = _solve_if_due(experiment, state, engine, journal.ledger)
    metrics = measure(experiment, state, sample, states)
    journal.write(state, {}, metrics)
    with journal.progress.rounds(num_rounds, cohort_size):
        for t in range(1, num_rounds + 1):
            cohort = choose_cohort(experiment.num_clients, cohort_size, recipe.seed, t)
            plan = plan_round(method, state, t, cohort, experiment.budgets, experiment.training, recipe.seed)
            download = partial(method.download, state)
            updates = journal.ledger.exchange(engine, plan, download, journal.progress.client_done, at_once)
            state, diagnostics = apply_round(method, state, plan, updates)
            state = averaged(state, recipe.federation.average_decay)
            if t == num_rounds:
                state = served(state)
            state = _solve_if_due(experiment, state, engine, journal.ledger)
            journal.folder.save_state(state)
            metrics = measure(experiment, served(state), sample, states)
            journal.write(state, diagnostics, metrics)
    return state, metrics


def _solve_if_due(experiment: Experiment, state: ServerState, engine: Engine, ledger: Ledger) -> ServerState:
    """A closed-form head solved before the first round, then as the recipe's `head.update` says."""
    recipe = experiment.recipe
    if not recipe.head.solved_after(state.round, recipe.federation.rounds):
        return state
    method, everyone = experiment.method, range(experiment.num_clients)
    plan = plan_sums(method, state, everyone, experiment.largest, experiment.training, recipe.seed)
    updates = ledger.exchange(engine, plan, partial(method.download, state), lambda _: None)
    return solve_head(state, updates)


class Journal:
    """Writes one row per round to `metrics.jsonl`, the trackers and the terminal."""

    def __init__(self, folder: RunFolder, trackers: Trackers, progress: Progress, ledger: Ledger) -> None:
        self.folder, self.trackers, self.progress, self.ledger = folder, trackers, progress, ledger
        self.rows: list[dict[str, Any]] = []

    def write(self, state: ServerState, diagnostics: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """One round; bytes and client seconds are totals since the start, accuracy is None where not measured."""
        row = {
            "round": state.round,
            "accuracy": metrics.get("accuracy"),
            **diagnostics,
            "bytes_down": self.ledger.bytes_down,
            "bytes_up": self.ledger.bytes_up,
            "client_seconds": round(self.ledger.seconds, 3),
        }
        self.rows.append(row)
        self.folder.append_metrics(row)
        self.trackers.log(row)
        self.progress.round_done(row)

    def totals(self) -> dict[str, Any]:
        """What `summary.json` keeps of the rounds."""
        last = self.rows[-1]
        return {
            "accuracy_by_round": {str(r["round"]): r["accuracy"] for r in self.rows if r["accuracy"] is not None},
            **{key: last[key] for key in ("bytes_up", "bytes_down", "client_seconds")},
            **{key: last[key] for key in ("expert_load_cv",) if key in last},
            "per_client_round_by_tier": self.ledger.per_client_round(),
        }


def _facts(experiment: Experiment, state: ServerState) -> dict[str, Any]:
    """What was run. Failed clients end a run, so a finished one has none."""
    head = sum(t.numel() for name, t in state.tensors.items() if name.startswith("head."))
    return {
        "schema_version": SCHEMA_VERSION,
        "method": experiment.recipe.method,
        "seed": experiment.recipe.seed,
        "rounds_completed": state.round,
        "num_clients": experiment.num_clients,
        "trainable_parameters": sum(t.numel() for t in state.tensors.values()),
        "trainable_parameters_by_tier": {
            tier.name: experiment.method.parameters(tier) + head for tier in experiment.tiers
        },
        "clients_failed": 0,
        "faults": {},
    }


def _engine(experiment: Experiment, folder: RunFolder) -> Engine:
    recipe = experiment.recipe  # compose may have changed it
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
