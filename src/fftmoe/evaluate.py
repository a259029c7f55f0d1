"""Computes metrics of a model on held-out examples, over all examples and for each client.

Shape letters: N examples, L strata (the classes, if the task has classes), K statistics of a task, C clients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.backbones import check_finite_outputs, logits, logits_and_head_inputs, on_device, outputs, token_losses
from fftmoe.data import Examples, Ragged, evaluation_batches
from fftmoe.rng import numpy_generator
from fftmoe.tasks import LabelCounts, Task, worth

EVALUATION_BATCH_SIZE = 64
FEW = 10  # examples; of fewer that differ from all others, samples of the examples say too little
Observe = Callable[[Tensor, Mapping[str, Tensor], Tensor], None]
"""Is shown the outputs of a batch, the batch, and the rows of the examples that it holds."""
HEAD_INPUTS = "head_inputs"
"""The name under which a batch that is shown has what the head's linear layer reads, where that was asked for."""
RESAMPLES = 400  # the ends of a 95 % interval are then about 4 % of its width from those of infinitely many


@dataclass(frozen=True)
class Tally:
    """Holds the results of a model on held-out examples, by stratum.

    Attributes:
        task: which defines the statistics.
        sums: of the examples' statistics, float64 [L, K].
        counts: the number of examples, int64 [L].
        resampled: the statistics of `RESAMPLES` random samples of these examples, float64 [RESAMPLES, K]; None where
            no interval was asked for.
        owned: the statistics of each client's own examples, float64 [C, K], and the number of these, int64 [C]; None
            where nobody says whose they are.
        labels: how often each label was right, given and predicted; None where that was not asked for, and for a task
            without labels.
        each: by example, its own value of the share that the metric is, or of the metric where this is no share, and
            how many items that is of, float64 [N, 2]; the value is NaN where nothing of the example was judged. None
            where no interval was asked for.
    """

    task: Task
    sums: np.ndarray
    counts: np.ndarray
    resampled: np.ndarray | None = None
    owned: tuple[np.ndarray, np.ndarray] | None = None
    labels: LabelCounts | None = None
    each: np.ndarray | None = None

    def metrics(self) -> dict[str, float]:
        """Return the metrics on all examples, by name, the run's metric first."""
        return {name: float(value) for name, value in self.task.metrics(self.sums.sum(0)).items()}

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the run's metric over held-out examples, ends included; NaN if undefined.

        It is that of the bootstrap, unless fewer than `FEW` examples differ from all others: no sample shows what none
        or few of them show, and where all are right, each sample is right. It is then Wilson's for a share
        (`fftmoe.tasks.CountedShare`), and undefined for any other metric if all examples agree.
        """
        assert self.resampled is not None, "an interval is computed where it was asked for"
        assert self.each is not None, "these are kept with the samples"
        values = self.task.metrics(self.resampled)[self.task.metric]
        share, apart = self.task.share(self.sums.sum(0)), _apart(self.each[:, 0])
        if np.isnan(values).all() or (apart == 0 and share is None):
            return np.nan, np.nan
        if apart < FEW and share is not None:
            return share.interval(worth(self.each[:, 1]))
        low, high = np.nanpercentile(values, [2.5, 97.5])
        return float(low), float(high)

    def on_own(self) -> np.ndarray:
        """Return the run's metric on each client's own examples, float64 [C]; NaN for a client without any."""
        assert self.owned is not None, "whose the examples are is known"
        sums_CK, counts_C = self.owned
        return np.where(counts_C > 0, self.task.metrics(sums_CK)[self.task.metric], np.nan)

    def by_stratum(self) -> np.ndarray:
        """Return the run's metric within each stratum, float64 [L]; NaN for a stratum without examples."""
        return self.task.metrics(self.sums)[self.task.metric]

    def on_mixes(self, shares_CL: np.ndarray) -> np.ndarray:
        """Return the run's metric for each client, on held-out data with the client's mix of strata, float64 [C].

        Args:
            shares_CL: the fraction of each stratum among each client's training examples. Strata without held-out
                examples are left out; a client that has only such strata gets NaN.
        """
        held = self.counts > 0
        means_LK = self.sums[held] / self.counts[held, None]
        return self.task.metrics(shares_CL[:, held] @ means_LK)[self.task.metric]


