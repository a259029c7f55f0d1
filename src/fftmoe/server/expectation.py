"""Says what an honest client may answer to its plan. `screening` compares every answer with this expectation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from math import prod
from types import MappingProxyType

import numpy as np
import torch

from fftmoe.head import ONE_LABEL, Answers, sum_shapes
from fftmoe.methods.base import Method
from fftmoe.methods.deltas import LONGEST_FLOAT, widest, zeros
from fftmoe.records import ClientPlan, ClientUpdate, Experts, Tensors, made_on, names
from fftmoe.records.codec import encode
from fftmoe.strict import exact_json

MARGIN = 1024  # bytes of header in addition to those of the widest update, for numbers with more digits
LARGEST = 1e15  # limit of a delta or a loss: sums of products of two such numbers still fit in float32

FIELDS = {field.name for field in fields(ClientUpdate)} - {"tensors"}
# By task, the bounds of each metric. With the task "alone" (local training), a client must also measure its own model.
METRICS = {
    "train": {"loss": (-LARGEST, LARGEST)},
    "alone": {"loss": (-LARGEST, LARGEST)},
    "sums": {},
    "validate": {},
    "own": {"margin": (0.0, LARGEST)},
}
MEASURED = ("holdout", "own", "low", "high")  # before the name of a metric, see `client_metrics`
ACCURACY = MappingProxyType({"accuracy": (0.0, 1.0)})
NOTHING: Mapping[str, tuple[float, float]] = MappingProxyType({})
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}  # as safetensors calls them
Declared = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # the dtype and shape of each tensor on the wire, by name


@dataclass(frozen=True)
class Validated:
    """States what a client's statistics of its validation rows can be.

    Attributes:
        num_rows: that the client has set aside.
        least, most: of each of the task's statistics, float64 [K].
        metric: from statistics to the metric of the run. bounds: of that metric.
    """

    num_rows: int
    least: np.ndarray
    most: np.ndarray
    metric: Callable[[np.ndarray], float]
    bounds: tuple[float, float]


@dataclass(frozen=True)
class Expectation:
    """States what an honest client may answer to its plan.

    Attributes:
        plan: the plan that the client was sent.
        made_on: the fingerprint of the models that it must train on (`fftmoe.records.made_on`).
        shapes: the shapes of its tensors before they are rounded for the wire, with one row for each resident expert.
        experts: by block, the experts that it may have trained.
        pool: by block, the experts that its preferences may name.
        most_shares: the largest allowed sum of the shares of a block.
        most_header: the largest allowed number of bytes of the message's JSON.
        most_bytes: the largest allowed number of bytes of the whole message.
        num_examples: the client's number of examples, of which its feature statistics may leave some out; None if the
            server does not know it.
        metrics: by name, the least and the largest allowed value.
        needed: the names of the metrics that must be present.
        max_norm: the largest allowed Euclidean norm of all deltas together; None allows any.
        compared: whether its length is compared with those of the round's other answers (`lengths.py`).
        validated: for the task "validate".
        answers: what a closed-form head is fitted to. max_tokens: of an example.
    """

    plan: ClientPlan
    made_on: str
    shapes: Mapping[str, tuple[int, ...]]
    experts: Experts
    pool: Experts
    most_shares: float
    most_header: int
    most_bytes: int
    num_examples: int | None
    metrics: Mapping[str, tuple[float, float]]
    needed: frozenset[str]
    max_norm: float | None
    compared: bool = False
    validated: Validated | None = None
    answers: Answers = ONE_LABEL
    max_tokens: int = 1

    @classmethod
    def of(
        cls,
        plan: ClientPlan,
        download: Tensors,
        method: Method,
        backbone: str,
        num_examples: int | None = None,
        max_tokens: int = 1,
        max_norm: float | None = None,
        measured: Mapping[str, tuple[float, float]] = ACCURACY,
        compared: bool = False,
        validated: Validated | None = None,
        may_measure: Mapping[str, tuple[float, float]] = NOTHING,
        answers: Answers = ONE_LABEL,
    ) -> "Expectation":
        """Derive the expectation from the plan and the tensors that the client was sent.

        Args:
            backbone: the fingerprint of the server's backbone.
            max_tokens: the most tokens of an example, for the methods whose shares count tokens, and for tasks on
                tokens.
            num_examples, max_norm, compared, validated, answers: see `Expectation`. Only updates and feature statistics
                are compared.
            measured: by name, the bounds of the metrics with which a client measures its model after local training.
            may_measure: by name, the bounds of those that it may measure in addition on its own test rows.
        """
        after, more = (measured, may_measure) if plan.task == "alone" else ({}, {})
        if plan.task == "own":
            more = {**measured, **may_measure}
        own = {f"own_{name}": bounds for name, bounds in more.items()}
        metrics = {**METRICS[plan.task], **_on_both_parts(after), **own}
        update = _widest(plan, download, method, metrics, num_examples, validated, answers)
        shapes = {name: tuple(tensor.shape) for name, tensor in update.tensors.items()}
        header, num_bytes = _sizes(update, on_wire(shapes, plan))
        return cls(
            plan=plan,
            made_on=made_on(backbone, plan.base),
            shapes=shapes,
            experts=update.experts,
            pool=update.preferences,
            most_shares=method.most_shares(plan, max_tokens),
            most_header=header + MARGIN,
            most_bytes=num_bytes + MARGIN,
            num_examples=1 if plan.concealed or plan.task in ("validate", "own") else num_examples,
            metrics=metrics,
            needed=frozenset(METRICS["own"] if plan.task == "own" else (f"holdout_{name}" for name in after)),
            max_norm=max_norm,
            compared=compared and plan.task in ("train", "sums"),
            validated=validated,
            answers=answers,
            max_tokens=max_tokens,
        )


def _on_both_parts(measured: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Return the bounds of metrics that a client measures on its held-out examples, with an interval,
    and on its own.
    """
    return {f"{who}_{name}": bounds for name, bounds in measured.items() for who in MEASURED}


