"""Find the fastest implementation of the mixture for each size: `python benchmarks/crossover.py [--device cuda]`.

The script times forward and backward of the mixture with a given routing, over sizes, number formats and evenness of
the load. It also computes the loss of the rule of `fftmoe.adapter.compute.choose` compared with always choosing the
fastest implementation.

Shape letters as in compute.py.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from common import RESULTS, machine, markdown, write_result
from fftmoe.adapter import compute as computes
from timing import device_name, fast_dtypes, interleave, use_device

FAST = ("wide", "grouped")
EXPERTS = (8, 16, 32, 64)
TOKENS = [256, 2048]
# By how much the router's logits favour some experts: the standard deviation between experts over that between tokens.
# 0 is an even load. 1 is the real one: in all-MiniLM-L6 the busiest of 16 experts gets 3 times the mean, of 64 experts
# 8 to 14 times, with a fresh router as with one that was trained with the balance loss.
SKEWS = (0.0, 1.0)


@dataclass(frozen=True)
class Point:
    """One size of the mixture."""

    experts: int
    expert_dim: int
    top_k: int
    tokens: int
    dtype: str
    skew: float


@dataclass(frozen=True)
class Timing:
    """Seconds by implementation at one point, median over rounds; and the busiest expert's load over the mean."""

    point: Point
    seconds: dict[str, float]
    spread: dict[str, tuple[float, float]]
    imbalance: float

    @property
    def best(self) -> str:
        """Return the fastest implementation."""
        return min(self.seconds, key=self.seconds.__getitem__)

    def loss(self, name: str) -> float:
        """Return how much longer `name` takes than the fastest: 0.1 is 10 %."""
        return self.seconds[name] / self.seconds[self.best] - 1


Rule = Callable[[Point], str]


def points(dtypes: Sequence[torch.dtype], tokens: Sequence[int]) -> list[Point]:
    grid = itertools.product(SKEWS, dtypes, tokens, (16, 32, 64), EXPERTS, (1, 2, 4, 8))
    return [
        Point(experts, expert_dim, top_k, num_tokens, str(dtype).removeprefix("torch."), skew)
        for skew, dtype, num_tokens, expert_dim, experts, top_k in grid
    ]


def measure(point: Point, dim: int, rounds: int, device: torch.device) -> Timing:
    g = torch.Generator().manual_seed(0)
    dtype: torch.dtype = getattr(torch, point.dtype)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return (std * torch.randn(*shape, generator=g)).to(device, dtype).requires_grad_()

    favour_M = point.skew * torch.special.ndtri((torch.arange(point.experts) + 0.5) / point.experts)
    logits_TM = torch.randn(point.tokens, point.experts, generator=g) + favour_M
    chosen = logits_TM.softmax(-1).topk(point.top_k)
    gates_TK, ids_TK = chosen.values.to(device, dtype).requires_grad_(), chosen.indices.to(device)
    x_TD, y_grad_TD = normal(point.tokens, dim), normal(point.tokens, dim).detach()
    up_MHD, down_MHD = (normal(point.experts, point.expert_dim, dim, std=dim**-0.5) for _ in range(2))

    def step(name: str) -> None:
        y_TD = computes.COMPUTES[name](x_TD, gates_TK, ids_TK, up_MHD, down_MHD, computes.ACTIVATIONS["gelu"])
        torch.autograd.grad(y_TD, (x_TD, gates_TK, up_MHD, down_MHD), y_grad_TD)

    seconds = interleave({name: partial(step, name) for name in FAST}, rounds, device, hopeless=2.0)
    counts_M = chosen.indices.flatten().bincount(minlength=point.experts).float()
    return Timing(
        point,
        {name: statistics.median(taken) for name, taken in seconds.items()},
        {name: (min(taken), max(taken)) for name, taken in seconds.items()},
        float(counts_M.max() / counts_M.mean()),
    )


def rule_in_code(device: torch.device, dim: int) -> Rule:
    def rule(p: Point) -> str:
        return computes.choose("auto", p.experts, p.expert_dim, p.top_k, dim, p.tokens, device, getattr(torch, p.dtype))

    return rule


def rule_of(slot_overhead: float) -> Rule:
    """Return the rule of `choose` with another constant."""
    return lambda p: "wide" if p.experts * p.expert_dim <= p.top_k * (p.expert_dim + slot_overhead) else "grouped"


