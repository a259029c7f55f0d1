"""Defines an experiment: the parts that a recipe, its data and its backbone give, before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fftmoe.config import Recipe
from fftmoe.data import Examples, Partition, Ragged, RowsDigest, near_equal_notes
from fftmoe.methods.base import Method
from fftmoe.methods.budget import Budgets, ExpertShape, largest_tier
from fftmoe.records import Budget, ServerState, Training
from fftmoe.records.client_names import client_name
from fftmoe.rounds.own_answers import OwnLabels
from fftmoe.rounds.patience import idle_notes
from fftmoe.setup.held_out import HeldOut
from fftmoe.setup.own_labels import own_labels
from fftmoe.setup.plugins import Plugins
from fftmoe.setup.warm_start import WarmStart, first_state
from fftmoe.tasks import Task


@dataclass(frozen=True)
class Experiment:
    """Holds the parts of a run. Only `setup/` sees it whole; every other package is given the values that it needs.

    Attributes:
        model: the backbone with the adapter attached, in the memory of this process.
        label_names: the classes; empty for a language model. strata: the names of what `Examples.labels` numbers.
        budgets: client_id -> its tier.
        partition: the rows that clients train on. held_out: those that they have set aside for validation.
        mean_tokens: of a training example. shape: of one expert.
        sizes: integers [C], the number of each client's examples.
        left_out: see `Loaded`.
        own_test: by client, its own test rows; None where the test rows do not say whose they are.
        data_notes: what a person should know about the data.
        rows, reader: what was read, and with which tokenizer; see `Loaded`.
        remote: clients are elsewhere and hold their own data; `train` is empty and `partition` only names them.
        plugins: parts that the recipe may name, in addition to installed ones.
        start: the earlier adapter that the run starts from; None for a new one.
    """

    recipe: Recipe
    task: Task
    model: Any
    train: Examples
    test: Examples
    label_names: tuple[str, ...]
    strata: tuple[str, ...]
    partition: Partition
    held_out: HeldOut
    budgets: Budgets
    training: Training
    mean_tokens: float
    shape: ExpertShape
    method: Method
    sizes: np.ndarray
    left_out: np.ndarray
    rows: Mapping[str, RowsDigest]
    reader: str
    data_notes: tuple[str, ...]
    own_test: Ragged | None = None
    remote: bool = False
    plugins: Plugins = field(default_factory=Plugins)
    start: WarmStart | None = None

    def first_state(self) -> ServerState:
        """Return the state before the first round.

        Raises:
            InputError: the earlier adapter does not fit.
        """
        return first_state(self.method.init(self.model), self.start, self.label_names)

    @property
    def own_labels(self) -> OwnLabels | None:
        """Return what is known of the labels of each client; None where nobody may know, and where each client trains a
        model by itself, which has learned from the client's own labels only.
        """
        can = self.method.capabilities
        if can.personal and not can.shares_statistics:
            return None
        held_out = self.held_out.rows
        return own_labels(self.recipe, len(self.label_names), self.train, self.partition, held_out, self.remote)

    @property
    def tiers(self) -> tuple[Budget, ...]:
        """Return the distinct budgets, in the recipe's order."""
        return self.budgets.tiers

    @property
    def fewest_examples(self) -> int:
        """Return the number of examples of the client that has the fewest."""
        return int(self.sizes.min())

    @property
    def num_clients(self) -> int:
        """Return the size of the population."""
        return len(self.partition)

    @property
    def client_names(self) -> tuple[str, ...] | None:
        """Return the names of the clients, where the data gives them any; a private run writes none of them down."""
        return self.partition.groups if self.recipe.privacy is None else None

    @property
    def named_clients(self) -> list[str]:
        """Return a name for every client: that of the data, or its number."""
        return [client_name(client, self.client_names) for client in range(self.num_clients)]

    @property
    def largest(self) -> Budget:
        """Return the tier whose view of the global model is reported as the run's metric."""
        return largest_tier(self.tiers)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a person should know about the data and the recipe: rows that are cut or shared,
        names nearly equal, a key without effect.
        """
        federation = self.recipe.federation
        return (
            *self.data_notes,
            *idle_notes(federation.patience, self.recipe.validated_every, federation.rounds),
            *near_equal_notes("labels" if self.label_names else "groups of examples", self.label_names or self.strata),
            *near_equal_notes("clients", self.client_names or ()),
            *near_equal_notes("tiers", [tier.name for tier in self.tiers]),
        )
