"""Measures the answers of clients that correct a model's outputs for their own labels (`fftmoe.head.prior`).

The outputs are those that are computed to measure the model for everyone; the corrections cost no pass of their own.

Shape letters: N test rows, B of them in a batch, K clients, C labels, L strata, S statistics of the task.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fftmoe.data import Examples, Ragged
from fftmoe.evaluate import Observe, Tally
from fftmoe.head import (
    PRIOR_STRENGTHS,
    LabelAnswers,
    LabelTotals,
    best_strength,
    prior_shift,
    smoothed_shares,
    strength_scores,
)
from fftmoe.records import ServerState
from fftmoe.tasks import Task


class ChoosingRows(NamedTuple):
    """Holds rows by which a client chooses how strongly it corrects answers, int64 [N], and whether they are `counted`
    among its labels: then each of them is judged by the shares of the others.
    """

    rows: np.ndarray
    counted: bool


@dataclass(frozen=True)
class OwnLabels:
    """Says how often the labels occur among the rows of each client.

    Attributes:
        answers: the form of the labels. totals: of the rows that a client trains on.
        train: the examples of all clients. choosing: those by which a client chooses how strongly it corrects answers.
        solved: whether the head is a closed-form one, whose outputs are logits once they are divided by its
            temperature.
        count: counts everyone's shares of the labels, where a state does not have them from a closed-form head.
    """

    answers: LabelAnswers
    totals: Callable[[int], LabelTotals]
    train: Examples
    choosing: Callable[[int], ChoosingRows]
    solved: bool
    count: Callable[[], tuple[float, ...]] | None = None

    def everyones(self, state: ServerState) -> tuple[float, ...] | None:
        """Return everyone's shares of the labels; None where nobody knows them."""
        if state.label_shares is not None or self.count is None:
            return state.label_shares
        return self.count()

    def chosen(
        self, state: ServerState, clients: Sequence[int], show: Callable[[Examples, Observe], object]
    ) -> "Corrections | None":
        """Return what these clients do with the outputs of the state's model, each as strongly as fits its own rows
        best; None where labels or the temperature are not known.

        Args:
            show: shows the model's outputs for examples to an observer.
        """
        whole = self.everyones(state)
        if whole is None or (self.solved and state.temperature is None):
            return None
        whole_C = torch.tensor(whole, dtype=torch.float64)
        temperature = state.temperature if self.solved and state.temperature else 1.0
        totals, choosing = [self.totals(client) for client in clients], [self.choosing(client) for client in clients]
        choice = StrengthsOnOwnRows(self.answers, whole_C, temperature, totals, choosing)
        show(self.train.select(torch.from_numpy(np.concatenate([own.rows for own in choosing]))), choice)
        shares = [smoothed_shares(own, whole_C, self.answers) for own in totals]
        shifts_KC = torch.stack([prior_shift(own_C, whole_C, self.answers) for own_C in shares])
        return Corrections(shifts_KC.float(), temperature, choice.strengths())


@dataclass(frozen=True)
class Corrections:
    """Holds what K clients do with the outputs of one model.

    Attributes:
        shifts: what each adds to logits at most, float32 [K, C].
        temperature: by which the outputs are divided first.
        strengths: the part of its shift that each adds, float32 [K].
    """

    shifts: Tensor
    temperature: float
    strengths: Tensor

    def of_client(self, outputs: Tensor, place: int) -> Tensor:
        """Return the logits of one client."""
        shift_C = self.strengths[place] * self.shifts[place]
        return outputs / self.temperature + shift_C.to(outputs.device)

    def of_rows(self, outputs: Tensor, places_B: Tensor) -> Tensor:
        """Return the logits of each example as the client at its place has them."""
        shifts_BC = (self.strengths[:, None] * self.shifts)[places_B].to(outputs.device)
        return outputs / self.temperature + shifts_BC.view(len(places_B), *[1] * (outputs.dim() - 2), -1)


class StrengthsOnOwnRows:
    """Chooses for each client how strongly it corrects answers, by rows whose labels it knows.

    Args:
        whole: everyone's shares, float64 [C]. totals: the labels of each client.
        choosing: the rows of each client; it is shown those of all, one client after another.
    """

    def __init__(
        self,
        answers: LabelAnswers,
        whole: Tensor,
        temperature: float,
        totals: Sequence[LabelTotals],
        choosing: Sequence[ChoosingRows],
    ) -> None:
        self._answers, self._whole_C, self._temperature = answers, whole, temperature
        self._totals, self._counted = totals, [own.counted for own in choosing]
        self._places_N = np.arange(len(choosing)).repeat([len(own.rows) for own in choosing])
        self._scores_KS = torch.zeros(len(choosing), len(PRIOR_STRENGTHS), dtype=torch.float64)

    def __call__(self, outputs: Tensor, batch: Mapping[str, Tensor], rows: Tensor) -> None:
        """Add a batch."""
        places_B, logits = self._places_N[rows.numpy()], (outputs / self._temperature).cpu()
        for place in np.unique(places_B):
            own_B = torch.from_numpy(places_B == place)
            found_NC, labels = self._answers.items(logits[own_B], batch["labels"].cpu()[own_B])
            totals = self._totals[place]
            known = totals.without_each(labels, self._answers) if self._counted[place] else totals
            self._scores_KS[place] += strength_scores(found_NC, labels, known, self._whole_C, self._answers)

    def strengths(self) -> Tensor:
        """Return the strength of each client, float32 [K]."""
        return torch.tensor([best_strength(scores_S) for scores_S in self._scores_KS])


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
        logits = self.corrections.of_rows(outputs, torch.from_numpy(places_B))  # rows of nobody get any client's
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
            found_BS = self._task.statistics(self.corrections.of_client(outputs, place), batch).cpu().numpy()
            sums_LS = np.zeros((num_strata, found_BS.shape[1]))
            np.add.at(sums_LS, strata_B, found_BS)
            self._sums[place] = self._sums[place] + sums_LS

    def values(self) -> np.ndarray:
        """Return the run's metric for each client, float64 [K]; NaN for one that has only strata without test rows."""
        counts_L = torch.bincount(self._strata_N, minlength=self._mixes_KL.shape[1]).numpy()
        tallies = [Tally(self._task, np.asarray(sums), counts_L) for sums in self._sums]
        return np.array([found.on_mixes(mix[None])[0] for found, mix in zip(tallies, self._mixes_KL, strict=True)])
