"""A run from its recipe to its folder, or the rest of one that was interrupted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
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
from fftmoe.rounds.journal import Journal
from fftmoe.rounds.loop import federate
from fftmoe.rounds.measure import local_only
from fftmoe.rounds.private import PrivateRounds, private_rounds
from fftmoe.setup.compose import Experiment, compose
from fftmoe.setup.engine import open_engine
from fftmoe.setup.forecast import announce_duration, predicted_by_tier, resident_mib, seconds_by_tier
from fftmoe.setup.plugins import Plugins
from fftmoe.setup.stacking import clients_per_batch
from fftmoe.store import RunFolder, check_output, pack_state, read_config, save_adapter

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Result:
    """A finished run: its folder and the contents of `summary.json`."""

    folder: Path
    summary: dict[str, Any]


Open = Callable[[Experiment, RunFolder], Engine]
"""Makes the engine of a run."""


def run(
    recipe: Recipe,
    output: Path,
    progress: Progress | None = None,
    open_engine: Open = open_engine,
    plugins: Plugins | None = None,
) -> Result:
    """Run an experiment and write its folder.

    Args:
        output: the run folder, new or empty.
        progress: where to show it; silent when None.
        plugins: that the recipe may name, beside installed ones.

    Raises:
        InputError: the recipe, its data or the output cannot be used; nothing has been written.
        RunError: a client failed.
    """
    progress = progress or Progress.silent()
    check_trackers(recipe.trackers)
    check_output(output)  # again when it is made; here to spare a person the wait
    progress.say("loading data and backbone")
    with _going_on_told(output):
        return begin(compose(recipe, plugins), recipe, output, progress, open_engine)


def begin(experiment: Experiment, recipe: Recipe, output: Path, progress: Progress, open_engine: Open) -> Result:
    """Run an experiment that has been made from this recipe.

    Raises:
        InputError: the output cannot be used; nothing has been written. RunError: a client failed.
    """
    at_once = clients_per_batch(experiment)  # refused before anything is written
    initial = experiment.method.init(experiment.model)
    privacy = private_rounds(experiment, initial, output, resumed=False)
    folder = RunFolder.create(output, recipe.model_dump(mode="json"), needed_bytes=6 * len(pack_state(initial)))
    if privacy is not None:
        privacy.record()
    return _carry_out(experiment, folder, initial, initial, (), at_once, privacy, progress, open_engine)


def resume(
    output: Path,
    progress: Progress | None = None,
    overrides: Sequence[str] = (),
    open_engine: Open = open_engine,
    plugins: Plugins | None = None,
) -> Result:
    """Go on with an interrupted run from its last whole round, to the bytes that it would have ended with.

    With differential privacy nobody knows those: noise is drawn anew, and a round that is played again costs again.

    Args:
        output: the run folder.
        overrides: as of `run`, for what may change in between: where and how fast it computes, `engine.…` alone.
        plugins: as the run was given.

    Raises:
        InputError: the folder is not a run, or of one that has finished. RunError: a client failed.
    """
    progress = progress or Progress.silent()
    recipe = unfinished(output, overrides)
    check_trackers(recipe.trackers)
    progress.say("loading data and backbone")
    with _going_on_told(output):
        return go_on(compose(recipe, plugins), output, progress, open_engine)


@contextmanager
def _going_on_told(output: Path) -> Iterator[None]:
    """A disk that refuses a file leaves a run that goes on once it has room."""
    try:
        yield
    except OutputError as error:
        if not (output / "config.yaml").exists():
            raise
        raise OutputError(f"{error}; then go on: fftmoe resume {output}") from error


def unfinished(output: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of an interrupted run, with `engine.…` overridden.

    Raises:
        InputError: the folder is not a run, or of one that has finished; another section is overridden.
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


def go_on(experiment: Experiment, output: Path, progress: Progress, open_engine: Open) -> Result:
    """The rest of an interrupted run of an experiment that has been made from its recipe."""
    recipe, at_once = experiment.recipe, clients_per_batch(experiment)
    initial = experiment.method.init(experiment.model)
    privacy = private_rounds(experiment, initial, output, resumed=True)
    folder = RunFolder(output)
    saved = folder.load_newest()
    for reason in saved.passed_over:
        progress.say(f"passed over the checkpoint of {reason}")
    folder.rewind(saved)
    state = saved.state or initial
    progress.say(f"going on after round {state.round} of {recipe.federation.rounds}")
    return _carry_out(experiment, folder, initial, state, saved.rows, at_once, privacy, progress, open_engine)


def _carry_out(
    experiment: Experiment,
    folder: RunFolder,
    initial: ServerState,
    state: ServerState,
    rows: Sequence[dict[str, Any]],
    at_once: int,
    privacy: PrivateRounds | None,
    progress: Progress,
    open_engine: Open,
) -> Result:
    """The rounds after `state`, whose row is the last of `rows`, and what is made of the result."""
    recipe = experiment.recipe
    if privacy is not None:
        progress.say(privacy.promise)
    expected = seconds_by_tier(experiment, initial) if progress.visible else {}
    memory = resident_mib(experiment) if expected else None
    announce_duration(experiment, expected, state.round, folder.path, progress)
    with (
        closing(Trackers(recipe.trackers, folder.path, recipe.name, progress.say)) as trackers,
        closing(open_engine(experiment, folder)) as engine,
    ):
        trackers.configure(recipe.model_dump(mode="json"))
        journal = Journal(folder, trackers, progress, experiment.task.metric, rows)
        state, metrics = federate(experiment, state, engine, journal, at_once, privacy)
        if recipe.evaluation.local_only:
            progress.say("training clients alone, for comparison")
            metrics |= local_only(experiment, initial, engine)
        peak = engine.peak_rss_mib()
        summary = {
            **_facts(experiment, state),
            **metrics,
            **journal.totals(),
            **({"privacy": privacy.summary()} if privacy is not None else {}),
            "predicted_by_tier": (predicted := predicted_by_tier(experiment, initial)),
            "prediction": predicted_and_measured(predicted, expected, journal.ledger.per_client_round()),
            "environment": environment(next(experiment.model.parameters()).device),
            "seconds": round(journal.seconds, 1),
            "peak_rss_mib": round(peak, 1),
            **({"expected_rss_mib": round(memory, 1)} if memory is not None else {}),
        }
        trackers.finish(summary)
    _save(experiment, state, folder, summary)
    return Result(folder.path, summary)


def _facts(experiment: Experiment, state: ServerState) -> dict[str, Any]:
    """What was run."""
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
    """The adapter as a PEFT folder, then the report, then the summary: a summary means a whole run."""
    experiment.method.install(experiment.model, state.tensors, experiment.largest)
    save_adapter(experiment.model, folder.path / "adapter", experiment.label_names)
    config = experiment.recipe.model_dump(mode="json")
    folder.write_report(report_page(config, folder.all_metrics(), summary))
    folder.write_summary(summary)
