"""The round loop: plan a round, clients train, aggregate, evaluate, store, report."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fftmoe.engines.base import Engine, Fault
from fftmoe.errors import RunError
from fftmoe.experiment.compose import Experiment, holdout
from fftmoe.experiment.journal import Journal
from fftmoe.experiment.ledger import Ledger, expectations
from fftmoe.experiment.measure import measure
from fftmoe.records import RoundPlan, ServerState
from fftmoe.server.average import averaged, served
from fftmoe.server.rounds import apply_round, choose_cohort, plan_round, quorum_of, substitute
from fftmoe.server.solve import plan_sums, solve_head

PATIENCE = 3  # void rounds in a row


def federate(
    experiment: Experiment, state: ServerState, engine: Engine, journal: Journal, at_once: int
) -> tuple[ServerState, dict[str, Any]]:
    """All rounds after `state`; the final state and what was measured on it.

    A round's row is written before its state is: a run that goes on from the state redoes a round whose row it drops,
    and loses none.

    Raises:
        RunError: a client failed where none may, or too few answered several times in a row.
    """
    method, recipe, states = experiment.method, experiment.recipe, journal.folder.client_states
    num_rounds, quorum = recipe.federation.rounds, _quorum(experiment, engine)
    sample = holdout(experiment.test, recipe.evaluation.max_examples, recipe.seed)
    metrics: dict[str, Any] | None = None
    if state.round == 0:
        state = _solve_if_due(experiment, state, engine, journal.ledger)
        journal.write(state, {}, measure(experiment, state, sample, states))
    with journal.progress.rounds(num_rounds, recipe.federation.clients_per_round, state.round):
        for t in range(state.round + 1, num_rounds + 1):
            plan = _plan(experiment, state, t, engine)
            updates = journal.ledger.exchange(
                engine,
                plan,
                partial(method.download, state),
                expectations(experiment),
                journal.progress.client_done,
                at_once,
                enough=recipe.federation.clients_per_round,
            )
            state, diagnostics = apply_round(method, state, plan, updates, quorum)
            state = averaged(state, recipe.federation.average_decay)
            if t == num_rounds:
                state = served(state)
            state = _solve_if_due(experiment, state, engine, journal.ledger)
            metrics = measure(experiment, served(state), sample, states)
            journal.write(state, diagnostics, metrics)
            journal.folder.save_state(state)
            _check_alive(journal, quorum)
    # Of a run that was interrupted after its last round nothing is left but to measure it again.
    return state, measure(experiment, state, sample, states) if metrics is None else metrics


def _plan(experiment: Experiment, state: ServerState, t: int, engine: Engine) -> RoundPlan:
    """The round of the drawn cohort, with others in the place of who is absent, and some in reserve if clients drop."""
    recipe, num_clients = experiment.recipe, experiment.num_clients
    size = recipe.federation.clients_per_round
    if not engine.reliable:
        size = min(num_clients, size + recipe.federation.spare_clients)
    cohort = substitute(choose_cohort(num_clients, size, recipe.seed, t), engine.absent(), num_clients, recipe.seed, t)
    return plan_round(experiment.method, state, t, cohort, experiment.budgets, experiment.training, recipe.seed)


def _quorum(experiment: Experiment, engine: Engine) -> int:
    federation = experiment.recipe.federation
    return 0 if engine.reliable else quorum_of(federation.clients_per_round, federation.quorum)


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
    if not recipe.head.solved_after(state.round, recipe.federation.rounds):
        return state
    method, everyone = experiment.method, _reachable(experiment, engine)
    plan = plan_sums(method, state, everyone, experiment.largest, experiment.training, recipe.seed)
    download, expect = partial(method.download, state), expectations(experiment)
    updates = list(ledger.exchange(engine, plan, download, expect, lambda _: None))
    if updates:
        return solve_head(state, updates)
    if state.round:
        return state  # with the head of before
    raise RunError(f"no client sent sums that a first head could be solved from ({_named(ledger.new_faults)})")


def _reachable(experiment: Experiment, engine: Engine) -> Sequence[int]:
    absent = engine.absent()
    everyone = range(experiment.num_clients)
    return [client for client in everyone if client not in absent] if absent else everyone
