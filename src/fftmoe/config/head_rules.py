"""Finds the defaults of a recipe's section `head`: which head there is, on which features,
and at which rate it learns.
"""

from collections.abc import Callable
from typing import Any

from fftmoe.config.known import LEFT_OUT, Known, Rule

CLASSIFIED = ("sequence-classification", "image-classification")  # the tasks with one label for each example
ADAMW_HEAD_RATE, SQUARED_HEAD_RATE = 0.005, 0.02  # of a trained head; the second for SGD on numbers
MANY_CLASSES = 32  # from here on the features of a solved head are twice as many


def if_solved(value: Any) -> Callable[[Known], Any]:
    """Give this value where the head is closed-form, and leave the key out for any other head."""
    return lambda known: value if known.get("head.kind") == "closed-form" else LEFT_OUT


def _head_kind(known: Known) -> Any:
    if known.is_language:
        return LEFT_OUT
    shares = known.method is None or known.method.shares_statistics
    if shares and not known.noisy:
        return "closed-form"
    return "one-vs-all" if known.task in CLASSIFIED and known.noisy else "averaged"


def _num_features(known: Known) -> Any:
    if known.get("head.kind") != "closed-form":
        return LEFT_OUT
    return 2048 if known.facts_read is not None and known.facts_read.classes > MANY_CLASSES else 1024


def _head_update(known: Known) -> Any:
    if known.get("head.kind") != "closed-form":
        return LEFT_OUT
    return "frozen" if known.method and known.method.trains == "head" else "recomputed"


def _is_head_trained(known: Known) -> bool:
    return known.get("head.kind") in ("averaged", "one-vs-all") or known.get("head.update") == "trained"


def _head_optimizer(known: Known) -> Any:
    """Choose AdamW where SGD could diverge: on a squared error it does so above a rate that the length of a backbone's
    features decides; AdamW does not.
    """
    stated = known.get("head.learning_rate") is not None
    return "adamw" if known.task == "regression" and _is_head_trained(known) and not stated else LEFT_OUT


def _head_rate(known: Known) -> Any:
    if not _is_head_trained(known):
        return LEFT_OUT
    if known.get("head.optimizer") == "adamw":
        return ADAMW_HEAD_RATE
    return 1.0 if known.task != "regression" else SQUARED_HEAD_RATE


HEAD_RULES: tuple[Rule, ...] = (
    Rule("head.kind", _head_kind),
    Rule("head.features", if_solved("fourier")),
    Rule("head.num_features", _num_features, "1,024; 2,048 for more than 32 classes, if the data was read"),
    Rule("head.update", _head_update),
    Rule(
        "head.optimizer", _head_optimizer, "adamw for numbers, where head.learning_rate is left out too", of_data=False
    ),
    Rule("head.learning_rate", _head_rate, "1.0; with adamw 0.005, and with sgd for numbers 0.02", of_data=False),
)
"""The rules of the section in the order in which they are given; `head.every` follows from the number of rounds."""
