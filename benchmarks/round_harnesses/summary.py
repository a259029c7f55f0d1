"""From the seconds of each harness's rounds to what is said about them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

OURS, PLAIN, PFL, FLOWER = "fftmoe", "plain", "pfl", "flower"
LABELS = {PLAIN: "plain loop", PFL: "pfl-research", FLOWER: "Flower's simulation"}
# Of the distance of two final models to the way they went. Float addition in another order moves a few weights, and
# AdamW, which divides each gradient by its own size, makes much of the smallest; another fit would be at 1.
SAME_FIT = 0.01

Row = tuple[str, ...]
Runs = Mapping[str, Sequence[Sequence[float]]]  # harness -> repetition -> seconds of each round


class Ratio(NamedTuple):
    """Of the median rounds of two harnesses: the median over the repetitions, the least and the greatest."""

    median: float
    least: float
    greatest: float


def ratio(runs: Runs, of: str, to: str) -> Ratio | None:
    """Each repetition ran the two close to each other in time, so they are compared within it; None if one is missing.

    Repetitions that only one of them finished do not count; `runs` has an empty list of seconds there.
    """
    pairs = zip(runs.get(of, ()), runs.get(to, ()), strict=False)
    ratios = [statistics.median(a) / statistics.median(b) for a, b in pairs if a and b]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def round_seconds(runs: Runs, harness: str) -> list[float]:
    """The median round of each finished repetition."""
    return [statistics.median(seconds) for seconds in runs.get(harness, ()) if seconds]


def distance(model: Mapping[str, Tensor], ours: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> float:
    """|model - ours| / |ours - initial|: 0 for the same fit, about 1 for another."""
    assert model.keys() == ours.keys() == initial.keys()
    apart = torch.cat([(model[name] - ours[name]).flatten() for name in ours]).double().norm()
    moved = torch.cat([(ours[name] - initial[name]).flatten() for name in ours]).double().norm()
    return float(apart / moved)


def rounds_table(runs: Runs, distances: Mapping[str, float], failed: Mapping[str, str]) -> tuple[Row, list[Row]]:
    """The header and a row for each harness, also for one that failed."""
    header = ("harness", "ms a round", "times the plain loop", "ms beside the plain loop", "distance to our model")
    plain = round_seconds(runs, PLAIN)
    rows = []
    for name in dict.fromkeys((*runs, *failed)):
        own = round_seconds(runs, name)
        if not own:
            rows.append((f"{LABELS.get(name, name)}: did not run", "–", "–", "–", "–"))
            continue
        beside = f"{1e3 * (statistics.median(own) - statistics.median(plain)):+.0f}" if plain else "–"
        apart = f"{distances[name]:.1e}" if name in distances else "–"
        label = LABELS.get(name, name) + (" (failed at times)" if name in failed else "")
        rows.append((label, _milliseconds(own), _written(ratio(runs, name, PLAIN)), beside, apart))
    return header, rows


def goals_table(runs: Runs) -> tuple[Row, list[Row]]:
    """What was hoped for beside what was measured; a goal is met if its median is."""
    goals = (
        ("fftmoe / plain loop: at most 1", ratio(runs, OURS, PLAIN), lambda r: r.median <= 1),
        ("fftmoe / pfl-research: at most 1", ratio(runs, OURS, PFL), lambda r: r.median <= 1),
        ("Flower's simulation / fftmoe: at least 20", ratio(runs, FLOWER, OURS), lambda r: r.median >= 20),
    )
    rows = []
    for name, measured, met in goals:
        verdict = "not measured" if measured is None else "met" if met(measured) else "missed"
        rows.append((name, _written(measured), verdict))
    return ("goal", "measured", "verdict"), rows


def parts_table(seconds: Mapping[str, float]) -> tuple[Row, list[Row]]:
    """Where the time of our round goes, the largest part first."""
    total = sum(seconds.values())
    ranked = sorted(seconds.items(), key=lambda item: -item[1])
    rows = [(part, f"{1e3 * taken:.1f}", f"{taken / total:.0%}") for part, taken in ranked]
    return ("part of our round", "ms", "share"), [*rows, ("all", f"{1e3 * total:.1f}", "100%")]


def result(
    runs: Runs, distances: Mapping[str, float], failed: Mapping[str, str], parts: Mapping[str, Any], **facts: Any
) -> dict[str, Any]:
    """The JSON that is kept; `facts` say where and on what it was measured."""
    ratios = {name: found._asdict() for name in runs if (found := ratio(runs, name, PLAIN))}
    return {
        **facts,
        "round_seconds": {name: [round(s, 6) for s in round_seconds(runs, name)] for name in runs},
        "ratio_to_plain": ratios,
        "distance_to_ours": dict(distances),
        "failed": dict(failed),
        "parts_of_our_round": dict(parts),
    }


def problems(distances: Mapping[str, float], failed: Mapping[str, str]) -> list[str]:
    """Why the table is not whole or does not compare like with like; empty when all is well."""
    apart = [f"{name} did another fit: distance {d:.2g}" for name, d in distances.items() if not d <= SAME_FIT]
    return [*(f"{name}: {reason}" for name, reason in failed.items()), *apart]


def _milliseconds(seconds: Sequence[float]) -> str:
    middle, least, greatest = (1e3 * f(seconds) for f in (statistics.median, min, max))
    return f"{middle:.0f} ({least:.0f} to {greatest:.0f})"


def _written(found: Ratio | None) -> str:
    return "–" if found is None else f"{found.median:.2f} ({found.least:.2f} to {found.greatest:.2f})"
