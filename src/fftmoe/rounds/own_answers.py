"""Measures the answers of clients that correct a model's outputs for their own labels, and may add a private part to
its head (`own_choice.py`).

The outputs are those that are computed to measure the model for everyone. Only the choice takes passes of its own, over
the clients' own rows.

Shape letters: N test rows, B of them in a batch, K clients, C labels, L strata, S statistics of the task.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fftmoe.data import Examples, Ragged
from fftmoe.evaluate import HEAD_INPUTS, Observe, Tally
from fftmoe.head import LabelAnswers, LabelTotals, prior_shift, smoothed_shares
from fftmoe.records import ServerState
from fftmoe.rounds.own_choice import Choice, Items, ItemsSeen, added_by, best_choice
from fftmoe.tasks import Task


class OwnRows(NamedTuple):
    """Holds the rows of a client: those that it trains on, and those that it has set aside, int64 [N] each."""

    trained: np.ndarray
    set_aside: np.ndarray


class ShowOutputs(Protocol):
    """Shows a model's outputs for examples to an observer, with what the head read of them where that is asked for."""

    def __call__(self, rows: Examples, observe: Observe, head_inputs: bool, /) -> object:
        """Show them in batches."""
        ...


@dataclass(frozen=True)
class OwnLabels:
    """Says how often the labels occur among the rows of each client.

    Attributes:
        answers: the form of the labels. totals: of the rows that a client trains on.
        train: the examples of all clients. rows: which of them a client chooses by.
        solved: whether the head is a closed-form one, whose outputs are logits once they are divided by its
            temperature, and which can have a private part.
        divided: whether the outputs have been divided already.
        count: counts everyone's shares of the labels, where a state does not have them from a closed-form head.
    """

    answers: LabelAnswers
    totals: Callable[[int], LabelTotals]
    train: Examples
    rows: Callable[[int], OwnRows]
    solved: bool
    divided: bool = False
    count: Callable[[], tuple[float, ...]] | None = None

    def everyones(self, state: ServerState) -> tuple[float, ...] | None:
        """Return everyone's shares of the labels; None where nobody knows them."""
        if state.label_shares is not None or self.count is None:
            return state.label_shares
        return self.count()

    def chosen(self, state: ServerState, clients: Sequence[int], show: ShowOutputs) -> "Corrections | None":
        """Return what these clients do with the outputs of the state's model, each as fits its own rows best; None
        where labels or the temperature are not known.
        """
        whole = self.everyones(state)
        if whole is None or (self.solved and state.temperature is None):
            return None
        whole_C = torch.tensor(whole, dtype=torch.float64)
        temperature = state.temperature if self.solved and state.temperature else 1.0
        totals = [self.totals(client) for client in clients]
        choices = [
            self._choice(self.rows(client), own, whole_C, temperature, show)
            for client, own in zip(clients, totals, strict=True)
        ]
        shares = [smoothed_shares(own, whole_C, self.answers) for own in totals]
        shifts_KC = torch.stack([prior_shift(own_C, whole_C, self.answers) for own_C in shares])
        return Corrections(shifts_KC.float(), 1.0 if self.divided else temperature, choices)

    def _choice(
        self, rows: OwnRows, totals: LabelTotals, whole_C: Tensor, temperature: float, show: ShowOutputs
    ) -> Choice:
        def items(numbers: np.ndarray) -> Items:
            seen = ItemsSeen(self.answers, 1.0 if self.divided else temperature)
            show(self.train.select(torch.from_numpy(numbers)), seen, self.solved)
            return seen.items()

        judging = items(rows.set_aside) if len(rows.set_aside) else None
        fitted = items(rows.trained) if self.solved or judging is None else None
        return best_choice(fitted, judging, totals, whole_C, temperature, self.answers)


