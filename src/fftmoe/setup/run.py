"""A run from its recipe to its folder, or the rest of one that was interrupted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fftmoe.config import Recipe, apply_override, parse_override, parse_recipe
from fftmoe.cost.prediction import predicted_and_measured
from fftmoe.engines.base import Engine
from fftmoe.errors import InputError, OutputError
from fftmoe.records import ServerState, names
from fftmoe.report.environment import environment
from fftmoe.report.page import report_page
from fftmoe.report.progress import Progress
from fftmoe.report.trackers import Trackers, check_trackers
from fftmoe.report.verdict import verdict
from fftmoe.rounds.journal import Journal
from fftmoe.rounds.loop import Federation, Metrics, federate, start
from fftmoe.rounds.outcome import check_learned
from fftmoe.rounds.private import PrivateMerging
from fftmoe.setup.bindings import bindings_of, check_state, check_unchanged
from fftmoe.setup.compose import compose
from fftmoe.setup.engine import open_engine
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.federation import make_federation, train_locally
from fftmoe.setup.forecast import announce_duration, predicted_by_tier, resident_mib, seconds_by_tier
from fftmoe.setup.plugins import Plugins
from fftmoe.setup.privacy import private_merging
from fftmoe.setup.stacking import clients_per_batch
from fftmoe.setup.target_scales import scales_of, to_units
from fftmoe.store import (
    Bindings,
    RunFolder,
    Saved,
    check_free,
    check_run_output,
    owned,
    pack_state,
    read_config,
    save_adapter,
)
from fftmoe.store.run_folder import CONFIG

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Result:
    """A finished run: its folder and the contents of `summary.json`."""

    folder: Path
    summary: dict[str, Any]


@dataclass(frozen=True)
class Extra:
    """What a run over sites adds to the folder of a run.

    Attributes:
        bindings: further values that the run is bound to.
        write: writes further files, before there is a run.
    """

    bindings: Mapping[str, Any] = field(default_factory=dict)
    write: Callable[[RunFolder], object] = lambda folder: None


NOTHING = Extra()
OpenEngine = Callable[[Experiment, RunFolder], Engine]
"""Makes the engine of a run."""


@dataclass(frozen=True)
class Beginning:
    """Where a run starts, or where an interrupted one continues.

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


def run(
    recipe: Recipe,
    output: Path,
    progress: Progress | None = None,
    open_engine: OpenEngine = open_engine,
    plugins: Plugins | None = None,
) -> Result:
    """Run a recipe and write its folder.

    Args:
        output: the run folder, new or empty.
        progress: where progress is shown; nowhere when None.
        plugins: parts that the recipe may name, in addition to installed ones.

    Raises:
        InputError: the recipe, its data or the output cannot be used; nothing has been written.
        RunError: a client failed.
    """
    progress = progress or Progress.silent()
    check_trackers(recipe.trackers)
    check_free(output)
    check_run_output(output)  # it is checked again when it is made; here it spares a person the wait
    progress.say("loading data and backbone")
    with _with_way_to_resume(output):
        return begin(compose(recipe, plugins), recipe, output, progress, open_engine)


def begin(
    experiment: Experiment,
    recipe: Recipe,
    output: Path,
    progress: Progress,
    open_engine: OpenEngine,
    extra: Extra = NOTHING,
) -> Result:
    """Run an experiment that was made from this recipe.

    Raises:
        InputError: the output cannot be used; nothing has been written. RunError: a client failed.
    """
    batch = clients_per_batch(experiment)  # may refuse the recipe, before anything is written
    initial = experiment.method.init(experiment.model)
    private = private_merging(experiment, initial, output, resumed=False)
    bindings = Bindings({**bindings_of(experiment, recipe), **extra.bindings})

    def write_first(folder: RunFolder) -> None:
        bindings.write(folder.path)
        extra.write(folder)
        if private is not None:
            private.record()

    check_run_output(output)  # before a lock is put there
    with owned(output):
        values, needed_bytes = recipe.model_dump(mode="json"), 6 * len(pack_state(initial))
        folder = RunFolder.create(output, values, needed_bytes, write_first)
        beginning = Beginning(folder, initial, initial, (), batch, private, bindings)
        return _carry_out(experiment, beginning, progress, open_engine)


