"""Runs a client process: one resident backbone serves any number of clients, message in, message out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from fftmoe.backbones import fingerprint
from fftmoe.client.compress import compress, split_state
from fftmoe.client.conceal import concealed
from fftmoe.client.own_part import OwnPart, train_own_part
from fftmoe.client.stack import update_stack
from fftmoe.client.sums import groups_of, head_sums, in_frequent_groups
from fftmoe.client.update import update_client
from fftmoe.data import Examples
from fftmoe.head import ONE_LABEL, Answers, HeadSums, SquaredDistance, solved_head
from fftmoe.methods.base import Method
from fftmoe.methods.shared_head import load_head
from fftmoe.records import ClientPlan, ClientUpdate, Tensors, made_on, names, pack_update, unpack_plan
from fftmoe.rng import derive
from fftmoe.tasks import Loss, LossByExample

Measure = Callable[[Any], Mapping[str, float]]
"""The metrics of a model as it is now."""


class ClientStates(Protocol):
    """Keeps what never leaves the clients (personal router rows, affinities)."""

    def load(self, client_id: int, before: int) -> Tensors:
        """Return what the client kept in its last round before this one; empty for a client that has kept nothing."""
        ...

    def save(self, client_id: int, round: int, state: Tensors) -> None:
        """Keep the state of this round, atomically."""
        ...


@dataclass(frozen=True)
class OwnParts:
    """Says how clients train parts of the model that they keep for themselves.

    Attributes:
        states: keeps the parts. set_aside: the rows by which each client chooses.
        measure: `(model, client_id)` to metrics of the model as it is now on the client's own test rows.
    """

    states: ClientStates
    set_aside: Sequence[np.ndarray]
    measure: Callable[[Any, int], Mapping[str, float]]


@dataclass(frozen=True)
class ClientRuntime:
    """Carries out the task of each message for the client that the message names.

    Attributes:
        model: the backbone with the adapter attached, shared by all clients.
        method: the federated method.
        loss: what training minimises.
        num_outputs: of a closed-form head.
        examples: the data of all clients.
        partition: the rows of `examples` of each client.
        states: what each client keeps from round to round.
        validation: `(model, client_id, fewest_of_label=...)` to the statistics of the client's validation rows on the
            model as it is now.
        measure: `(model, client_id, own_labels)` to metrics of the model as it is now, for a client that holds these
            labels.
        fewest_of_label: rows of a label below which the client sends no sum of these rows.
        micro_batch_size: examples that a client computes at a time; None for all of a step.
        answers: what a closed-form head is fitted to.
        own: where clients train parts of the model for themselves; None where none does.
    """

    model: Any
    method: Method
    loss: Loss
    num_outputs: int
    examples: Examples
    partition: Sequence[np.ndarray] | Mapping[int, np.ndarray]
    states: ClientStates
    measure: Callable[..., Mapping[str, float]]
    validation: Callable[..., Tensors]
    fewest_of_label: float = 1
    micro_batch_size: int | None = None
    answers: Answers = ONE_LABEL
    own: OwnParts | None = None

    def __call__(self, messages: Sequence[bytes]) -> list[bytes]:
        """Return one update for each plan; the clients of several messages train in one batch."""
        backbone = fingerprint(self.model)
        received = [unpack_plan(message) for message in messages]
        if len(received) > 1:
            updates = self.train_together(*zip(*received, strict=True))
        else:
            updates = [CLIENT_TASKS[plan.task](self, plan, tensors) for plan, tensors in received]
        return [
            pack_update(replace(update, made_on=made_on(backbone, plan.base)))
            for update, (plan, _) in zip(updates, received, strict=True)
        ]

    def train(self, plan: ClientPlan, tensors: Tensors) -> ClientUpdate:
        """Carry out the task "train": a client's part of a round."""
        kept, feedback = split_state(self.states.load(plan.client_id, before=plan.round))
        return self._finish(plan, feedback, *self._update(plan, tensors, kept, None))

    def train_together(self, plans: Sequence[ClientPlan], tensors: Sequence[Tensors]) -> list[ClientUpdate]:
        """Carry out `train` for several clients, in one batch on one backbone."""
        assert self.method.capabilities.stacks
        assert isinstance(self.loss, LossByExample)
        states = [split_state(self.states.load(plan.client_id, before=plan.round)) for plan in plans]
        kept, rows = [method for method, _ in states], [self.partition[plan.client_id] for plan in plans]
        results = update_stack(self.model, self.method, self.loss, plans, tensors, kept, self.examples, rows)
        return [
            self._finish(plan, feedback, *result)
            for plan, (_, feedback), result in zip(plans, states, results, strict=True)
        ]

    def local(self, plan: ClientPlan, tensors: Tensors) -> ClientUpdate:
        """Carry out the task "alone": local training without the federation. No state is kept;
        the client measures its model.
        """
        rows = self.partition[plan.client_id]
        own_labels = self.examples.labels[torch.from_numpy(rows)]
        measure = partial(self.measure, client_id=plan.client_id, own_labels=own_labels)
        if plan.training.train_head or not isinstance(self.loss, SquaredDistance):
            return self._update(plan, tensors, {}, measure)[0]
        return self._local_closed_form(plan, tensors, measure)

    def sums(self, plan: ClientPlan, tensors: Tensors) -> ClientUpdate:
        """Carry out the task "sums": the client's feature statistics, from which the server computes a closed-form
        head.

        They are taken on the global model, or on the client's own model where the method has no global one.
        """
        self._install(plan, tensors)
        rows = self._in_sums(self.partition[plan.client_id])
        sums = self._head_sums(rows, reveal_number=not plan.concealed)
        return ClientUpdate(plan.round, plan.client_id, 1 if plan.concealed else len(rows), sums)

    def validate(self, plan: ClientPlan, tensors: Tensors) -> ClientUpdate:
        """Carry out the task "validate": the task's statistics, summed over the client's validation rows,
        on the same model.
        """
        self._install(plan, tensors)
        sums = self.validation(self.model, plan.client_id, fewest_of_label=self.fewest_of_label)
        return ClientUpdate(plan.round, plan.client_id, 1, sums)

    def train_own(self, plan: ClientPlan, tensors: Tensors) -> ClientUpdate:
        """Carry out the task "own": training of a part that the client keeps, on randomness of its own. The answer has
        metrics only: `margin`, 0 where the client does without, else also those on its own test rows.
        """
        client_id, own = plan.client_id, self.own
        assert own is not None, "asked only where clients train for themselves"
        part = OwnPart({}, 0.0, {})
        if len(own.set_aside[client_id]):
            kept, _ = split_state(self.states.load(client_id, before=plan.round + 1))
            part = train_own_part(
                self.model,
                self.method,
                self.loss,
                replace(plan, seed=derive(plan.seed, "own")),
                tensors,
                kept,
                self.examples,
                self.partition[client_id],
                own.set_aside[client_id],
                lambda model: own.measure(model, client_id),
                self.micro_batch_size,
            )
        # Also without a part, so that none of an earlier model is taken for it.
        own.states.save(client_id, plan.round, {**part.tensors, names.OWN_MARGIN: torch.tensor([part.margin])})
        metrics = {"margin": part.margin, **part.metrics}
        return ClientUpdate(plan.round, client_id, 1, {}, metrics=metrics)

    def _install(self, plan: ClientPlan, tensors: Tensors) -> None:
        """Put the global model into the model, or the client's own one where the method has no global one."""
        if self.method.capabilities.personal:
            kept, _ = split_state(self.states.load(plan.client_id, before=plan.round + 1))
            self.method.personalize(self.model, tensors, plan, kept)
        else:
            self.method.install(self.model, tensors, plan.budget)

    def _local_closed_form(self, plan: ClientPlan, tensors: Tensors, measure: Measure) -> ClientUpdate:
        """Train locally with a closed-form head, which the client computes from its own data before and after."""
        rows = self.partition[plan.client_id]

        def solve_and_measure(model: Any) -> Mapping[str, float]:
            load_head(model, self._own_head(rows))
            return measure(model)

        self.method.personalize(self.model, tensors, plan, {})
        return self._update(plan, {**tensors, **self._own_head(rows)}, {}, solve_and_measure)[0]

    def _own_head(self, rows: np.ndarray) -> Tensors:
        """Return the closed-form head of these examples."""
        return solved_head(HeadSums.from_tensors(self._head_sums(rows)))

    def _head_sums(self, rows: np.ndarray, reveal_number: bool = True) -> Tensors:
        return head_sums(self.model, self.examples, rows, self.num_outputs, reveal_number, self.answers)

    def _in_sums(self, rows: np.ndarray) -> np.ndarray:
        """Return those of a client's rows that may be in feature statistics."""
        if self.fewest_of_label <= 1:
            return rows
        groups_NG = groups_of(self.examples, rows, self.num_outputs, self.answers)
        return rows[in_frequent_groups(groups_NG, self.fewest_of_label)]

    def _update(
        self, plan: ClientPlan, tensors: Tensors, kept: Tensors, measure: Measure | None
    ) -> tuple[ClientUpdate, Tensors]:
        rows = self.partition[plan.client_id]
        return update_client(
            self.model,
            self.method,
            self.loss,
            plan,
            tensors,
            kept,
            self.examples,
            rows,
            measure,
            self.micro_batch_size,
        )

    def _finish(self, plan: ClientPlan, feedback: Tensors, update: ClientUpdate, state: Tensors) -> ClientUpdate:
        """Save what the client keeps, and make the update as private and as small as the plan asks for."""
        if plan.concealed:
            update = concealed(update, plan)
        update, feedback = compress(update, feedback, plan.training.upload)
        self.states.save(plan.client_id, plan.round, {**state, **feedback})
        return update


CLIENT_TASKS = {
    "train": ClientRuntime.train,
    "alone": ClientRuntime.local,
    "sums": ClientRuntime.sums,
    "validate": ClientRuntime.validate,
    "own": ClientRuntime.train_own,
}