def losses(timings: Sequence[Timing], rule: Rule) -> tuple[float, float]:
    """Return the loss of the rule compared with the fastest: on average, and at worst."""
    lost = [timing.loss(rule(timing.point)) for timing in timings]
    return statistics.fmean(lost), max(lost)


def fit(timings: Sequence[Timing]) -> float:
    """Return the constant with the least average loss on this machine."""
    return min(
        (float(b) for b in (*range(0, 128, 8), *range(128, 1025, 32))), key=lambda b: losses(timings, rule_of(b))
    )


def table(timings: Sequence[Timing], rule: Rule) -> str:
    """One row per M, H and K: each implementation's time over the fastest's, for each T and evenness."""
    places = sorted({(t.point.skew, t.point.tokens) for t in timings})
    rows: dict[tuple[int, int, int], dict[tuple[float, int], Timing]] = {}
    for t in timings:
        rows.setdefault((t.point.expert_dim, t.point.experts, t.point.top_k), {})[t.point.skew, t.point.tokens] = t
    lines = []
    for (expert_dim, experts, top_k), by_place in sorted(rows.items()):
        cells = [" / ".join(f"{by_place[place].loss(name) + 1:.2f}" for name in FAST) for place in places]
        lines.append([str(experts), str(expert_dim), str(top_k), rule(by_place[places[0]].point), *cells])
    header = ["M", "H", "K", "choose", *(f"T={tokens}, skew {skew:g}" for skew, tokens in places)]
    return markdown(header, lines)


def summary(timings: Sequence[Timing], rule: Rule) -> list[dict[str, Any]]:
    """Return, by dtype and evenness, how often each is the fastest, and the loss of the rules."""
    found = []
    for dtype in sorted({t.point.dtype for t in timings}, reverse=True):
        of_dtype = [t for t in timings if t.point.dtype == dtype]
        fitted = fit(of_dtype)
        for skew in SKEWS:
            some = [t for t in of_dtype if t.point.skew == skew]
            found.append(
                {
                    "dtype": dtype,
                    "skew": skew,
                    "points": len(some),
                    "busiest_over_mean": {
                        m: statistics.fmean(t.imbalance for t in some if t.point.experts == m) for m in EXPERTS
                    },
                    "fastest": {name: sum(t.best == name for t in some) for name in FAST},
                    "rule_in_code_loses": losses(some, rule),
                    "fitted_slot_overhead": fitted,
                    "fitted_rule_loses": losses(some, rule_of(fitted)),
                }
            )
    return found


def print_summary(found: Sequence[dict[str, Any]]) -> None:
    def lost(pair: tuple[float, float]) -> str:
        return f"{pair[0]:.1%} ({pair[1]:.0%})"

    header = ["dtype", "skew", f"busiest expert / mean, M={EXPERTS}", f"fastest: {' / '.join(FAST)}"]
    header += ["rule in code loses", "fitted overhead", "fitted rule loses"]
    rows = [
        [
            s["dtype"],
            f"{s['skew']:g}",
            ", ".join(f"{value:.1f}" for value in s["busiest_over_mean"].values()),
            " / ".join(str(s["fastest"][name]) for name in FAST),
            lost(s["rule_in_code_loses"]),
            f"{s['fitted_slot_overhead']:g}",
            lost(s["fitted_rule_loses"]),
        ]
        for s in found
    ]
    print("Losses: mean (worst) of the time beyond the fastest's.\n\n" + markdown(header, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=TOKENS,
        help="numbers of tokens; only the default's timings are written",
    )
    arguments = parser.parse_args()
    device = use_device(arguments.device)
    timings = [
        measure(p, arguments.dim, arguments.rounds, device) for p in points(fast_dtypes(device), arguments.tokens)
    ]
    rule = rule_in_code(device, arguments.dim)
    found = summary(timings, rule)
    for dtype in sorted({t.point.dtype for t in timings}, reverse=True):
        print(f"\n{dtype}: {' / '.join(FAST)}, each over the fastest\n")
        print(table([t for t in timings if t.point.dtype == dtype], rule), end="\n\n")
    print_summary(found)
    if arguments.tokens != TOKENS:
        return
    result = {
        "machine": machine(),
        "device": device_name(device),
        "dim": arguments.dim,
        "rounds": arguments.rounds,
        "summary": found,
        "timings": [asdict(t) for t in timings],
    }
    name = "crossover.json" if device.type == "cpu" else f"crossover-{device.type}.json"
    write_result(RESULTS / name, result, "timings")


if __name__ == "__main__":
    main()