def resume(
    output: Path,
    progress: Progress | None = None,
    overrides: Sequence[str] = (),
    open_engine: OpenEngine = open_engine,
    plugins: Plugins | None = None,
    accept_changes: bool = False,
) -> Result:
    """Continue an interrupted run from its last whole round; it ends with the bytes of an uninterrupted run.

    With differential privacy the bytes differ: the run draws new noise, and a repeated round costs privacy again.

    Args:
        output: the run folder.
        overrides: as for `run`, but only of `engine.…`: where and how fast the run computes.
        plugins: the plug-ins that the run was started with.
        accept_changes: continue although data, backbone or versions are not those that the run began with.

    Raises:
        InputError: the folder holds no run, or a finished one; another process runs it; or something has changed that
            the run is bound to. RunError: a client failed.
    """
    progress = progress or Progress.silent()
    recipe = unfinished(output, overrides)
    check_free(output)
    check_trackers(recipe.trackers)
    progress.say("loading data and backbone")
    with _with_way_to_resume(output):
        return go_on(compose(recipe, plugins), recipe, output, progress, open_engine, accept_changes)


@contextmanager
def _with_way_to_resume(output: Path) -> Iterator[None]:
    """Add the command that resumes the run to the message of a disk that refuses a file."""
    try:
        yield
    except OutputError as error:
        if not (output / CONFIG).exists():
            raise
        raise OutputError(f"{error}; then go on: fftmoe resume {output}") from error


