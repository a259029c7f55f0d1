"""Checks every client update before the server uses it (docs/architecture.md, What is validated).

An update is rejected unless an honest client could have sent it. The checks run from cheap to expensive, and no check
allocates more memory than the largest allowed message. A wrong update with plausible values passes.
"""

from collections.abc import Iterable, Mapping
from math import prod
from reprlib import repr as shortened
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from fftmoe.errors import FftmoeError
from fftmoe.head import HeadSums, LabelAnswers, sum_shapes
from fftmoe.records import ClientUpdate, Tensors, inspect_message, make_update, names
from fftmoe.records.codec import LEVELS
from fftmoe.server.expectation import DTYPES, FIELDS, LARGEST, Expectation, on_wire
from fftmoe.server.lengths import update_length
from fftmoe.shown import count_of
from fftmoe.strict import hash_text

MOST_EXAMPLES = 10**9  # limit for a client whose number of examples the server does not know
# Relative and absolute rounding of statistics in float32.
ROUNDING, SMALLEST_FLOAT = 1e-6, torch.finfo(torch.float32).tiny
SHARE_SLACK = 1e-3  # relative rounding of a sum of shares

MOST_ERROR_CHARACTERS = 200  # of what safetensors says of a message


class Rejected(FftmoeError):
    """Reports that no honest client could have sent this update.
    The message states what was found and what was expected.
    """


def screen(message: bytes, expected: Expectation) -> ClientUpdate:
    """Check a message and return the update in it.

    Raises:
        Rejected: no honest client could have sent the message. No message raises another error.
    """
    sums = expected.plan.task == "sums"
    container, header, num_bytes = _open(message, expected)
    _check_identity(header, expected)
    if expected.plan.concealed:
        _check_concealed(header, expected)
    else:
        _check_experts(header, expected)
    _check_metrics(header["metrics"], expected)
    _check_weight(header["num_examples"], expected.num_examples, least=1 if sums else None)
    _check_declared(container, num_bytes, header, expected)
    try:
        update = make_update(header, safetensors.torch.load(message))
    except SafetensorError as error:
        raise Rejected(f"its message cannot be read: {str(error)[:MOST_ERROR_CHARACTERS]}") from error
    bounded = expected.plan.task in ("train", "alone")
    _check_numbers(update.tensors, LARGEST if bounded else torch.finfo(torch.float32).max)
    if sums:
        found = HeadSums.from_tensors(update.tensors)
        if expected.plan.concealed:
            _check_weight(round(found.num_items), None)
        _check_sums(found, None if expected.plan.concealed else update.num_examples, expected)
    if expected.plan.task == "validate":
        _check_validation(update.tensors[names.VALIDATION], expected)
    if expected.max_norm is not None and expected.plan.task == "train":
        _check_norm(update, expected.max_norm)
    return update


# The message