def _widest(
    plan: ClientPlan,
    download: Tensors,
    method: Method,
    metrics: Iterable[str],
    num_examples: int | None,
    validated: Validated | None,
    answers: Answers,
) -> ClientUpdate:
    """Return the largest update that the client may send. A client that validates says nothing but its sums, and one
    that trains for itself nothing but metrics.
    """
    if plan.task == "validate":
        assert validated is not None, "a client validates where rows are set aside"
        return ClientUpdate(plan.round, plan.client_id, 1, {names.VALIDATION: zeros((len(validated.least) + 1,))})
    if plan.task == "own":
        return ClientUpdate(plan.round, plan.client_id, 1, {}, metrics=dict.fromkeys(metrics, LONGEST_FLOAT))
    if plan.task == "sums":
        num_outputs, num_features = download[names.HEAD_WEIGHT].shape
        shapes = sum_shapes(num_features, num_outputs, None if plan.concealed else num_examples, answers)
        update = widest(plan, {name: zeros(shape) for name, shape in shapes.items()})
    else:
        update = method.widest_update(plan, download)
    if plan.concealed:
        return replace(update, num_examples=1, shares={}, preferences={}, metrics={})
    return replace(update, metrics=dict.fromkeys(metrics, LONGEST_FLOAT))


def on_wire(shapes: Mapping[str, tuple[int, ...]], plan: ClientPlan) -> Declared:
    """Return dtypes and shapes on the wire of tensors of these shapes; only updates of the task "train" are rounded."""
    upload = plan.training.upload if plan.task == "train" else "float32"
    return {
        name + suffix: declared for name, shape in shapes.items() for suffix, declared in _parts(shape, upload).items()
    }


@lru_cache(maxsize=4096)
def _parts(shape: tuple[int, ...], upload: str) -> Declared:
    parts = encode({"": torch.empty(shape, device="meta")}, upload)
    return {suffix: (part.dtype, tuple(part.shape)) for suffix, part in parts.items()}


def _sizes(update: ClientUpdate, declared: Declared) -> tuple[int, int]:
    """Return the number of bytes of the JSON and of the whole message, exactly as `pack_update` makes them."""
    text = exact_json({name: getattr(update, name) for name in FIELDS}, compact=True)
    laid = sorted(declared.items(), key=lambda item: (-item[1][0].itemsize, item[0]))  # safetensors' order
    ends = [0, *accumulate(dtype.itemsize * prod(shape) for _, (dtype, shape) in laid)]
    container = {
        name: {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": offsets}
        for (name, (dtype, shape)), offsets in zip(laid, pairwise(ends), strict=True)
    }
    header = len(exact_json({"__metadata__": {"header": text}, **container}, compact=True))
    header += -header % 8
    return header, 8 + header + ends[-1]