@dataclass(frozen=True)
class Corrections:
    """Holds what K clients do with the outputs of one model.

    Attributes:
        shifts: what each adds to logits at most, float32 [K, C].
        temperature: by which the outputs are divided first.
        choices: the part of its shift that each adds, and its private part.
    """

    shifts: Tensor
    temperature: float
    choices: Sequence[Choice]

    @property
    def need_head_inputs(self) -> bool:
        """Return whether a client has a private part, which reads what the head reads."""
        return any(choice.part is not None for choice in self.choices)

    def of_client(self, outputs: Tensor, place: int, head_inputs: Tensor | None = None) -> Tensor:
        """Return the logits of one client.

        Args:
            head_inputs: where the client has a private part.
        """
        choice = self.choices[place]
        logits = outputs / self.temperature + (choice.strength * self.shifts[place]).to(outputs.device)
        if choice.part is None:
            return logits
        assert head_inputs is not None, "whoever shows outputs knows who needs what the head reads"
        return logits + added_by(choice.part.to(logits), head_inputs)

    def of_rows(self, outputs: Tensor, places_B: Tensor, head_inputs: Tensor | None = None) -> Tensor:
        """Return the logits of each example as the client at its place has them."""
        logits = torch.empty_like(outputs)
        for place in places_B.unique().tolist():
            own_B = places_B == place
            read = None if head_inputs is None else head_inputs[own_B]
            logits[own_B] = self.of_client(outputs[own_B], place, read)
        return logits


class OnOwnRows:
    """Measures each client's answers on its own test rows; `fftmoe.evaluate.tally` shows it the outputs.

    Args:
        clients: K of them. own: by client, its own rows of the test set, of which there are `num_rows`.
    """

    def __init__(
        self, task: Task, corrections: Corrections, clients: Sequence[int], own: Ragged, num_rows: int
    ) -> None:
        self._task, self.corrections, self._sums = task, corrections, 0.0
        self._rows_K = np.array([len(own[client]) for client in clients])
        self._places_N = np.full(num_rows, -1)
        for place, client in enumerate(clients):
            self._places_N[own[client]] = place

    def __call__(self, outputs: Tensor, batch: Mapping[str, Tensor], rows: Tensor) -> None:
        """Add a batch."""
        places_B = self._places_N[rows.numpy()]
        # Rows of nobody get the logits of some client, and do not count.
        logits = self.corrections.of_rows(outputs, torch.from_numpy(places_B), batch.get(HEAD_INPUTS))
        found_BS = self._task.statistics(logits, batch).cpu().numpy()
        sums_KS = np.zeros((len(self._rows_K), found_BS.shape[1]))
        np.add.at(sums_KS, places_B[places_B >= 0], found_BS[places_B >= 0])
        self._sums = self._sums + sums_KS

    def values(self) -> np.ndarray:
        """Return the run's metric for each client, float64 [K]; NaN for one without rows."""
        values_K = self._task.metrics(np.asarray(self._sums))[self._task.metric]
        return np.where(self._rows_K > 0, values_K, np.nan)


class OnOwnMixes:
    """Measures each client's answers on all test rows, reweighted to its own mix of strata.

    Args:
        strata: of the test rows, int64 [N]. mixes: the share of each stratum among each client's rows, float64 [K, L].
    """

    def __init__(self, task: Task, corrections: Corrections, strata: Tensor, mixes: np.ndarray) -> None:
        self._task, self.corrections, self._strata_N, self._mixes_KL = task, corrections, strata, mixes
        self._sums: list[np.ndarray | float] = [0.0] * len(mixes)

    def __call__(self, outputs: Tensor, batch: Mapping[str, Tensor], rows: Tensor) -> None:
        """Add a batch."""
        strata_B, num_strata = self._strata_N[rows].numpy(), self._mixes_KL.shape[1]
        for place in range(len(self._sums)):
            logits = self.corrections.of_client(outputs, place, batch.get(HEAD_INPUTS))
            found_BS = self._task.statistics(logits, batch).cpu().numpy()
            sums_LS = np.zeros((num_strata, found_BS.shape[1]))
            np.add.at(sums_LS, strata_B, found_BS)
            self._sums[place] = self._sums[place] + sums_LS

    def values(self) -> np.ndarray:
        """Return the run's metric for each client, float64 [K]; NaN for one that has only strata without test rows."""
        counts_L = torch.bincount(self._strata_N, minlength=self._mixes_KL.shape[1]).numpy()
        tallies = [Tally(self._task, np.asarray(sums), counts_L) for sums in self._sums]
        return np.array([found.on_mixes(mix[None])[0] for found, mix in zip(tallies, self._mixes_KL, strict=True)])
