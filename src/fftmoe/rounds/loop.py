"""The round loop: plan a round, clients train, aggregate, evaluate, store, report."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from fftmoe.engines.base import Engine, Fault
from fftmoe.errors import RunError
from fftmoe.evaluate import holdout
from fftmoe.head import bounded_total
from fftmoe.records import RoundPlan, ServerState
from fftmoe.report.load import load_row
from fftmoe.report.usage import Usage
from fftmoe.rounds.exchange import Ledger, expectations
from fftmoe.rounds.journal import Journal
from fftmoe.rounds.measure import final_metrics, measure
from fftmoe.rounds.private import NoisySums, PrivateRounds
from fftmoe.server.apply import Counted, apply_round
from fftmoe.server.average import averaged, served
from fftmoe.server.cohort import choose_cohort, quorum_of, substitute
from fftmoe.server.plan import plan_round
from fftmoe.server.solve import plan_sums, solve_head
from fftmoe.setup.compose import Experiment

PATIENCE = 3  # void rounds in a row


def federate(
    experiment: Experiment,
    state: ServerState,
    engine: Engine,
    journal: Journal,
    at_once: int,
    privacy: PrivateRounds | None = None,
) -> tuple[ServerState, dict[str, Any]]:
    """All rounds after `state`; the final state and what was measured on it.

    A round's row is written before its state is: a run that goes on from the state redoes a round whose row it drops,
    and loses none.

    Raises:
        RunError: a client failed where none may, or too few answered several times in a row.
    """
    method, recipe, states = experiment.method, experiment.recipe, journal.folder.client_states
    num_rounds, (quorum, enough) = recipe.federation.rounds, _wanted(experiment, engine, privacy)
    sample = holdout(experiment.test, recipe.evaluation.max_examples, recipe.seed)
    metrics: dict[str, Any] | None = None
    if state.round == 0:
        state = _solve_if_due(experiment, state, engine, journal.ledger)
        journal.lap("head")
        untrained = measure(experiment, state, sample, states)
        journal.lap("evaluation")
        journal.write(state, {}, untrained)
    with journal.progress.rounds(num_rounds, recipe.federation.clients_per_round, state.round):
        for t in range(state.round + 1, num_rounds + 1):
            if privacy is not None and not privacy.may_go_on():
                journal.progress.say(f"round {t} would cost more than the stated epsilon: the run ends before it")
                state, metrics = served(state), None
                break
            plan = _plan(experiment, state, t, engine, privacy)
            if privacy is not None:
                privacy.ask(client.client_id for client in plan.clients)
            usage = Usage(plan)
            updates = journal.ledger.exchange(
                engine,
                plan,
                partial(method.download, state),
                expectations(experiment),
                journal.progress.client_done,
                at_once,
                enough,
            )
            state, diagnostics = apply_round(privacy or method, state, plan, usage.watch(updates), quorum)
            state = averaged(state, recipe.federation.ema_decay)
            journal.lap("clients")
            if t == num_rounds:
                state = served(state)
            state = _solve_if_due(experiment, state, engine, journal.ledger)
            journal.lap("head")
            metrics = measure(experiment, served(state), sample, states)
            journal.lap("evaluation")
            told = privacy.told() if privacy else {**load_row(state.load), **usage.row()}
            journal.write(state, {**diagnostics, **told}, metrics)
            journal.folder.save_state(state)
            journal.lap("checkpoint")
            _check_alive(journal, quorum)
    # Of a run that ends early, or was interrupted after its last round, nothing is left but to measure it.
    return state, final_metrics(experiment, state, states) if metrics is None else metrics


def _plan(
    experiment: Experiment, state: ServerState, t: int, engine: Engine, privacy: PrivateRounds | None
) -> RoundPlan:
    """The round of the drawn cohort, with others in the place of who is absent, and some in reserve if clients drop."""
    recipe, num_clients = experiment.recipe, experiment.num_clients
    if isinstance(privacy, NoisySums):
        cohort = privacy.draw_cohort()  # nobody takes the place of who is absent: that would tell of who is not
    else:
        size = recipe.federation.clients_per_round
        if not engine.reliable:
            size = min(num_clients, size + recipe.federation.over_selection)
        drawn = choose_cohort(num_clients, size, recipe.seed, t)
        cohort = substitute(drawn, engine.absent(), num_clients, recipe.seed, t)
    return plan_round(experiment.method, state, t, cohort, experiment.budgets, experiment.training, recipe.seed)


def _wanted(experiment: Experiment, engine: Engine, privacy: PrivateRounds | None) -> tuple[int, int | None]:
    """The updates without which a round is void, and those after which no more are waited for (None: all)."""
    federation = experiment.recipe.federation
    if isinstance(privacy, NoisySums):
        return 0, None  # noise hides who came only where their number decides nothing
    quorum = 0 if engine.reliable else quorum_of(federation.clients_per_round, federation.quorum)
    return quorum, federation.clients_per_round


def _check_alive(journal: Journal, quorum: int) -> None:
    last = journal.rows[-PATIENCE:]
    if len(last) == PATIENCE and all("void" in row for row in last):
        faults = [Fault(**fault) for row in last for fault in row.get("faults", ())]
        few, remedy = ("no update", "mend that")
        if quorum > 1:
            few, remedy = f"fewer than {quorum} updates each", "mend that, or lower federation.quorum"
        raise RunError(
            f"the last {PATIENCE} rounds had {few} and changed nothing ({_named(faults)}); "
            f"{remedy}, and go on: fftmoe resume {journal.folder.path}"
        )


def _named(faults: Sequence[Fault]) -> str:
    """The last of them, for a message."""
    return "; ".join(f"client {f.client_id} {f.kind}: {f.reason}" for f in faults[-3:]) or "no client at all"


def _solve_if_due(experiment: Experiment, state: ServerState, engine: Engine, ledger: Ledger) -> ServerState:
    """A closed-form head solved before the first round, then as the recipe's `head.update` says.

    Raises:
        RunError: there is none yet, and nobody's sums to solve it from.
    """
    recipe = experiment.recipe
    if recipe.head is None or not recipe.head.solved_after(state.round, recipe.federation.rounds):
        return state
    method, everyone = experiment.method, _reachable(experiment, engine)
    plan = plan_sums(state, everyone, experiment.largest, experiment.training, recipe.seed)
    download, expect = partial(method.download, state), expectations(experiment)
    updates = Counted(ledger.exchange(engine, plan, download, expect, lambda _: None))
    fewest = 1 if recipe.privacy is None else recipe.privacy.min_contributors
    first = next(updates, None)
    if first is not None:
        # Plain, it holds the sums of one client at a time; bounded, those of all.
        solve = solve_head if recipe.robustness is None else partial(solve_head, total=bounded_total)
        solved = solve(state, itertools.chain([first], updates))
        if updates.number >= fewest:
            return solved
    if state.round:
        return state  # with the head of before
    few = "no client sent" if fewest == 1 else f"fewer than {fewest} clients sent"
    raise RunError(f"{few} sums that a first head could be solved from ({_named(ledger.new_faults)})")


def _reachable(experiment: Experiment, engine: Engine) -> Sequence[int]:
    absent = engine.absent()
    everyone = range(experiment.num_clients)
    return [client for client in everyone if client not in absent] if absent else everyone