def holdout(examples: Examples, size: int | None, seed: int) -> Examples:
    """Return a fixed random subset of `size` examples; all examples when `size` is None or larger than their number."""
    rows = holdout_rows(len(examples), size, seed)
    return examples if len(rows) == len(examples) else examples.select(rows)


def holdout_rows(num_examples: int, size: int | None, seed: int) -> np.ndarray:
    """Return the rows of that subset, int64 [size] ascending."""
    if size is None or size >= num_examples:
        return np.arange(num_examples)
    return np.sort(numpy_generator(seed, "holdout").choice(num_examples, size, replace=False))


def unobserved(outputs: Tensor, batch: Mapping[str, Tensor], rows: Tensor) -> None:
    """Do nothing: nobody else wants to see the outputs."""


@torch.inference_mode()
def tally(
    model: Any,
    task: Task,
    examples: Examples,
    num_strata: int,
    interval: bool = False,
    own: Ragged | None = None,
    count_labels: bool = False,
    observe: Observe = unobserved,
    head_inputs: bool = False,
) -> Tally:
    """Return the statistics of this model on these examples; L is `num_strata`.

    Args:
        own: the examples of each client; also add up the statistics of each.
        interval: also resample the examples, for `Tally.interval`: each of `RESAMPLES` samples takes every example as
            often as a Poisson variable of mean 1 says, which is the bootstrap of a stream (Hanley and MacGibbon, 2006).
        count_labels: also count how often each label was right, given and predicted.
        observe: is shown all outputs.
        head_inputs: show it with each batch what the head read, too.

    Raises:
        RunError: the model's outputs are not finite.
    """
    sums, resampled, counts = 0.0, 0.0, torch.bincount(examples.labels, minlength=num_strata).numpy()
    owners = None if own is None else _owners(own, len(examples))
    owned_CK: Any = 0.0
    draws = numpy_generator(0, "bootstrap")  # the same for all models, so that their intervals can be compared
    labels: LabelCounts | None = None
    each: list[np.ndarray] = []
    for rows in evaluation_batches(examples, EVALUATION_BATCH_SIZE):
        batch = on_device(model, examples.batch(rows))
        shown = batch
        if head_inputs:
            answered, inputs = logits_and_head_inputs(model, batch, task.by_token)
            shown = {**batch, HEAD_INPUTS: inputs}
        else:
            answered = outputs(model, batch, task.next_token)
        read = answered.float()
        found_BK = task.statistics(read, batch).cpu().numpy()
        check_finite_outputs(torch.from_numpy(np.isfinite(found_BK).all(1)))
        by_stratum = _summed(found_BK, examples.labels[rows].numpy(), num_strata)
        sums = sums + by_stratum
        if own is not None and owners is not None:
            owned_CK = owned_CK + _summed(found_BK, owners[rows.numpy()], len(own) + 1)
        if interval:
            resampled = resampled + draws.poisson(1.0, (RESAMPLES, len(found_BK))) @ found_BK
            each.append(own_shares(task, found_BK))
        if count_labels and (counted := LabelCounts.of(task, read, batch)) is not None:
            labels = counted if labels is None else labels + counted
        observe(read, shown, rows)
    owned = None if own is None else (owned_CK[: len(own)], own.sizes)
    samples, by_example = (np.asarray(resampled), np.concatenate(each)) if interval else (None, None)
    return Tally(task, np.asarray(sums), counts, samples, owned, labels, by_example)


def own_shares(task: Task, statistics_BK: np.ndarray) -> np.ndarray:
    """Return `Tally.each` of examples with these statistics, float64 [B, 2]."""
    share = task.share(statistics_BK)
    if share is None:
        values_B = task.metrics(statistics_BK)[task.metric]
        return np.stack([values_B, np.ones_like(values_B)], 1)
    return np.stack([share.value, share.items], 1)


def _apart(values_N: np.ndarray) -> int:
    """Return how many of these values are another than the commonest one; those that are undefined do not count."""
    _, counts = np.unique(values_N[~np.isnan(values_N)], return_counts=True)
    return int(counts.sum() - counts.max(initial=0))


def _summed(values_BK: np.ndarray, groups_B: np.ndarray, num_groups: int) -> np.ndarray:
    """Return the sum of the rows of each group, float64 [G, K]."""
    sums_GK = np.zeros((num_groups, values_BK.shape[1]))
    np.add.at(sums_GK, groups_B, values_BK)
    return sums_GK


