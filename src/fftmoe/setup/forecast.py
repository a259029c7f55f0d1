"""Makes a forecast from a recipe: what a run of it will cost here, before it trains.

The forecasts themselves are computed in `cost/`, from plain values.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fftmoe import adapter
from fftmoe.backbones import first_adapted_block
from fftmoe.backbones.prefix_cache import prefix_cost
from fftmoe.config import Recipe
from fftmoe.cost.analytic import (
    Forecast,
    StatisticsCost,
    cost_by_tier,
    forecast_run,
    statistics_cost,
    tokens_per_round,
    validation_cost,
)
from fftmoe.cost.capacity import fitting_tier
from fftmoe.cost.machine import available_mib, expected_peak_mib, memory_warning
from fftmoe.cost.measured import MachineProfile, RoundLimits, profile_machine
from fftmoe.cost.prediction import announce_training
from fftmoe.cost.timed import PreparedClients, TimedClient, time_tiers
from fftmoe.cost.workload import Workload
from fftmoe.data import ReadAhead, cached_states
from fftmoe.engines.memory import peak_rss_mib
from fftmoe.errors import RunError
from fftmoe.methods.budget import MIB, ExpertShape
from fftmoe.records import Budget, ServerState
from fftmoe.report.progress import Progress
from fftmoe.setup.baselines import baseline_costs, training_together
from fftmoe.setup.clients import NoStates, build_client, client_spec
from fftmoe.setup.compose import compose
from fftmoe.setup.engine import num_workers
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.judged import make_answers
from fftmoe.setup.method import build_method, fit_budgets
from fftmoe.setup.own_training import steps_of_own
from fftmoe.setup.stacking import clients_per_batch
from fftmoe.setup.tiers import own_blocks, training_of


def forecast(recipe: Recipe, read_ahead: ReadAhead | None = None) -> Forecast:
    """Compose the experiment of a recipe and compute what its first round costs; trains and writes nothing.

    Args:
        read_ahead: see `run`.

    Raises:
        InputError: as `compose`, for instance a budget that cannot hold one expert.
    """
    # The size of the frozen prefix's states is computed, and not the states, which takes as long as some rounds.
    engine = recipe.engine.model_copy(update={"prefix_cache": "off"})
    recipe_without = recipe.model_copy(update={"engine": engine})
    experiment = compose(recipe_without, read_ahead=read_ahead, measures=False)
    work = workload(experiment, experiment.first_state())
    adapted = {name for name, p in experiment.model.named_parameters() if p.requires_grad}
    backbone_bytes = sum(p.nbytes for name, p in experiment.model.named_parameters() if name not in adapted)
    found = forecast_run(work, _statistics_cost(experiment, work), backbone_bytes, *_prefix_cost(experiment, recipe))
    return replace(
        found,
        notes=experiment.notes,
        validation=_validation_cost(experiment, work),
        held_out=int(experiment.held_out.numbers.sum()),
        test_examples=len(experiment.test),
        client_names=experiment.partition.groups,
        baselines=baseline_costs(experiment),
        steps=training_together(experiment).local_steps or 0,
        own_steps=steps_of_own(experiment),
    )


def profile(
    recipe: Recipe,
    deadline_seconds: float | None = None,
    memory_mib: float | None = None,
    uplink_mbit: float | None = None,
    say: Callable[[str], None] = lambda _: None,
    read_ahead: ReadAhead | None = None,
) -> MachineProfile:
    """Time this machine on the recipe's backbone and data, and choose a budget for it.

    Args:
        deadline_seconds: of a round; None: `federation.deadline_seconds`.
        memory_mib: for the whole process; None: what is free now.
        uplink_mbit: megabits a second; None: uploads take no time.
        say: called with a line for each budget that was timed.
        read_ahead: see `run`.

    Raises:
        InputError: no budget fits; or as `compose`.
    """
    available = available_mib()
    limits = RoundLimits(deadline_seconds or recipe.federation.deadline_seconds, memory_mib or available, uplink_mbit)
    experiment = compose(recipe, read_ahead=read_ahead, measures=False)
    work = workload(experiment, experiment.first_state())
    return profile_machine(work, timed_client(experiment, work), limits, available, say)


def predicted_by_tier(experiment: Experiment, initial: ServerState) -> dict[str, dict[str, float]]:
    """Return what one client's round costs in each tier that has clients;
    `initial` is the state before the first round.
    """
    return cost_by_tier(workload(experiment, initial))


def seconds_by_tier(experiment: Experiment, initial: ServerState) -> dict[str, float]:
    """Return the seconds of an average client's round by tier, from a few timed steps; empty where they cannot be timed
    here.

    They cannot where clients are remote, and where a loss is no finite number: the run itself will report that, and
    which client it belongs to.
    """
    if experiment.remote:
        return {}
    try:
        client = timed_client(experiment, workload(experiment, initial))
        return time_tiers(client, experiment.tiers, experiment.largest)
    except RunError:
        return {}


def resident_mib(experiment: Experiment) -> float | None:
    """Return the memory in MiB that the processes of the run will hold at their peak, once `seconds_by_tier` has been
    called.

    None where clients are remote.
    """
    if experiment.remote:
        return None
    engine, workers = experiment.recipe.engine, num_workers(experiment.recipe)
    states = [cached_states(examples) for examples in (experiment.train, experiment.test)]
    cached = [own.path.stat().st_size for own in states if own is not None]
    return expected_peak_mib(cached, 1 if workers == 1 and engine.kind == "local" else 1 + workers)


def announce_memory(expected_mib: float | None, progress: Progress) -> None:
    """Say where a run is expected to take more memory than this machine has left; `expected_mib` as `resident_mib`."""
    if expected_mib is not None and (said := memory_warning(expected_mib, peak_rss_mib(), available_mib())):
        progress.say(said)


def announce_duration(
    experiment: Experiment, seconds: Mapping[str, float], done: int, folder: Path, progress: Progress
) -> None:
    """Say how long the rounds after `done` will train, where that is worth knowing; `seconds` as `seconds_by_tier`."""
    members = {tier.name: len(experiment.budgets.members(tier)) for tier in experiment.tiers}
    federation = experiment.recipe.federation
    rounds, workers = federation.rounds - done, num_workers(experiment.recipe)
    announce_training(seconds, members, rounds, federation.clients_per_round, workers, folder, progress)


def site_tier(
    budget: str, recipe: Recipe, shape: ExpertShape, blocks: tuple[int, ...], num_examples: int, mean_tokens: float
) -> str:
    """Return the name of the recipe's tier that a site's `--budget` stands for (see `fitting_tier`).

    Args:
        shape: of one expert. blocks: that are adapted.
        num_examples: of the site. mean_tokens: of one of them.

    Raises:
        InputError: as `fitting_tier`.
    """
    tiers = [
        Budget(tier.name, tier.top_k, tier.experts, own_blocks(tier.name, tier.blocks, blocks))
        for tier in recipe.budgets
        if tier.experts is not None and tier.top_k is not None
    ]
    return fitting_tier(
        budget,
        [tier.name for tier in recipe.budgets],
        tiers,
        shape,
        recipe.federation.upload,
        tokens_per_round(training_of(recipe), num_examples, mean_tokens),
        recipe.federation.deadline_seconds,
    )


def workload(experiment: Experiment, initial: ServerState) -> Workload:
    """Return the values that the costs of an experiment depend on; `initial` is the state before the first round."""
    recipe = experiment.recipe
    return Workload(
        method=experiment.method,
        state=initial,
        tiers=experiment.tiers,
        budgets=experiment.budgets,
        largest=experiment.largest,
        shape=experiment.shape,
        num_experts=recipe.adapter.num_experts,
        has_experts=bool(adapter.blocks(experiment.model)),
        training=experiment.training,
        sizes=experiment.partition.sizes,
        num_examples=len(experiment.train),
        rounds=recipe.federation.rounds,
        clients_per_round=recipe.federation.clients_per_round,
        seed=recipe.seed,
        answers=make_answers(recipe),
    )


def timed_client(experiment: Experiment, work: Workload) -> TimedClient:
    """Return the real client of an experiment, ready to be timed with any budget; it keeps no state."""
    runtime = build_client(client_spec(experiment, NoStates()), experiment.model)

    def prepare(budget: Budget, rows: Mapping[int, np.ndarray]) -> PreparedClients:
        recipe, model, shape, plugins = experiment.recipe, experiment.model, experiment.shape, experiment.plugins
        [fitted] = fit_budgets(recipe, model, [budget], shape, plugins)
        # A client of each tier is added: methods with one rank for all clients take that of the smallest tier.
        budgets = dict(enumerate(experiment.tiers, start=len(rows))) | dict.fromkeys(rows, fitted)
        method = build_method(recipe, model, shape, budgets, plugins)
        return PreparedClients(method, budgets, replace(runtime, method=method, partition=rows))

    return TimedClient(work, prepare, clients_per_batch(experiment))


def _statistics_cost(experiment: Experiment, work: Workload) -> StatisticsCost | None:
    """Return the cost of a closed-form head; None where the recipe has another head."""
    recipe = experiment.recipe
    head = recipe.closed_form
    if not head:
        return None
    times = sum(head.solved_after(done, work.rounds) for done in range(work.rounds + 1))
    every = head.every if head.update == "recomputed" else None
    return statistics_cost(work, times, every, numbers_sent=recipe.privacy is None)


def _validation_cost(experiment: Experiment, work: Workload) -> StatisticsCost | None:
    """Return the cost of validation; None where the recipe sets no rows aside."""
    recipe = experiment.recipe
    if recipe.data.validation is None:
        return None
    every = recipe.validated_every
    times = 1 + work.rounds // every + (work.rounds % every > 0)
    return validation_cost(work, len(experiment.task.limits(len(experiment.label_names), 1, 1)[0]), times, every)


def _prefix_cost(experiment: Experiment, recipe: Recipe) -> tuple[int, str | None]:
    """Return the bytes of the cached states of training and test examples,
    and why the states of some are not cached.
    """
    if recipe.engine.prefix_cache == "off":
        return 0, "engine.prefix_cache is off"
    model, limit = experiment.model, recipe.engine.prefix_cache_mib * MIB
    block = first_adapted_block(model)
    costs = [prefix_cost(model, block, examples, limit) for examples in (experiment.train, experiment.test)]
    refused = [reason for _, reason in costs if reason is not None]
    return sum(size for size, reason in costs if reason is None), refused[0] if refused else None