def _open(message: bytes, expected: Expectation) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Read the tensors' declarations by name, the update's header, and the number of bytes of the tensors."""
    if len(message) > expected.most_bytes:
        raise Rejected(f"its message has {count_of(len(message), 'byte')}; at most {expected.most_bytes:,} are allowed")
    try:
        declared, header, num_bytes = inspect_message(message, expected.most_header)
    except ValueError as error:
        raise Rejected(f"its message is not an fftmoe update: {error}") from error
    if header.keys() != FIELDS:
        raise Rejected(f"the header of its update is {shortened(header)}; expected the fields {sorted(FIELDS)}")
    return declared, header, num_bytes


# The update


def _check_identity(header: Mapping[str, Any], expected: Expectation) -> None:
    plan, made = expected.plan, header["made_on"]
    for name, own in (("round", plan.round), ("client_id", plan.client_id)):
        if type(header[name]) is not int or header[name] != own:  # True == 1
            raise Rejected(f"its update states {name} {shortened(header[name])}; expected {own}")
    if made != expected.made_on:
        what = "another backbone than the server's, or another global model than the server sent"
        raise Rejected(f"its update was made on {what}: made_on {shortened(made)}; expected {expected.made_on}")


def _check_experts(header: Mapping[str, Any], expected: Expectation) -> None:
    """Check that experts are resident, that each has a share, and that preferences contain all resident experts."""
    experts = _by_block(header, "experts", expected.experts, int)
    shares = _by_block(header, "shares", expected.experts, float)
    for block, held in expected.experts.items():
        ids, own, most = experts[block], shares[block], expected.most_shares
        if ids != sorted(set(held).intersection(ids)):
            wanted = f"some of {shortened(held)} in ascending order"
            raise Rejected(f"its experts of block {block} are {shortened(ids)}; expected {wanted}")
        if len(own) != len(ids) or any(not share >= 0 for share in own) or not sum(own) <= most * (1 + SHARE_SLACK):
            wanted = f"{count_of(len(ids), 'number')} of at least 0 whose sum is at most {most:g}"
            raise Rejected(f"its shares of block {block} are {shortened(own)}; expected {wanted}")
    for block, ids in _by_block(header, "preferences", expected.pool, int).items():
        held, pool = expected.experts[block], expected.pool[block]
        if len(set(ids)) < len(ids) or not set(held) <= set(ids) <= set(pool):
            wanted = f"{shortened(held)} and others of the {count_of(len(pool), 'expert')}, each once"
            raise Rejected(f"its preferences of block {block} are {shortened(ids)}; expected {wanted}")


def _check_concealed(header: Mapping[str, Any], expected: Expectation) -> None:
    """Check that a private client lists all resident experts and states nothing about its routing."""
    wanted = {"experts": {str(block): [*ids] for block, ids in expected.experts.items()}}
    for name, own in {**wanted, "shares": {}, "preferences": {}, "metrics": {}}.items():
        if hash_text(header[name]) != hash_text(own):  # True == 1
            raise Rejected(f"its {name} are {shortened(header[name])}; expected {shortened(own)} from a private client")


def _by_block(header: Mapping[str, Any], name: str, blocks: Iterable[int], kind: type) -> dict[int, list[Any]]:
    """Return the header's lists of numbers under `name`; there must be one list for each block,
    with numbers of one kind.
    """
    table = header[name]
    if not isinstance(table, dict) or table.keys() != {str(block) for block in blocks}:
        raise Rejected(f"its {name} are {shortened(table)}; expected a list for each of the blocks {[*blocks]}")
    for block, values in table.items():
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            raise Rejected(f"its {name} of block {block} are {shortened(values)}; expected {kind.__name__}s")
    return {block: table[str(block)] for block in blocks}


def _check_metrics(metrics: Any, expected: Expectation) -> None:
    known = expected.metrics
    if not isinstance(metrics, dict) or not expected.needed <= metrics.keys() <= known.keys():
        raise Rejected(f"its metrics are {shortened(metrics)}; expected {[*known]}")
    for name, value in metrics.items():
        least, most = known[name]
        if type(value) is not float or not least <= value <= most:
            raise Rejected(f"its {name} is {shortened(value)}; expected a number from {least:g} to {most:g}")


def _check_declared(
    container: Mapping[str, Any], num_bytes: int, header: Mapping[str, Any], expected: Expectation
) -> None:
    """Check that the message declares exactly the expected tensors, and that their bytes fill the rest of it.

    A tensor of experts has one row for each expert that the client trained.
    """
    shapes = _shapes(header["num_examples"], expected)
    blocks = {name: names.block_of(name) for name in shapes}
    rows = {name: (len(header["experts"][str(block)]),) for name, block in blocks.items() if block is not None}
    own = {name: (*rows[name], *shape[1:]) if name in rows else shape for name, shape in shapes.items()}
    wire = on_wire(own, expected.plan)
    if container.keys() != wire.keys():
        lacks, has = sorted(wire.keys() - container.keys()), sorted(container.keys() - wire.keys())
        raise Rejected(
            f"its update lacks the tensors {shortened(lacks)} and has the unexpected tensors {shortened(has)}"
        )
    for name, (dtype, shape) in wire.items():
        found, wanted = container[name], {"dtype": DTYPES[dtype], "shape": [*shape]}
        if not isinstance(found, dict) or {key: found[key] for key in found if key != "data_offsets"} != wanted:
            raise Rejected(f"its tensor {name} is {shortened(found)}; expected {wanted}")
    needed = sum(dtype.itemsize * prod(shape) for dtype, shape in wire.values())
    if num_bytes != needed:
        raise Rejected(f"its message has {count_of(num_bytes, 'byte')} of tensors; expected {needed:,}")


def _shapes(num_examples: int, expected: Expectation) -> Mapping[str, tuple[int, ...]]:
    """Return the expected shapes. Those of feature statistics follow from the stated number of examples,
    if it is stated.
    """
    if expected.plan.task != "sums" or expected.plan.concealed:
        return expected.shapes
    side, num_outputs = expected.shapes[names.STATISTICS_MOMENT]
    return sum_shapes(side - 1, num_outputs, num_examples, expected.answers)


def _check_numbers(tensors: Tensors, largest: float) -> None:
    """Check the bounds of all numbers in one pass; NaN is outside of every bound."""
    for name, tensor in tensors.items():
        scale = names.is_scale(name)
        most = LEVELS if tensor.dtype == torch.int8 else largest / LEVELS if scale else largest
        least = 0.0 if scale else -most
        found = [float(end) for end in tensor.aminmax()] if tensor.numel() else [0.0]
        if not (least <= found[0] and found[-1] <= most):
            wanted = f"numbers from {least:g} to {most:g}"
            raise Rejected(f"its tensor {name} has numbers from {found[0]:g} to {found[-1]:g}; expected {wanted}")


def _check_weight(num_examples: Any, known: int | None, least: int | None = None) -> None:
    """Check a number of examples. A client may leave rows out of sums (`least`); of those it trains on it has all."""
    first, last = (1, MOST_EXAMPLES) if known is None else (known if least is None else least, known)
    if type(num_examples) is not int or not first <= num_examples <= last:
        wanted = f"{last}" if first == last else f"a whole number from {first} to {last}"
        raise Rejected(f"its update states num_examples {shortened(num_examples)}; expected {wanted}")


def _check_sums(sums: HeadSums, num_examples: int | None, expected: Expectation) -> None:
    """Check that these can be feature statistics of `num_examples` examples, a number that may be unknown."""
    gram, moment, counts = sums.gram, sums.moment, sums.moment[-1]
    if num_examples is not None or expected.answers.one_each:
        _check_items(sums.num_items, num_examples or round(sums.num_items), expected)
    if isinstance(expected.answers, LabelAnswers) and (counts != counts.round()).any():
        raise Rejected(
            f"its feature statistics count the examples of the labels as {shortened(counts.tolist())}; expected whole "
            "numbers"
        )
    if expected.answers.exclusive:
        _check_labels_add_up(gram, moment)
    elif (
        isinstance(expected.answers, LabelAnswers)
        and ((sums.energy - sums.num_items).abs() > ROUNDING * sums.num_items).any()
    ):
        raise Rejected(
            f"its feature statistics have sums of squares of {shortened(sums.energy.tolist())}; expected the number of "
            f"examples, {sums.num_items:g}, because each label counts 1 or -1"
        )
    squares = torch.cat([gram.diagonal(), sums.energy])
    roots = (squares + SMALLEST_FLOAT).sqrt()  # NaN if a sum of squares is negative
    if not (torch.cat([gram, moment], 1).abs() <= (1 + ROUNDING) * roots[: len(gram), None] * roots).all():
        raise Rejected(
            "its feature statistics have a sum of products that is larger than its sums of squares allow; expected one "
            "that satisfies the Cauchy-Schwarz inequality"
        )


def _check_items(num_items: float, num_examples: int, expected: Expectation) -> None:
    """Check how many items these examples have: one each, or some of their tokens."""
    if expected.answers.one_each:
        if abs(num_items - num_examples) > ROUNDING * num_examples:
            raise Rejected(
                f"the number of examples in its feature statistics is {num_items:g}; expected {num_examples}"
            )
        return
    most = num_examples * expected.max_tokens
    if not 1 <= num_items <= most * (1 + ROUNDING):
        raise Rejected(f"the number of tokens in its feature statistics is {num_items:g}; expected 1 to {most}")


def _check_labels_add_up(gram: torch.Tensor, moment: torch.Tensor) -> None:
    size = moment.abs().sum(1) + gram[-1].abs()
    if ((moment.sum(1) - gram[-1]).abs() > ROUNDING * size + SMALLEST_FLOAT).any():
        raise Rejected(
            "in its feature statistics, the sums by label do not add up to those over all examples; expected equality"
        )


def _check_validation(found: torch.Tensor, expected: Expectation) -> None:
    """Check that these can be the task's statistics of the rows that the client has set aside."""
    allowed = expected.validated
    assert allowed is not None, "a client validates where rows are set aside"
    *sums, number = found.double().numpy()
    if number != allowed.num_rows:
        raise Rejected(
            f"the number of rows that it has validated is {number:g}; expected {allowed.num_rows}, which it has set "
            "aside"
        )
    rounding = ROUNDING * (np.abs(allowed.least) + np.abs(allowed.most))
    wrong = np.flatnonzero((sums < allowed.least - rounding) | (sums > allowed.most + rounding))
    if len(wrong):
        least, most = allowed.least[wrong[0]], allowed.most[wrong[0]]
        raise Rejected(
            f"its statistic {wrong[0]} of {number:g} rows is {sums[wrong[0]]:g}; expected {least:g} to {most:g}"
        )
    value, (low, high) = allowed.metric(np.array(sums)), allowed.bounds
    if not (np.isnan(value) or low <= value <= high * (1 + ROUNDING)):
        raise Rejected(f"its statistics give a metric of {value:g}; expected a number from {low:g} to {high:g}")


def _check_norm(update: ClientUpdate, most: float) -> None:
    norm = update_length(update, "train")
    if not norm <= most:
        raise Rejected(f"its deltas have the norm {norm:.4g}; at most {most:g} is allowed")