def unfinished(output: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of an interrupted run, with `engine.…` overridden.

    Raises:
        InputError: the folder holds no run, or a finished one; another section is overridden.
    """
    values = read_config(output)
    for text in overrides:
        key, value = parse_override(text)
        if not key.startswith("engine."):
            raise InputError(f"{key} cannot change in the middle of a run, only engine.… can; start a new run")
        apply_override(values, key, value)
    if (output / "summary.json").exists():
        raise InputError(f"the run in {output} has finished; to run it again, name a new folder with `fftmoe run`")
    return parse_recipe(values, str(output / "config.yaml"))


def go_on(
    experiment: Experiment,
    recipe: Recipe,
    output: Path,
    progress: Progress,
    open_engine: OpenEngine,
    accept_changes: bool = False,
    extra: Extra = NOTHING,
) -> Result:
    """Run the rest of an interrupted run, with an experiment that was made from its recipe.

    Raises:
        InputError: as for `resume`; nothing has been written. RunError: a client failed.
    """
    batch = clients_per_batch(experiment)
    initial = experiment.method.init(experiment.model)
    now = {**bindings_of(experiment, recipe), **extra.bindings}
    with owned(output):
        unfinished(output)  # another process may have finished it meanwhile
        folder = RunFolder(output)
        saved = folder.load_newest()
        state = saved.state or initial
        bindings = check_unchanged(output, now, accept_changes, progress.say, state.round)
        check_state(state, initial, output)
        private = private_merging(experiment, initial, output, resumed=True)
        _say_what_was_lost(saved, progress)
        bindings.write(output)
        extra.write(folder)
        folder.rewind(saved)
        progress.say(f"continuing after round {state.round} of {experiment.recipe.federation.rounds}")
        beginning = Beginning(folder, initial, state, saved.rows, batch, private, bindings)
        return _carry_out(experiment, beginning, progress, open_engine)


def _say_what_was_lost(saved: Saved, progress: Progress) -> None:
    for reason in saved.passed_over:
        progress.say(f"skipped the checkpoint of {reason}")
    if saved.rows_lost:
        rounds = ", ".join(map(str, saved.rows_lost))
        progress.say(f"warning: metrics.jsonl has no intact row of round {rounds}; the report will lack it")


def _carry_out(experiment: Experiment, at: Beginning, progress: Progress, open_engine: OpenEngine) -> Result:
    """Run all rounds that are left, measure the result, and write the adapter, the report and the summary."""
    recipe, notes = experiment.recipe, experiment.notes
    for note in notes:
        progress.say(f"warning: {note}")
    if at.private is not None:
        progress.say(at.private.promise(recipe.federation.rounds - at.state.round))
    expected = seconds_by_tier(experiment, at.initial) if progress.visible else {}
    memory = resident_mib(experiment) if expected else None
    announce_duration(experiment, expected, at.state.round, at.folder.path, progress)
    with (
        closing(Trackers(recipe.trackers, at.folder.path, recipe.name, progress.say)) as trackers,
        closing(open_engine(experiment, at.folder)) as engine,
    ):
        trackers.configure(recipe.model_dump(mode="json"))
        journal = Journal(
            at.folder,
            trackers,
            progress,
            experiment.task.metric,
            at.rows,
            at.private.hides if at.private else frozenset(),
        )
        federation = make_federation(experiment, engine, journal, at.clients_per_batch, at.private)
        state, metrics = _rounds(federation, at.state, journal, recipe.federation.clients_per_round)
        check_learned(journal.rows, at.initial, state, _trained_by_rounds(experiment, at.initial))
        if recipe.evaluation.local_only:
            progress.say("training clients locally, for comparison")
            metrics |= train_locally(experiment, federation.evaluate.measure, at.initial, engine)
        peak = engine.peak_rss_mib()
        summary = {
            **_facts(experiment, state),
            **({"notes": list(notes)} if notes else {}),
            **metrics,
            **journal.totals(),
            **verdict(journal.rows, {**metrics, "metric": journal.metric}),
            **({"privacy": at.private.summary()} if at.private is not None else {}),
            "predicted_by_tier": (predicted := predicted_by_tier(experiment, at.initial)),
            "prediction": predicted_and_measured(predicted, expected, journal.ledger.per_client_round()),
            "environment": environment(next(experiment.model.parameters()).device),
            "seconds": round(journal.seconds, 1),
            "peak_rss_mib": round(peak, 1),
            **({"expected_rss_mib": round(memory, 1)} if memory is not None else {}),
            **({"accepted_changes": list(at.bindings.accepted)} if at.bindings.accepted else {}),
        }
        summary = journal.public(summary)
        trackers.finish(summary)
    _save(experiment, state, at.folder, summary)
    return Result(at.folder.path, summary)


def _rounds(
    federation: Federation, state: ServerState, journal: Journal, clients_per_round: int
) -> tuple[ServerState, Metrics]:
    """The state after all rounds that follow `state`, and its metrics."""
    state = start(federation, state, journal) if state.round == 0 else state
    with journal.progress.rounds(federation.num_rounds, clients_per_round, state.round):
        state, metrics = federate(federation, state, journal)
    # A run that ended early, or that was interrupted after its last round, still has to be measured.
    return state, federation.evaluate.final(state) if metrics is None else metrics


def _trained_by_rounds(experiment: Experiment, initial: ServerState) -> list[str]:
    """The names of the tensors that rounds train: not a closed-form head, and nothing that stays at the clients."""
    if experiment.method.capabilities.personal:
        return []
    solved = experiment.recipe.closed_form
    return [name for name in initial.tensors if not (solved and names.is_head(name))]


def _facts(experiment: Experiment, state: ServerState) -> dict[str, Any]:
    """The values of the summary that describe the run: its method, seed, rounds, clients and parameters."""
    head = sum(t.numel() for name, t in state.tensors.items() if names.is_head(name))
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
    }


def _save(experiment: Experiment, state: ServerState, folder: RunFolder, summary: dict[str, Any]) -> None:
    """Write the adapter as a PEFT folder, then the report, then the summary: a summary means that the run is whole."""
    experiment.method.install(experiment.model, state.tensors, experiment.largest)
    to_units(experiment.model, scales_of(experiment.recipe))
    save_adapter(experiment.model, folder.path / "adapter", experiment.label_names)
    # From the files, as `fftmoe report` makes it again: `compose` may have changed the recipe.
    folder.write_report(report_page(read_config(folder.path), folder.all_metrics(), summary))
    folder.write_summary(summary)
