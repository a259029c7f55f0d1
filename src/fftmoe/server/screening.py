"""No update touches the server's state unless an honest client could have sent it (docs/architecture.md, Boundaries).

The checks go from cheap to dear, and nothing is made larger than a message was allowed to be. A lie of the right form,
a plausible update that is wrong, passes.
"""

import json
import reprlib
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from fftmoe.errors import FftmoeError
from fftmoe.head import HeadSums, sum_shapes
from fftmoe.records import ClientUpdate, Tensors, inspect_message, make_update, names
from fftmoe.records.codec import LEVELS, SCALE, decode
from fftmoe.server.expectation import DTYPES, FIELDS, LARGEST, Expectation, on_wire

MOST_EXAMPLES = 10**9  # of a client whose examples the server cannot count
ROUNDING, TINY = 1e-6, torch.finfo(torch.float32).tiny  # what float32 on the wire may make of sums
SLACK = 1e-3  # relative, of shares that sum to one by the client's arithmetic

_shown, SHOWN = reprlib.repr, 200  # short, whatever a client sent


class Rejected(FftmoeError):
    """An update that no honest client could have sent; the message says what was found, and what was expected."""


def screen(message: bytes, expected: Expectation) -> ClientUpdate:
    """The update in a message.

    Raises:
        Rejected: no honest client would answer so. Nothing else is raised, whatever the message.
    """
    sums = expected.plan.task == "sums"
    container, header, num_bytes = _open(message, expected)
    _check_identity(header, expected)
    if expected.plan.concealed:
        _check_concealed(header, expected)
    else:
        _check_experts(header, expected)
    _check_metrics(header["metrics"], expected)
    _check_weight(header["num_examples"], expected.num_examples)
    _check_declared(container, num_bytes, header, expected)
    try:
        update = make_update(header, safetensors.torch.load(message))
    except SafetensorError as error:
        raise Rejected(f"its message cannot be read: {str(error)[:SHOWN]}") from error
    _check_numbers(update.tensors, torch.finfo(torch.float32).max if sums else LARGEST)
    if sums:
        found = HeadSums.from_tensors(update.tensors)
        if expected.plan.concealed:
            _check_weight(round(found.num_examples), None)
        _check_sums(found, round(found.num_examples) if expected.plan.concealed else update.num_examples)
    if expected.max_norm is not None and expected.plan.task == "train":
        _check_norm(update.tensors, expected.max_norm)
    return update


# The message


def _open(message: bytes, expected: Expectation) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What is declared of the tensors, by name; the update's header; and how many bytes the tensors have."""
    if len(message) > expected.most_bytes:
        raise Rejected(f"its message has {len(message)} bytes, and at most {expected.most_bytes} were expected")
    try:
        declared, header, num_bytes = inspect_message(message, expected.most_header)
    except ValueError as error:
        raise Rejected(f"its message is none of ours: {error}") from error
    if header.keys() != FIELDS:
        raise Rejected(f"the header of its update is {_shown(header)}, and the fields {sorted(FIELDS)} were expected")
    return declared, header, num_bytes


# The update


def _check_identity(header: Mapping[str, Any], expected: Expectation) -> None:
    plan, made = expected.plan, header["made_on"]
    for name, own in (("round", plan.round), ("client_id", plan.client_id)):
        if type(header[name]) is not int or header[name] != own:  # True is no 1
            raise Rejected(f"its update says {name} {_shown(header[name])}, and {own} was expected")
    if made != expected.made_on:
        what = "another backbone than the server's, or from another global model than it was sent"
        raise Rejected(f"its update was made on {what}: made_on {_shown(made)}, and {expected.made_on} was expected")


def _check_experts(header: Mapping[str, Any], expected: Expectation) -> None:
    """Experts among those it holds, a share for each, and what it prefers: those it holds and others that there are."""
    experts = _by_block(header, "experts", expected.experts, int)
    shares = _by_block(header, "shares", expected.experts, float)
    for block, held in expected.experts.items():
        ids, own, most = experts[block], shares[block], expected.most_shares
        if ids != sorted(set(held).intersection(ids)):
            wanted = f"some of {_shown(held)}, ascending,"
            raise Rejected(f"its experts of block {block} are {_shown(ids)}, and {wanted} were expected")
        if len(own) != len(ids) or any(not share >= 0 for share in own) or not sum(own) <= most * (1 + SLACK):
            wanted = f"{len(ids)} of at least 0 that sum to at most {most:g}"
            raise Rejected(f"its shares of block {block} are {_shown(own)}, and {wanted} were expected")
    for block, ids in _by_block(header, "preferences", expected.pool, int).items():
        held, pool = expected.experts[block], expected.pool[block]
        if len(set(ids)) < len(ids) or not set(held) <= set(ids) <= set(pool):
            wanted = f"{_shown(held)} and others of the {len(pool)} experts, each once,"
            raise Rejected(f"its preferences of block {block} are {_shown(ids)}, and {wanted} were expected")


def _check_concealed(header: Mapping[str, Any], expected: Expectation) -> None:
    """All experts that it holds, whatever it trained, and nothing of its routing."""
    wanted = {"experts": {str(block): [*ids] for block, ids in expected.experts.items()}}
    for name, own in {**wanted, "shares": {}, "preferences": {}, "metrics": {}}.items():
        if json.dumps(header[name], sort_keys=True) != json.dumps(own, sort_keys=True):  # True is no 1
            raise Rejected(f"its {name} are {_shown(header[name])}, and of a private client {_shown(own)} was expected")


