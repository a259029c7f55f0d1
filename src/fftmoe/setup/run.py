"""Carries out a run from its recipe to its folder, or the rest of one that was interrupted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fftmoe.backbones.lora import lora_modules
from fftmoe.config import Recipe, apply_override, parse_override, parse_recipe
from fftmoe.data import ReadAhead
from fftmoe.errors import InputError, OutputError
from fftmoe.report.progress import Progress
from fftmoe.report.trackers import check_trackers
from fftmoe.setup.bindings import bindings_of, check_state, check_unchanged
from fftmoe.setup.carry_out import Beginning, OpenEngine, carry_out
from fftmoe.setup.carry_out import Result as Result
from fftmoe.setup.compose import compose
from fftmoe.setup.engine import open_engine
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.federation import kept_ranking
from fftmoe.setup.places import from_its_place, place_of, present_place
from fftmoe.setup.plugins import Plugins
from fftmoe.setup.privacy import private_merging
from fftmoe.setup.simulation import check_simulation
from fftmoe.setup.stacking import clients_per_batch
from fftmoe.shown import quoted
from fftmoe.store import (
    Bindings,
    RunFolder,
    Saved,
    check_free,
    check_run_output,
    owned,
    pack_state,
    read_config,
)
from fftmoe.store.run_folder import CONFIG, PLACE, SITES


@dataclass(frozen=True)
class Extra:
    """Holds what a run over sites adds to the folder of a run.

    Attributes:
        bindings: further values that the run is bound to.
        write: writes further files, before there is a run.
    """

    bindings: Mapping[str, Any] = field(default_factory=dict)
    write: Callable[[RunFolder], object] = lambda folder: None


NO_EXTRA = Extra()


def run(
    recipe: Recipe,
    output: Path,
    progress: Progress | None = None,
    open_engine: OpenEngine = open_engine,
    plugins: Plugins | None = None,
    read_ahead: ReadAhead | None = None,
) -> Result:
    """Run a recipe and write its folder.

    Args:
        output: the run folder, new or empty.
        progress: where progress is shown; nowhere when None.
        plugins: parts that the recipe may name, in addition to installed ones.
        read_ahead: what was read of the data while the recipe was completed.

    Raises:
        InputError: the recipe, its data or the output cannot be used; nothing has been written.
        RunError: a client failed.
    """
    progress = progress or Progress.silent()
    check_trackers(recipe.trackers)
    check_simulation(recipe)
    check_free(output)
    check_run_output(output)  # it is checked again when it is made; here it spares a person the wait
    progress.say("loading data and backbone")
    with _with_way_to_resume(output):
        return begin(compose(recipe, plugins, read_ahead), recipe, output, progress, open_engine)


def begin(
    experiment: Experiment,
    recipe: Recipe,
    output: Path,
    progress: Progress,
    open_engine: OpenEngine,
    extra: Extra = NO_EXTRA,
) -> Result:
    """Run an experiment that was made from this recipe.

    Raises:
        InputError: the output cannot be used; nothing has been written. RunError: a client failed.
    """
    batch = clients_per_batch(experiment)  # may refuse the recipe, before anything is written
    initial = experiment.first_state()
    private = private_merging(experiment, initial, output, resumed=False)
    bindings = Bindings({**present_place(), **bindings_of(experiment, recipe), **extra.bindings})

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
        return carry_out(experiment, beginning, progress, open_engine)


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
    if (output / SITES).exists():
        raise InputError(
            f"the run in {output} is one over sites; continue it with the command that began it: fftmoe deploy server "
            f"FOLDER --recipe {quoted(output / CONFIG)} --output {quoted(output)}"
        )
    check_free(output)
    check_trackers(recipe.trackers)
    check_simulation(recipe)
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
        raise OutputError(f"{error}; then go on: fftmoe resume {quoted(output)}") from error


def unfinished(output: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of an interrupted run, with `engine.…` overridden.

    Raises:
        InputError: the folder holds no run, or a finished one; another section is overridden.
    """
    values = from_its_place(output, read_config(output))
    for text in overrides:
        key, value = parse_override(text)
        if not key.startswith("engine."):
            raise InputError(f"{key} cannot change in the middle of a run, only engine.… can; start a new run")
        apply_override(values, key, value)
    if (output / PLACE).exists():
        raise InputError(
            f"{output} holds the model of one place, which `fftmoe personalize` has made, and no rounds; name the run "
            "from which it was made"
        )
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
    extra: Extra = NO_EXTRA,
) -> Result:
    """Run the rest of an interrupted run, with an experiment that was made from its recipe.

    Raises:
        InputError: as for `resume`; nothing has been written. RunError: a client failed.
    """
    batch = clients_per_batch(experiment)
    initial = experiment.first_state()
    now = {**place_of(output), **bindings_of(experiment, recipe), **extra.bindings}
    with owned(output):
        unfinished(output)  # another process may have finished it meanwhile
        folder = RunFolder(output)
        saved = folder.load_newest()
        state = saved.state or initial
        bindings = check_unchanged(output, now, accept_changes, progress.say, state.round)
        modules = lora_modules(experiment.model) if experiment.method.capabilities.changes_backbone else {}
        check_state(state, initial, output, modules)
        private = private_merging(experiment, initial, output, resumed=True)
        if private is not None:
            private.check_rows([*folder.all_metrics(), *saved.rows])
        _say_what_was_lost(saved, progress)
        bindings.write(output)
        extra.write(folder)
        folder.rewind(saved, kept_ranking(experiment))
        progress.say(f"continuing after round {state.round} of {experiment.recipe.federation.rounds}")
        beginning = Beginning(folder, initial, state, saved.rows, batch, private, bindings)
        return carry_out(experiment, beginning, progress, open_engine)


def _say_what_was_lost(saved: Saved, progress: Progress) -> None:
    for reason in saved.passed_over:
        progress.say(f"skipped the checkpoint of {reason}")
    if saved.rows_lost:
        rounds = ", ".join(map(str, saved.rows_lost))
        progress.say(f"warning: metrics.jsonl has no intact row of round {rounds}; the report will lack it")
