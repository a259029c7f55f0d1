"""All kinds of bad updates for the tests of screening, each with the reason that the rejection must state."""

import json
import math
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from fftmoe.records import Tensors, unpack
from fftmoe.records.names import VALIDATION, is_scale

Spoil = Callable[[dict[str, Any], Tensors], object]
"""Changes an update's header and tensors in place; returns False if the update cannot be spoiled this way."""


def taken_apart(message: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON of a message's container, and the bytes of its tensors."""
    length = int.from_bytes(message[:8], "little")
    return json.loads(message[8 : 8 + length]), message[8 + length :]


def put_together(container: str | Mapping[str, Any], data: bytes) -> bytes:
    """Make a message from its JSON and the bytes of its tensors."""
    text = (container if isinstance(container, str) else json.dumps(container)).encode()
    return len(text).to_bytes(8, "little") + text + data


def of(spoil: Spoil) -> Callable[[bytes], bytes | None]:
    """Make the message of a spoiled update; None if it cannot be spoiled this way."""

    def remade(message: bytes) -> bytes | None:
        header, tensors = unpack(message)
        if spoil(header, tensors) is False:
            return None
        text = json.dumps(header, sort_keys=True, separators=(",", ":"))  # `pack` refuses what JSON does not have
        return save({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, {"header": text})

    return remade


def say(**header: Any) -> Callable[[bytes], bytes | None]:
    """Set values of an update's header."""
    return of(lambda h, t: h.update(header))


def number(value: float, where: Callable[[str, torch.Tensor], bool] = lambda name, t: t.is_floating_point()) -> Any:
    """Put a number at the end of an update's largest tensor of a kind."""

    def spoil(header: dict[str, Any], tensors: Tensors) -> object:
        names = [name for name, t in tensors.items() if where(name, t) and t.numel() and not name.startswith("sums.")]
        if not names:
            return False
        largest = max(names, key=lambda name: tensors[name].numel())
        tensors[largest].view(-1)[-1] = value
        return True

    return of(spoil)


def tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Replace an update's first tensor."""
    return of(lambda h, t: t.update({min(t): change(t[min(t)])}) if t else False)


def block(change: Callable[[dict[str, Any], str], object], least: int = 1) -> Any:
    """Change an update in a block with at least `least` trained experts."""

    def spoil(header: dict[str, Any], tensors: Tensors) -> object:
        own = [key for key, ids in header["experts"].items() if len(ids) >= least]
        return change(header, own[0]) if own else False

    return of(spoil)


def listed(name: str, change: Callable[[list[Any]], object], least: int = 1) -> Any:
    """Replace a block's list of this name in an update."""
    return block(lambda h, key: h[name].update({key: change(h[name][key])}) if key in h[name] else False, least)


def table(name: str, change: Callable[[dict[str, Any]], object]) -> Any:
    """Replace a table of an update's header."""
    return of(lambda h, t: h.update({name: change(h[name])}))


def container(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes | None]:
    """Change the declarations of a message's tensors."""

    def spoil(message: bytes) -> bytes | None:
        outer, data = taken_apart(message)
        return None if change(outer) is False else put_together(outer, data)

    return spoil


def declared(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes | None]:
    """Change the declaration of one tensor that is not empty."""

    def spoil(outer: dict[str, Any]) -> object:
        names = [n for n, info in outer.items() if n != "__metadata__" and math.prod(info["shape"]) > 0]
        return change(outer[names[0]]) if names else False

    return container(spoil)


def text(change: Callable[[str], str]) -> Callable[[bytes], bytes]:
    """Replace the JSON of a message's update."""

    def spoil(message: bytes) -> bytes:
        outer, data = taken_apart(message)
        outer["__metadata__"]["header"] = change(outer["__metadata__"]["header"])
        return put_together(outer, data)

    return spoil


def sums(name: str, change: Callable[[torch.Tensor], object]) -> Any:
    """Change the feature statistics of an update."""
    return of(lambda h, t: change(t[f"sums.{name}"]) if f"sums.{name}" in t else False)


def whole(tensors: Tensors) -> None:
    """Send the whole Gram matrix of four features instead of one triangle."""
    tensors["sums.gram"] = torch.ones(5, 5)


def longer(tensors: Tensors) -> None:
    """Add a row for another example."""
    tensors["sums.factor"] = torch.cat([tensors["sums.factor"], torch.zeros_like(tensors["sums.factor"][:1])])


def held(message: bytes) -> int:
    """The number of bytes of a message's tensors."""
    return len(taken_apart(message)[1])


NAN, INF = float("nan"), float("inf")
DEEP = '{"a":' * 50 + "1" + "}" * 50
JSON, SHAPE, BLOCKS = r"is not an fftmoe update: .*JSON", r"its tensor .*; expected \{", r"for each of the blocks"
# Name -> a function that spoils an honest message, or returns None; and the reason of the rejection.
KINDS: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    # As a message.
    "empty": (lambda m: b"", r"has 0 bytes"),
    "tiny": (lambda m: b"\x02\0\0", r"has 3 bytes"),
    "oversized": (lambda m: m + bytes(2**16), r"has [\d,]+ bytes; at most [\d,]+ are allowed"),
    "truncated header": (lambda m: m[:50], r"has 50 bytes, and says that [\d,]+ of them are a header"),
    "truncated tensors": (lambda m: m[:-4] if unpack(m)[1] else None, r"has [\d,]+ bytes of tensors; expected [\d,]+"),
    "more tensors than declared": (lambda m: m + bytes(4), r"has [\d,]+ bytes of tensors; expected [\d,]+"),
    "random bytes": (lambda m: np.random.default_rng(3).bytes(len(m)), r"says that [\d,]+ of them are a header"),
    "random header": (lambda m: m[:8] + np.random.default_rng(3).bytes(len(m) - 8), JSON.removesuffix(".*JSON")),
    "pickle": (lambda m: pickle.dumps({"round": 2})[:200], r"says that [\d,]+ of them are a header"),
    "long header": (
        lambda m: put_together(" " * (len(m) - 8), b"") if held(m) > 3000 else None,
        r"a header of [\d,]+ bytes",
    ),
    # As JSON.
    "no JSON": (lambda m: put_together("{]", b""), r"is not an fftmoe update: Expecting"),
    "a list": (lambda m: put_together("[]", b""), r"its JSON is \[\]; expected an object"),
    "deep container": (lambda m: put_together(DEEP, b""), r"nested 50 deep; at most 3"),
    "deep update": (text(lambda _: DEEP), r"nested 50 deep; at most 3"),
    "brackets in names": (text(lambda s: s[:-1] + ',"a\\"]":[[[]]]}'), r"nested 4 deep"),
    "a name twice": (text(lambda s: s[:-1] + ',"round":2}'), r"the name .* twice"),
    "a tensor twice": (lambda m: put_together('{"a":1,"a":1}', b""), r"the name 'a' twice"),
    "NaN": (text(lambda s: re.sub(r'"num_examples":\d+', '"num_examples":NaN', s)), r"NaN, which is not a number"),
    "Infinity": (text(lambda s: re.sub(r'"num_examples":\d+', '"num_examples":-Infinity', s)), r"-Infinity, which"),
    "huge integer": (text(lambda s: s.replace('"round":', '"round":1' + "0" * 600)), r"states round 10{5}"),
    "no metadata": (container(lambda outer: outer.pop("__metadata__")), r"its metadata is None"),
    "other metadata": (container(lambda outer: outer["__metadata__"].update(a="b")), r"its metadata is"),
    "metadata without text": (container(lambda outer: outer.update(__metadata__={"header": 3})), r"its metadata is"),
    "update is a list": (text(lambda _: "[]"), r"its JSON is \[\]"),
    "a field more": (say(weight=1), r"header of its update is .*fields"),
    "a field less": (of(lambda h, t: h.pop("metrics")), r"header of its update is .*fields"),
    # As an answer to the plan.
    "another round": (of(lambda h, t: h.update(round=h["round"] + 1)), r"states round \d; expected \d"),
    "round with a point": (of(lambda h, t: h.update(round=float(h["round"]))), r"states round \d\.0; expected \d"),
    "no round": (say(round=None), r"states round None"),
    "another client": (of(lambda h, t: h.update(client_id=h["client_id"] + 1)), r"states client_id \d; expected \d"),
    "client is true": (say(client_id=True), r"states client_id True"),
    "client as text": (of(lambda h, t: h.update(client_id=str(h["client_id"]))), r"states client_id '\d'"),
    "another backbone": (say(made_on="0123456789abcdef"), r"another backbone .* made_on '0123456789abcdef'; expected "),
    "no backbone": (say(made_on=None), r"another backbone .* made_on None; expected [0-9a-f]{16}"),
    # Experts, and what goes with them.
    "foreign expert": (listed("experts", lambda ids: [*ids[:-1], 99]), r"its experts of block \d are .* ascending"),
    "negative expert": (listed("experts", lambda ids: [-1, *ids[1:]]), r"its experts of block \d are .* ascending"),
    "expert twice": (listed("experts", lambda ids: [ids[0], *ids[:-1]], 2), r"its experts of block .* ascending"),
    "experts unsorted": (listed("experts", lambda ids: ids[::-1], 2), r"its experts of block .* ascending"),
    "expert is true": (listed("experts", lambda ids: [True, *ids[1:]]), r"; expected ints"),
    "expert is nothing": (listed("experts", lambda ids: [None]), r"; expected ints"),
    "experts are text": (listed("experts", lambda ids: "12"), r"; expected ints"),
    "expert without rows": (listed("experts", lambda ids: ids[:-1]), r"its shares of block"),
    "rows without expert": (
        block(lambda h, k: (h["experts"][k].pop(), h["shares"][k].pop())),
        SHAPE,
    ),
    "block more": (table("experts", lambda own: own | {"97": []}), BLOCKS),
    "block less": (block(lambda h, key: h["experts"].pop(key)), BLOCKS),
    "block with a zero": (block(lambda h, key: h["experts"].update({"0" + key: h["experts"].pop(key)})), BLOCKS),
    "experts are a list": (table("experts", lambda own: []), BLOCKS),
    "shares too large": (listed("shares", lambda own: [1e9] * len(own)), r"its shares of block"),
    "share below zero": (listed("shares", lambda own: [-0.1, *own[1:]]), r"its shares of block"),
    "share without end": (listed("shares", lambda own: [INF] * len(own)), r"Infinity, which is not a number"),
    "share beyond floats": (
        text(lambda s: re.sub(r'("shares":\{"\d":\[)[\d.e-]+', r"\g<1>1e999", s) if '"shares":{"' in s else DEEP),
        r"its shares of block|nested|1e999, which is not a number",
    ),
    "too few shares": (listed("shares", lambda own: own[:-1]), r"its shares of block"),
    "share is an integer": (listed("shares", lambda own: [0] * len(own)), r"; expected floats"),
    "shares of no block": (table("shares", lambda own: own | {"x": []}), BLOCKS),
    "preference foreign": (listed("preferences", lambda ids: [*ids, 99]), r"its preferences of block"),
    "preference twice": (listed("preferences", lambda ids: [*ids, ids[0]]), r"its preferences of block"),
    "preferences without its own": (listed("preferences", lambda ids: []), r"its preferences of block"),
    "preference with a point": (listed("preferences", lambda ids: [*map(float, ids)]), r"; expected ints"),
    "preferences of no block": (table("preferences", lambda own: own | {"97": [0]}), BLOCKS),
    # Metrics.
    "metric unknown": (table("metrics", lambda own: own | {"accuracy": 1.0}), r"its metrics are"),
    "metrics are a list": (table("metrics", lambda own: ["loss"]), r"its metrics are"),
    "loss is an integer": (table("metrics", lambda own: own | {"loss": 1} if own else False), r"its (loss|metrics)"),
    "loss is true": (table("metrics", lambda own: own | {"loss": True}), r"its (loss|metrics)"),
    "loss too large": (table("metrics", lambda own: own | {"loss": 1e300}), r"its (loss|metrics)"),
    "accuracy above one": (
        table("metrics", lambda own: own | {"holdout_accuracy": 1.1}),
        r"its holdout_accuracy is 1.1; expected a number from 0 to 1|its metrics are",
    ),
    "no accuracy": (
        of(lambda h, t: h["metrics"].pop("holdout_accuracy", False) is not False),
        r"its metrics are",
    ),
    # Tensors.
    "another shape": (tensor(lambda t: torch.cat([t.flatten(), t.flatten()[:1]])), SHAPE),
    "another shape, as large": (tensor(lambda t: t[None]), SHAPE),
    "another dtype": (tensor(lambda t: t.half()), SHAPE),
    "integers": (tensor(lambda t: t.to(torch.int32)), SHAPE),
    "a tensor less": (of(lambda h, t: t.popitem() if t else False), r"lacks the tensors \['"),
    "a tensor more": (
        of(lambda h, t: t.update({"head.gate": torch.ones(2)})),
        r"lacks .* has the unexpected tensors \['head.gate'\]",
    ),
    "a name of another block": (
        of(lambda h, t: t.update({"blocks.0.up": torch.ones(2)})),
        r"has the unexpected tensors \['blocks.0.up'\]",
    ),
    "dtype unknown": (declared(lambda info: info.update(dtype="F5")), SHAPE),
    "shape is text": (declared(lambda info: info.update(shape="x")), SHAPE),
    "shape with points": (declared(lambda info: info.update(shape=[*map(float, info["shape"])])), r"cannot be read"),
    "a note on a tensor": (declared(lambda info: info.update(note=1)), SHAPE),
    "no offsets": (declared(lambda info: info.pop("data_offsets")), r"cannot be read"),
    "offsets beyond": (declared(lambda info: info.update(data_offsets=[0, 2**62])), r"cannot be read"),
    "offsets backwards": (declared(lambda info: info["data_offsets"].reverse()), r"cannot be read"),
    "tensor is a number": (container(lambda o: o.update({max(o): 3}) if len(o) > 1 else False), SHAPE),
    # Numbers.
    "not a number": (number(NAN), r"has numbers from nan to nan"),
    "infinite": (number(INF), r"to inf; expected numbers"),
    "infinite below zero": (number(-INF), r"from -inf"),
    "very large": (
        number(3e16, lambda n, t: t.is_floating_point() and not is_scale(n) and n != VALIDATION),
        r"to (3e|2\.9)\S+16; expected numbers",
    ),
    "scale below zero": (number(-1.0, lambda n, t: is_scale(n)), r":scale has numbers from -1 to"),
    "scale not a number": (number(NAN, lambda n, t: is_scale(n)), r":scale has numbers from nan"),
    "scale very large": (number(1e15, lambda n, t: is_scale(n)), r":scale has .* to 1e\+15; expected numbers"),
    "a level that is none": (number(-128, lambda n, t: t.dtype == torch.int8), r"has numbers from -128"),
    # The weight.
    "weight zero": (say(num_examples=0), r"num_examples 0; expected (\d+|a whole number from 1)"),
    "weight negative": (say(num_examples=-7), r"num_examples -7; expected (\d+|a whole number from 1)"),
    "weight of one more": (
        of(lambda h, t: h.update(num_examples=h["num_examples"] + 1)),
        r"num_examples \d+; expected",
    ),
    "weight huge": (say(num_examples=10**30), r"num_examples 10{5}"),
    "weight is true": (say(num_examples=True), r"num_examples True"),
    "weight with a point": (of(lambda h, t: h.update(num_examples=h["num_examples"] / 1)), r"num_examples \d+\.0"),
    "weight is a list": (say(num_examples=[3]), r"num_examples \[3\]"),
    # Sums.
    "sums not a number": (sums("gram", lambda g: g.view(-1)[3:4].fill_(NAN)), r"has numbers from nan"),
    "sums whole, not half": (of(lambda h, t: whole(t) if "sums.gram" in t else False), SHAPE),
    "square below zero": (
        sums("gram", lambda g: g[:1].neg_()),
        r"larger than its sums of squares allow; expected .* Cauchy-Schwarz",
    ),
    "product above squares": (
        sums("gram", lambda g: g[1:2].fill_(1e6)),
        r"larger than its sums of squares allow; expected .* Cauchy-Schwarz",
    ),
    "label below zero": (
        sums("moment", lambda m: m[-1, :2].add_(torch.tensor([1.0, -1.0]) * (1 + m[-1].sum()))),
        r"larger than its sums of squares allow; expected .* Cauchy-Schwarz",
    ),
    "half a label": (
        sums("moment", lambda m: m[-1, :2].add_(torch.tensor([0.5, -0.5]))),
        r"feature statistics count .*; expected whole numbers",
    ),
    "a label too many": (sums("moment", lambda m: m[-1, :1].add_(1)), r"sums by label do not add up"),
    "features without examples": (sums("moment", lambda m: m[:1].add_(1)), r"sums by label do not add up"),
    "examples too many": (
        sums("gram", lambda g: g[-1:].add_(1)),
        r"examples in its feature statistics is \d+; expected \d+",
    ),
    # Sums of few examples, as rows.
    "rows not a number": (sums("factor", lambda r: r[1, :1].fill_(NAN)), r"has numbers from nan"),
    "a row more": (of(lambda h, t: longer(t) if "sums.factor" in t else False), SHAPE),
    "rows of more examples": (
        sums("factor", lambda r: r[0, -1:].mul_(1.5)),
        r"examples in its feature statistics is \d+.*; expected \d+",
    ),
    "rows of other features": (sums("factor", lambda r: r[0, :1].add_(1)), r"sums by label do not add up"),
}
