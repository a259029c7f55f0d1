"""Carries out the rounds of a run that are left, measures it, and writes the files that a finished run leaves."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fftmoe.backbones import load_reader
from fftmoe.config.plugins import is_plugin
from fftmoe.cost.prediction import predicted_and_measured
from fftmoe.engines.base import Engine
from fftmoe.records import ServerState, names
from fftmoe.records.client_names import naming_clients
from fftmoe.report.environment import environment
from fftmoe.report.metric import Metric
from fftmoe.report.page import report_page
from fftmoe.report.progress import Progress
from fftmoe.report.record import RunRecord
from fftmoe.report.trackers import Trackers
from fftmoe.report.verdict import verdict
from fftmoe.rounds.journal import Journal
from fftmoe.rounds.kept import kept_model
from fftmoe.rounds.loop import Federation, Metrics, federate, start
from fftmoe.rounds.outcome import check_learned
from fftmoe.rounds.private import PrivateMerging
from fftmoe.rounds.validation import validated_in
from fftmoe.setup.baselines import measure_baselines
from fftmoe.setup.calibrated import set_temperature
from fftmoe.setup.described import run_card
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.federation import kept_ranking, make_federation, make_patience
from fftmoe.setup.forecast import announce_duration, announce_memory, predicted_by_tier, resident_mib, seconds_by_tier
from fftmoe.setup.load import reads_images
from fftmoe.setup.own_training import train_for_themselves
from fftmoe.setup.target_scales import scales_of, to_units
from fftmoe.store import (
    ADAPTER,
    KEPT_ROUND,
    LAST_ADAPTER,
    LAST_ROUND,
    Bindings,
    RunFolder,
    SavedWith,
    read_config,
    save_adapter,
)

SCHEMA_VERSION = 2
MOST_NAMED = 10_000  # clients, or labels, that the summary lists


@dataclass(frozen=True)
class Result:
    """Holds a finished run: its folder and the contents of `summary.json`."""

    folder: Path
    summary: dict[str, Any]


OpenEngine = Callable[[Experiment, RunFolder], Engine]
"""Makes the engine of a run."""


@dataclass(frozen=True)
class Beginning:
    """Says where a run starts, or where an interrupted one continues.

    Attributes:
        initial: the state before the first round. state: the state after the last row of `rows`.
        clients_per_batch: how many clients train in one batch at most.
        private: how a private run is merged; None for any other.
        bindings: what the run is bound to.
    """

    folder: RunFolder
    initial: ServerState
    state: ServerState
    rows: Sequence[dict[str, Any]]
    clients_per_batch: int
    private: PrivateMerging | None
    bindings: Bindings


def carry_out(experiment: Experiment, at: Beginning, progress: Progress, open_engine: OpenEngine) -> Result:
    """Run all rounds that are left, measure the result, and write the adapter, the report and the summary."""
    recipe = experiment.recipe
    for note in experiment.notes:
        progress.say(f"warning: {note}")
    if at.private is not None:
        progress.say(at.private.promise(recipe.federation.rounds - at.state.round))
    expected = seconds_by_tier(experiment, at.initial) if progress.visible else {}
    memory = resident_mib(experiment) if expected else None
    announce_memory(memory, progress)
    announce_duration(experiment, expected, at.state.round, at.folder.path, progress)
    with (
        closing(Trackers(recipe.trackers, at.folder.path, recipe.name, progress.say)) as trackers,
        closing(open_engine(experiment, at.folder)) as engine,
        naming_clients(experiment.client_names),
    ):
        trackers.configure(recipe.model_dump(mode="json"))
        hidden = at.private.hides if at.private else frozenset()
        ranking = kept_ranking(experiment)
        metric = Metric.of_task(experiment.task)
        journal = Journal(at.folder, trackers, progress, metric, at.rows, hidden, ranking, experiment.client_names)
        federation = make_federation(experiment, engine, journal, at.clients_per_batch, at.private)
        state, metrics = _rounds(federation, at, journal, recipe.federation.clients_per_round)
        check_learned(journal.rows, at.initial, state, _trained_by_rounds(experiment, at.initial))
        kept, metrics = kept_model(federation, journal, state, metrics)
        measure, first = federation.evaluate.measure, journal.rows[0]
        metrics |= train_for_themselves(experiment, measure, kept, engine, metrics, journal.say)
        metrics |= measure_baselines(experiment, measure, at.initial, engine, first, metrics, journal.say)
        metrics |= _label_shares(experiment, kept)
        used = {
            "seconds": round(journal.seconds, 1),
            "peak_rss_mib": round(engine.peak_rss_mib(), 1),
            **({"expected_rss_mib": round(memory, 1)} if memory is not None else {}),
        }
        summary = journal.public({**_figures_of_run(experiment, at, state, metrics, journal, expected), **used})
        trackers.finish(summary)
    _save(experiment, kept, state, at, summary)
    return Result(at.folder.path, summary)


def _figures_of_run(
    experiment: Experiment,
    at: Beginning,
    state: ServerState,
    metrics: Metrics,
    journal: Journal,
    expected: Mapping[str, float],
) -> dict[str, Any]:
    """Return the summary of a run after its last round, without what the run used of this machine.

    Args:
        metrics: of the state that is kept. expected: seconds of a client's round by tier, empty if nobody asked.
    """
    predicted = predicted_by_tier(experiment, at.initial)
    return {
        **_facts(experiment, state),
        **({"notes": list(experiment.notes)} if experiment.notes else {}),
        "best_round": None,  # where rounds are not compared on validation rows
        **metrics,
        **_named_labels(metrics, experiment.label_names),
        **journal.totals(),
        **_early(experiment, journal, state),
        **verdict(journal.rows, {**metrics, **journal.metric.facts}),
        **({"privacy": at.private.summary()} if at.private is not None else {}),
        "predicted_by_tier": predicted,
        "prediction": predicted_and_measured(predicted, expected, journal.ledger.per_client_round()),
        "environment": environment(next(experiment.model.parameters()).device),
        **({"accepted_changes": list(at.bindings.accepted)} if at.bindings.accepted else {}),
    }


def _rounds(
    federation: Federation, at: Beginning, journal: Journal, clients_per_round: int
) -> tuple[ServerState, Metrics]:
    """Return the state after all rounds that follow the beginning, and its metrics."""
    state = at.state if at.state.round or at.rows else start(federation, at.state, journal)
    with journal.progress.rounds(federation.num_rounds, clients_per_round, state.round):
        state, metrics = federate(federation, state, journal)
    if metrics is None:  # a run that ended early, or was interrupted after its last round, still has to be measured
        metrics = {**federation.evaluate.final(state), **validated_in(journal.rows[-1])}
    return state, metrics


def _trained_by_rounds(experiment: Experiment, initial: ServerState) -> list[str]:
    """Return the names of the tensors that rounds train: not a closed-form head,
    and nothing that stays at the clients.
    """
    if experiment.method.capabilities.personal:
        return []
    solved = experiment.recipe.closed_form
    return [name for name in initial.tensors if not (solved and names.is_head(name))]


def _label_shares(experiment: Experiment, kept: ServerState) -> dict[str, list[float]]:
    """Return everyone's shares of the labels where nothing that is saved with the adapter says them: the head is a
    trained one, and the clients are here.
    """
    own = experiment.own_labels
    shares = None if own is None or kept.label_shares is not None else own.everyones(kept)
    return {} if shares is None else {"label_shares": list(shares)}


def _early(experiment: Experiment, journal: Journal, state: ServerState) -> dict[str, bool]:
    """Return whether patience has ended the run before its last round, where the recipe has any."""
    federation = experiment.recipe.federation
    if federation.patience is None:
        return {}
    return {"stopped_early": state.round < federation.rounds and make_patience(experiment)(journal.rows) is not None}


def _facts(experiment: Experiment, state: ServerState) -> dict[str, Any]:
    """Return the values of the summary that describe the run: its method, seed, rounds, clients and parameters."""
    head = sum(t.numel() for name, t in state.tensors.items() if names.is_head(name))
    return {
        "schema_version": SCHEMA_VERSION,
        "method": experiment.recipe.method,
        **({"capabilities": asdict(experiment.method.capabilities)} if is_plugin(experiment.recipe.method) else {}),
        "seed": experiment.recipe.seed,
        "rounds_completed": state.round,
        "num_clients": experiment.num_clients,
        **_names_of_clients(experiment),
        "trainable_parameters": sum(t.numel() for t in state.tensors.values()),
        "trainable_parameters_by_tier": {
            tier.name: experiment.method.parameters(tier) + head for tier in experiment.tiers
        },
    }


def _names_of_clients(experiment: Experiment) -> dict[str, list[str]]:
    """Return the names that the data gives the clients, in their order; none of very many,
    and none of a private run.
    """
    names = experiment.client_names
    return {"client_names": list(names)} if names is not None and len(names) <= MOST_NAMED else {}


def _named_labels(metrics: Metrics, label_names: Sequence[str]) -> dict[str, Any]:
    """Return the counts of labels beside their names; None of very many, and of a task that judges by other names."""
    counts = metrics.get("labels")
    if counts is None:
        return {}
    listed = len(label_names) <= MOST_NAMED and len(counts["actual"]) == len(label_names)
    return {"labels": {"name": list(label_names), **counts} if listed else None}


def _save(experiment: Experiment, kept: ServerState, last: ServerState, at: Beginning, summary: dict[str, Any]) -> None:
    """Write the adapter as a PEFT folder, then the report, then the summary: a summary means that the run is whole.

    Where the best round is kept and is not the last one, the adapter of the last round lies beside it.
    """
    recipe, folder = experiment.recipe, at.folder
    reader = load_reader(recipe.backbone.model, reads_images(recipe))
    states = {ADAPTER: kept} if kept.round == last.round else {LAST_ADAPTER: last, ADAPTER: kept}
    for name, state in states.items():
        experiment.method.install(experiment.model, state.tensors, experiment.largest)
        to_units(experiment.model, scales_of(recipe))
        set_temperature(experiment.model, state.temperature)
        round = KEPT_ROUND if name == ADAPTER else LAST_ROUND
        card = run_card(recipe, summary, folder.path / name, experiment.label_names, round)
        known = (state.temperature, state.label_shares)
        beside = SavedWith(experiment.label_names, recipe.backbone.task, reader, card, *known)
        save_adapter(experiment.model, folder.path / name, beside)
    at.bindings.with_adapters(folder.path, list(states)).write(folder.path)
    # From the files, as `fftmoe report` makes it again: `compose` may have changed the recipe.
    page = report_page(
        RunRecord(read_config(folder.path), folder.all_metrics(), summary, str(folder.path), folder.over_sites)
    )
    folder.write_report(page.html, page.csv)
    folder.write_summary(summary)
