"""States how often labels occur where the inputs of a finished run come from, and what its answers then are
(`fftmoe.head.prior`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fftmoe.backbones import add_to_head, head_parameters
from fftmoe.errors import InputError, did_you_mean
from fftmoe.head import LabelAnswers, estimated_shares, prior_shift
from fftmoe.strict import read_small, strict_json
from fftmoe.tasks import label_form
from fftmoe.trained.run import FinishedRun, TrainedModel

NONE, ESTIMATE = "none", "estimate"  # words in the place of a file with shares
NEAR_ONE = 1e-3  # how far from 1 the sum of shares may be: people round


class OwnAnswer(NamedTuple):
    """Says how a place uses the answers of a model, by rows of its own.

    Attributes:
        shares: the label shares for which it corrects them, float64 [C]; everyone's if `strength` is 0.
        strength: the part of the correction for its own shares that it takes.
        part: what it adds to the head of the model, [C, F + 1] of F features that the head reads; None for nothing.
    """

    shares: Tensor
    strength: float
    part: Tensor | None


@dataclass(frozen=True)
class Prior:
    """States how often labels occur where inputs come from.

    Attributes:
        name: by which an answer says that it was used.
        answers: the form of the labels.
        whole: their shares among the rows of all clients, float64 [C].
        shares: their shares at the place of use, float64 [C]; None to estimate them from the inputs.
    """

    name: str
    answers: LabelAnswers
    whole: Tensor
    shares: Tensor | None

    def corrected(self, logits: Tensor) -> Tensor:
        """Return the logits of the inputs, [N, C], as they are at the place of use; an estimate leaves out those that
        are not finite.
        """
        shares_C = self.estimated(logits).shares
        assert shares_C is not None, "they were estimated"
        return logits + prior_shift(shares_C, self.whole, self.answers).to(logits)

    def estimated(self, logits: Tensor) -> "Prior":
        """Return the same with the shares that the logits of items [N, C] tell, where none are stated.

        As many items of everyone's shares are added: an estimate alone overshoots where labels are hard to tell apart,
        and inputs with even labels lose by it (docs/LOG.md).
        """
        if self.shares is not None:
            return self
        known = logits[logits.isfinite().all(1)]
        shares_C = estimated_shares(known, self.whole, self.answers, smoothing=max(len(known), 1))
        return replace(self, shares=shares_C)


def why_no_prior(run: FinishedRun) -> str | None:
    """Return why the answers of this run cannot be corrected; None if they can."""
    if label_form(run.task, run.head) is None:
        return f"a run of task {run.task} gives no labels"
    if run.label_shares is None:
        return "the run does not know how often its labels occur"
    if run.head == "closed-form" and run.temperature is None:
        return "the head of the run was solved without a temperature, so its outputs are no logits"
    return None


def stated_prior(run: FinishedRun, text: str | None) -> Prior | None:
    """Return what a person states of the labels; None for no correction, and where nothing is stated.

    Args:
        text: the path of a JSON file, `{"label": share}`, `estimate`, or `none`.

    Raises:
        InputError: the answers of this run cannot be corrected; the file cannot be read, names an unknown label, or
            holds other values than shares.
    """
    if text in (None, NONE):
        return None
    if (reason := why_no_prior(run)) is not None:
        raise InputError(f"--prior {text!r:.200} cannot be used: {reason}; leave it out, or use --prior none")
    assert text is not None, "none was returned above"
    shares = None if text == ESTIMATE else _read_shares(run, Path(text))
    return make_prior(run, text if text == ESTIMATE else Path(text).name, shares)


def make_prior(run: FinishedRun, name: str, shares: Tensor | None) -> Prior:
    """Return a prior for the answers of this run, which can be corrected; arguments as for `Prior`."""
    answers = label_form(run.task, run.head)
    assert answers is not None, "the task has labels"
    return Prior(name, answers, torch.tensor(run.label_shares, dtype=torch.float64), shares)


def _read_shares(run: FinishedRun, path: Path) -> Tensor:
    """Return the shares that a file states, in the order of the labels; a label that it does not name has 0."""
    try:
        found: Mapping[str, Any] = strict_json(read_small(path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read --prior {str(path)!r:.200}: {error}; name a JSON file such as "
            f'{{"{run.label_names[0]}": 0.25, …}}, or write estimate or none'
        ) from error
    where = f"--prior {str(path)!r:.200}"
    for name, share in found.items():
        if name not in run.label_names:
            raise InputError(f"{where}: the run knows no label {name!r:.200}{did_you_mean(name, run.label_names)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise InputError(f"{where}: the share of {name!r:.200} is {share!r:.50}; write a number from 0 to 1")
    total = sum(found.values())
    exclusive = run.judging_task.exclusive
    if exclusive and abs(total - 1) > NEAR_ONE:
        raise InputError(f"{where}: the shares add up to {total:g}; they must add up to 1")
    shares_C = torch.tensor([float(found.get(name, 0)) for name in run.label_names], dtype=torch.float64)
    return shares_C / total if exclusive else shares_C


@torch.no_grad()
def giving(trained: TrainedModel, prior: Prior, part: Tensor | None) -> TrainedModel:
    """Let the head of a model give the answers of a place: its part is added to the head, and what corrects the answers
    to the bias of the last layer. The run is then one of rows with the label shares of the place.
    """
    assert prior.shares is not None, "a place knows its shares"
    if part is not None:
        add_to_head(trained.model, part)
    *_, bias = (p for name, p in head_parameters(trained.model).items() if name.endswith("bias"))
    bias += prior_shift(prior.shares, prior.whole, prior.answers).to(bias)
    return replace(trained, run=replace(trained.run, label_shares=tuple(prior.shares.tolist())))
