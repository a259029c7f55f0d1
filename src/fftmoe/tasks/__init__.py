"""Defines tasks: which loss training minimises and how outputs are judged, one file for each task.

No model, method or recipe is known here; every package above may import it.
"""

from collections.abc import Callable

from fftmoe.errors import InputError, did_you_mean
from fftmoe.head import AgainstOthers, Answers, LabelAnswers, OneLabel
from fftmoe.tasks.base import NO_BOUND as NO_BOUND
from fftmoe.tasks.base import Loss as Loss
from fftmoe.tasks.base import LossByExample as LossByExample
from fftmoe.tasks.base import Task as Task
from fftmoe.tasks.causal_lm import CausalLm as CausalLm
from fftmoe.tasks.causal_lm import NextToken as NextToken
from fftmoe.tasks.classification import Classification as Classification
from fftmoe.tasks.generated import exact_match as exact_match
from fftmoe.tasks.generated import rouge_l as rouge_l
from fftmoe.tasks.label_counts import LabelCounts as LabelCounts
from fftmoe.tasks.multi_label import EachLabel as EachLabel
from fftmoe.tasks.multi_label import MultiLabel as MultiLabel
from fftmoe.tasks.multi_label import SeveralLabels as SeveralLabels
from fftmoe.tasks.options import common_completions as common_completions
from fftmoe.tasks.options import options_of as options_of
from fftmoe.tasks.preference import PairLoss as PairLoss
from fftmoe.tasks.preference import Preference as Preference
from fftmoe.tasks.regression import Regression as Regression
from fftmoe.tasks.regression import ScaledNumbers as ScaledNumbers
from fftmoe.tasks.regression import Scales as Scales
from fftmoe.tasks.regression import Squares as Squares
from fftmoe.tasks.share import CountedShare as CountedShare
from fftmoe.tasks.share import no_share as no_share
from fftmoe.tasks.share import worth as worth
from fftmoe.tasks.token_classification import LabelOfTokens as LabelOfTokens
from fftmoe.tasks.token_classification import PerToken as PerToken
from fftmoe.tasks.token_classification import TokenClassification as TokenClassification

TASKS: dict[str, Callable[[], Task]] = {
    "sequence-classification": Classification,
    "image-classification": Classification,
    "causal-lm": CausalLm,
    "token-classification": TokenClassification,
    "multi-label-classification": MultiLabel,
    "regression": Regression,
    "preference": Preference,
}
# The tasks that bring a loss; the other tasks use the loss of the recipe's head (`fftmoe.head`).
LOSSES: dict[str, Callable[[], Loss]] = {
    "causal-lm": NextToken,
    "token-classification": PerToken,
    "multi-label-classification": EachLabel,
    "regression": Squares,
    "preference": PairLoss,
}
# What a closed-form head is fitted to, for the tasks with a head.
FITTED: dict[str, Callable[[], Answers]] = {
    "sequence-classification": OneLabel,
    "image-classification": OneLabel,
    "token-classification": LabelOfTokens,
    "multi-label-classification": SeveralLabels,
    "regression": ScaledNumbers,
}


def label_form(task: str, head: str | None) -> LabelAnswers | None:
    """Return how the outputs of a head of this kind say the probabilities of labels; None for a task without labels."""
    form = FITTED[task]() if task in FITTED else None
    if isinstance(form, OneLabel) and form.one_each and head == "one-vs-all":
        return AgainstOthers()
    return form if isinstance(form, LabelAnswers) else None


def make_task(name: str) -> Task:
    """Return the task that recipes call `name`.

    Raises:
        InputError: there is no such task.
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}{did_you_mean(name, TASKS)}")
    return TASKS[name]()
