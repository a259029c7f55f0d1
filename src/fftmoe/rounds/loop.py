"""Runs the federated round: sample, plan, exchange, screen, merge, evaluate, store.

This is the whole loop. What it is given decides the rest: the method what is trained and how updates are aggregated
(`methods/`), the policy who takes part and what is kept of a round (`rounds/policy.py`, `rounds/private.py`), the
engine behind the exchange where clients run (`engines/`).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from fftmoe.engines.base import Quota
from fftmoe.methods.base import Method
from fftmoe.methods.budget import Budgets
from fftmoe.records import Schedule, ServerState, Training
from fftmoe.rounds.closed_form import SolveHead
from fftmoe.rounds.evaluation import Evaluation
from fftmoe.rounds.exchange import Exchange, screen_replies
from fftmoe.rounds.journal import Journal
from fftmoe.rounds.patience import Patience
from fftmoe.rounds.policy import Policy
from fftmoe.server.average import served
from fftmoe.server.plan import plan_round

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Federation:
    """Holds the parts of a federated run.

    Attributes:
        budgets: client_id -> budget, of the whole population.
        training: how each client trains. schedule: how its learning rates change over the rounds.
        policy: who takes part in a round, what is waited for, and how updates are merged.
        exchange: sends plans to clients and yields their replies.
        solve_head: keeps a closed-form head up to date; does nothing for a trained head.
        evaluate: the metrics of a state.
        patience: from the rows so far to why the run ends before the next round; None to go on.
    """

    method: Method
    budgets: Budgets
    training: Training
    schedule: Schedule
    num_rounds: int
    seed: int
    policy: Policy
    exchange: Exchange
    solve_head: SolveHead
    evaluate: Evaluation
    patience: Patience


def start(f: Federation, state: ServerState, journal: Journal) -> ServerState:
    """Solve a closed-form head and evaluate the model before the first round."""
    state = journal.timed("head", f.solve_head, state)
    journal.write(state, {}, journal.timed("evaluation", f.evaluate, state))
    journal.save_start(state)
    return state


def federate(f: Federation, state: ServerState, journal: Journal) -> tuple[ServerState, Metrics | None]:
    """Run all rounds after `state`; return the final state, and its metrics where a last round was evaluated.

    The journal writes a round's row before its state: a run that is resumed from the state repeats a round whose row
    it drops, and loses none.

    Raises:
        RunError: a client failed on an engine where none may, or several rounds in a row had too few updates.
    """
    metrics = None
    for t in range(state.round + 1, f.num_rounds + 1):
        if (reason := f.policy.merging.reason_to_end(t) or f.patience(journal.rows)) is not None:
            journal.say(reason)
            return served(state), None
        cohort = f.policy.sample(t)  # sample
        training = f.schedule.at(f.training, t)
        plan = plan_round(f.method, state, t, cohort, f.budgets, training, f.seed)  # plan
        f.policy.merging.before_sending(plan)
        quota = Quota(f.policy.enough)
        replies = f.exchange(plan, partial(f.method.download, state), quota)  # exchange
        updates = screen_replies(plan, replies, quota, journal.ledger)  # screen
        state, diagnostics = journal.timed("clients", f.policy.merge, state, plan, updates)  # merge
        state = journal.timed("head", f.solve_head, state)
        metrics = journal.timed("evaluation", f.evaluate, served(state))  # evaluate
        journal.write(state, diagnostics, metrics)
        journal.save(state)  # store
        journal.check_alive(f.policy.quorum)
    return served(state), metrics
