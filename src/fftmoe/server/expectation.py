"""What an honest client may answer to what it was sent; `screening` holds its answer against it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from math import prod
from types import MappingProxyType

import torch

from fftmoe.head import sum_shapes
from fftmoe.methods.base import Method
from fftmoe.methods.deltas import LONGEST_FLOAT, widest, zeros
from fftmoe.records import ClientPlan, ClientUpdate, Experts, Tensors, made_on, names
from fftmoe.records.codec import encode

MARGIN = 1024  # bytes of header beyond those of the widest update, for numbers with more digits
LARGEST = 1e15  # of a change or a loss: products of two such numbers, summed, still fit in float32

FIELDS = {field.name for field in fields(ClientUpdate)} - {"tensors"}
# By what is asked, what each metric may be. Who trained alone also measures itself, which must be there.
METRICS = {
    "train": {"loss": (-LARGEST, LARGEST)},
    "alone": {"loss": (-LARGEST, LARGEST)},
    "sums": {},
}
ACCURACY = MappingProxyType({"accuracy": (0.0, 1.0)})
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}  # as safetensors calls them
Declared = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # dtype and shape by name, as on the wire


@dataclass(frozen=True)
class Expectation:
    """What an honest client may answer to its plan.

    Attributes:
        made_on: see `fftmoe.records.made_on`.
        shapes: of its tensors before they are rounded for the wire, with a row for each expert that it holds.
        experts, pool: by block, those that it may have trained, and those that it may know.
        most_shares: what the shares of a block may sum to.
        most_header, most_bytes: of the JSON of its message, and of the whole.
        num_examples: how many it has; None where the server does not know.
        metrics: by name, from what to what each may be. needed: those that must be there.
        max_norm: the largest Euclidean norm of all the changes it sends; None: any.
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
    ) -> "Expectation":
        """Of a client that was sent this plan with these tensors.

        Args:
            backbone: the server's own, as its fingerprint.
            max_tokens: of an example, for the methods whose shares count them.
            measured: the metric by which a client that trained alone measures itself, and from what to what it goes.
        """
        metrics: dict[str, tuple[float, float]] = dict(METRICS[plan.task])
        needed = frozenset(f"holdout_{name}" for name in measured) if plan.task == "alone" else frozenset()
        if plan.task == "alone":
            metrics |= {f"{who}_{name}": bounds for name, bounds in measured.items() for who in ("holdout", "own")}
        update = _widest(plan, download, method, metrics, num_examples)
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
            num_examples=1 if plan.concealed else num_examples,
            metrics=metrics,
            needed=needed,
            max_norm=max_norm,
        )


def _widest(
    plan: ClientPlan, download: Tensors, method: Method, metrics: Iterable[str], num_examples: int | None
) -> ClientUpdate:
    """The largest update that the client may send."""
    if plan.task == "sums":
        num_labels, num_features = download[names.HEAD_WEIGHT].shape
        shapes = sum_shapes(num_features, num_labels, None if plan.concealed else num_examples)
        update = widest(plan, {name: zeros(shape) for name, shape in shapes.items()})
    else:
        update = method.widest_update(plan, download)
    if plan.concealed:
        return replace(update, num_examples=1, shares={}, preferences={}, metrics={})
    return replace(update, metrics=dict.fromkeys(metrics, LONGEST_FLOAT))


def on_wire(shapes: Mapping[str, tuple[int, ...]], plan: ClientPlan) -> Declared:
    """What tensors of these shapes become; only what is trained for the federation is rounded."""
    upload = plan.training.upload if plan.task == "train" else "float32"
    return {
        name + suffix: declared for name, shape in shapes.items() for suffix, declared in _parts(shape, upload).items()
    }


@lru_cache(maxsize=4096)
def _parts(shape: tuple[int, ...], upload: str) -> Declared:
    parts = encode({"": torch.empty(shape, device="meta")}, upload)
    return {suffix: (part.dtype, tuple(part.shape)) for suffix, part in parts.items()}


def _sizes(update: ClientUpdate, declared: Declared) -> tuple[int, int]:
    """Bytes of the JSON and of the whole message, exactly as `pack_update` makes them."""
    text = json.dumps({name: getattr(update, name) for name in FIELDS}, separators=(",", ":"))
    laid = sorted(declared.items(), key=lambda item: (-item[1][0].itemsize, item[0]))  # safetensors aligns them so
    ends = [0, *accumulate(dtype.itemsize * prod(shape) for _, (dtype, shape) in laid)]
    container = {
        name: {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": offsets}
        for (name, (dtype, shape)), offsets in zip(laid, pairwise(ends), strict=True)
    }
    header = len(json.dumps({"__metadata__": {"header": text}, **container}, separators=(",", ":")))
    header += -header % 8
    return header, 8 + header + ends[-1]