def _owners(own: Ragged, num_examples: int) -> np.ndarray:
    """Return the client of each example, int64 [N]; the number of clients for an example of nobody."""
    owners = np.full(num_examples, len(own), dtype=np.int64)
    owners[own.flat] = np.arange(len(own)).repeat(own.sizes)
    return owners


@torch.inference_mode()
def predict_logits(model: Any, examples: Examples, batch_size: int = EVALUATION_BATCH_SIZE) -> Tensor:
    """Return the logits of every example, float32 [N, C] of C classes, in the order of `examples`;
    some may not be finite.
    """
    parts, order = [], []
    for rows in evaluation_batches(examples, batch_size):
        parts.append(logits(model, on_device(model, examples.batch(rows))).float().cpu())
        order.append(rows)
    flat = torch.cat(parts)
    result = torch.empty_like(flat)
    result[torch.cat(order)] = flat
    return result


@torch.inference_mode()
def log_likelihoods(model: Any, texts: Examples, batch_size: int = EVALUATION_BATCH_SIZE) -> Tensor:
    """Return the sum of the log-probabilities of each text's learned tokens in nats, float64 [N].

    Raises:
        RunError: one is not finite.
    """
    found = torch.zeros(len(texts), dtype=torch.float64)
    for rows in evaluation_batches(texts, batch_size):
        found[rows] = -token_losses(model, on_device(model, texts.batch(rows))).double().sum(1).cpu()
    check_finite_outputs(found.isfinite())
    return found


def accuracy(model: Any, examples: Examples) -> float:
    """Return the fraction of examples whose highest logit is that of their label.

    Raises:
        RunError: a logit is not finite.
    """
    found = predict_logits(model, examples)
    check_finite_outputs(found.isfinite().all(1))
    return float((found.argmax(1) == examples.labels).double().mean())


def client_metrics(
    model: Any, own_labels: Tensor, task: Task, examples: Examples, own: Examples | None = None
) -> dict[str, float]:
    """Return the metrics that a client reports after local training: on all of `examples`, and on its own.

    Args:
        model: as the client trained it.
        own_labels: the strata of the client's examples, int64 [N].
        task: which defines the metric.
        examples: held out.
        own: the client's own held-out examples; None where nobody says whose they are, and then `examples` are
            reweighted to its mix of strata.

    Returns:
        `holdout_...` with the ends of its 95 % interval, `low_...` and `high_...`, where they are defined;
        `own_...`, unless the client has no held-out examples of its own, or none of its strata.
    """
    num_strata = 1 + int(max(own_labels.max(), examples.labels.max()))
    found = tally(model, task, examples, num_strata, interval=True)
    metrics = {f"holdout_{task.metric}": found.metrics()[task.metric]}
    low, high = found.interval()
    if np.isfinite([low, high]).all():
        metrics |= {f"low_{task.metric}": low, f"high_{task.metric}": high}
    if own is None:
        shares = torch.bincount(own_labels, minlength=num_strata).double().numpy() / len(own_labels)
        (value,) = found.on_mixes(shares[None])
    elif len(own):
        value = tally(model, task, own, 1 + int(own.labels.max())).metrics()[task.metric]
    else:
        value = np.nan
    return metrics if np.isnan(value) else {**metrics, f"own_{task.metric}": float(value)}


def mean_interval(intervals: Sequence[tuple[float, float]]) -> list[float]:
    """Return the mean of the ends of intervals of values that are averaged.

    It is no narrower than an interval of the mean: the spread of a mean is at most the mean of the spreads.
    """
    return [float(end) for end in np.mean(np.asarray(intervals, dtype=float), axis=0)]


def mean_and_worst_decile(
    values: Sequence[float] | np.ndarray, higher_is_better: bool = True, fewest: int = 1
) -> dict[str, float]:
    """Return the mean over the clients, and the mean over the worst tenth of them (at least one client).

    Clients whose value is unknown (NaN) are left out.

    Args:
        fewest: clients of which a mean must be; one of fewer is left out.
    """
    ordered = np.sort(np.asarray(values, dtype=float)[~np.isnan(values)])
    worst = (ordered if higher_is_better else ordered[::-1])[: max(1, len(ordered) // 10)]
    means = {"mean": ordered, "worst_decile": worst}
    return {name: float(own.mean()) for name, own in means.items() if len(own) >= max(1, fewest)}