def _by_block(header: Mapping[str, Any], name: str, blocks: Iterable[int], kind: type) -> dict[int, list[Any]]:
    """The lists of such numbers under this name, which must be of these blocks."""
    table = header[name]
    if not isinstance(table, dict) or table.keys() != {str(block) for block in blocks}:
        raise Rejected(f"its {name} are {_shown(table)}, and a list for each of the blocks {[*blocks]} was expected")
    for block, values in table.items():
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            raise Rejected(f"its {name} of block {block} are {_shown(values)}, and {kind.__name__}s were expected")
    return {block: table[str(block)] for block in blocks}


def _check_metrics(metrics: Any, expected: Expectation) -> None:
    known = expected.metrics
    if not isinstance(metrics, dict) or not expected.needed <= metrics.keys() <= known.keys():
        raise Rejected(f"its metrics are {_shown(metrics)}, and {[*known]} were expected")
    for name, value in metrics.items():
        least, most = known[name]
        if type(value) is not float or not least <= value <= most:
            raise Rejected(f"its {name} is {_shown(value)}, and a number from {least:g} to {most:g} was expected")


def _check_declared(
    container: Mapping[str, Any], num_bytes: int, header: Mapping[str, Any], expected: Expectation
) -> None:
    """Exactly the tensors it may send, with a row for each expert it trained; they fill what follows the header."""
    shapes = _shapes(header["num_examples"], expected)
    blocks = {name: names.block_of(name) for name in shapes}
    rows = {name: (len(header["experts"][str(block)]),) for name, block in blocks.items() if block is not None}
    own = {name: (*rows[name], *shape[1:]) if name in rows else shape for name, shape in shapes.items()}
    wire = on_wire(own, expected.plan)
    if container.keys() != wire.keys():
        lacks, has = sorted(wire.keys() - container.keys()), sorted(container.keys() - wire.keys())
        raise Rejected(f"its update lacks the tensors {_shown(lacks)}, and has {_shown(has)} beside those expected")
    for name, (dtype, shape) in wire.items():
        found, wanted = container[name], {"dtype": DTYPES[dtype], "shape": [*shape]}
        if not isinstance(found, dict) or {key: found[key] for key in found if key != "data_offsets"} != wanted:
            raise Rejected(f"its tensor {name} is {_shown(found)}, and {wanted} was expected")
    needed = sum(dtype.itemsize * prod(shape) for dtype, shape in wire.values())
    if num_bytes != needed:
        raise Rejected(f"its message has {num_bytes} bytes of tensors, and {needed} were expected")


def _shapes(num_examples: int, expected: Expectation) -> Mapping[str, tuple[int, ...]]:
    """Those expected; sums are as large as the client's number of examples makes them, where it alone knows that."""
    if expected.plan.task != "sums" or expected.num_examples is not None:
        return expected.shapes
    side, num_labels = expected.shapes["sums.moment"]
    return sum_shapes(side - 1, num_labels, num_examples)


def _check_numbers(tensors: Tensors, largest: float) -> None:
    """In one pass: what is not a number is not within any bounds either."""
    for name, tensor in tensors.items():
        most = LEVELS if tensor.dtype == torch.int8 else largest / LEVELS if name.endswith(SCALE) else largest
        least = 0.0 if name.endswith(SCALE) else -most
        found = [float(end) for end in tensor.aminmax()] if tensor.numel() else [0.0]
        if not (least <= found[0] and found[-1] <= most):
            wanted = f"none but from {least:g} to {most:g}"
            raise Rejected(f"its tensor {name} has numbers from {found[0]:g} to {found[-1]:g}, {wanted} were expected")


def _check_weight(num_examples: Any, known: int | None) -> None:
    least, most = (1, MOST_EXAMPLES) if known is None else (known, known)
    if type(num_examples) is not int or not least <= num_examples <= most:
        wanted = f"{known}" if known is not None else f"a whole number from {least} to {most}"
        raise Rejected(f"its update says num_examples {_shown(num_examples)}, and {wanted} was expected")


def _check_sums(sums: HeadSums, num_examples: int) -> None:
    """Sums over so many examples, each of one label."""
    gram, moment, counts = sums.gram, sums.moment, sums.moment[-1]
    if abs(sums.num_examples - num_examples) > ROUNDING * num_examples:
        raise Rejected(f"its sums are over {sums.num_examples:g} examples, and {num_examples} were expected")
    if (counts != counts.round()).any():
        raise Rejected(f"its sums count {_shown(counts.tolist())} of the labels, and whole numbers were expected")
    size = moment.abs().sum(1) + gram[-1].abs()
    if ((moment.sum(1) - gram[-1]).abs() > ROUNDING * size + TINY).any():
        raise Rejected("its sums over the labels are not its sums over all examples, and the same was expected")
    roots = (torch.cat([gram.diagonal(), counts]) + TINY).sqrt()  # not a number where a square sums to less than zero
    if not (torch.cat([gram, moment], 1).abs() <= (1 + ROUNDING) * roots[: len(gram), None] * roots).all():
        raise Rejected("its sums of products are more than its sums of squares allow")


def _check_norm(tensors: Tensors, most: float) -> None:
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in decode(tensors).values()]
    norm = float(torch.linalg.vector_norm(torch.tensor(norms, dtype=torch.float64)))
    if not norm <= most:
        raise Rejected(f"its changes have the norm {norm:.4g}, and at most {most:g} was expected")
