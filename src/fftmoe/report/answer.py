"""States the answer of a finished run: how good its result is, against which baselines, and who gains by it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fftmoe.report.chance import chance_margin, divided_by_chance
from fftmoe.report.constant import commonest
from fftmoe.report.metric import (
    Metric,
    answers_of_clients,
    are_reweighted,
    client_names,
    own_mean,
    personal_values,
)
from fftmoe.shown import count_of

NAMED = 5  # clients that a sentence names
WHAT = {
    "head_only": "the solved head alone",
    "alone": "training alone",
    "centralized": "training on all rows in one place",
}
UNTRAINED = "the backbone as it is"  # the baseline `head_only` of a language model, which has no head
COMMONEST = "commonest"  # the answer that needs no model, beside the baselines that a run measures


class Compared(NamedTuple):
    """Holds a baseline beside the result.

    Attributes:
        name: its key. what: it is, in words. value: None if it was not measured. reason: why not.
        interval: the 95 % interval of the value; None if it has none.
        result: `better`, `worse` or `level`, as the run is compared with it; empty without a value or an interval.
    """

    name: str
    what: str
    value: float | None
    interval: Sequence[float] | None
    result: str
    reason: str


def interval_of(summary: Mapping[str, Any], metric: Metric) -> Sequence[float] | None:
    """Return the 95 % interval of the result; None if it has none."""
    return _finite(summary.get(f"{metric.name}_interval"))


def _finite(interval: Any) -> Sequence[float] | None:
    ends = interval if isinstance(interval, list | tuple) else ()
    return interval if len(ends) == 2 and all(end is not None and math.isfinite(end) for end in ends) else None


def compared(summary: Mapping[str, Any], untrained: bool = False) -> list[Compared]:
    """Return every baseline of a summary, and the answer that needs no model.

    The result is better or worse by more than chance if the difference exceeds the `chance_margin` of the two. That is
    cautious, because most of the test rows are the same.

    Args:
        untrained: the model has no head, so that nothing was solved.
    """
    metric = Metric.of(summary)
    value, interval = summary.get(metric.name), interval_of(summary, metric)
    found = []
    for name, what in WHAT.items():
        entry = summary.get("baselines", {}).get(name)
        if entry is None:
            continue
        other, its = entry.get("value"), _finite(entry.get("interval"))
        result = ""
        if value is not None and other is not None and interval is not None and its is not None:
            margin = chance_margin(value, interval, other, its)
            gain = metric.gain(value, other)
            result = "level" if abs(gain) <= margin else "better" if gain > 0 else "worse"
        what = UNTRAINED if untrained and name == "head_only" else what
        found.append(Compared(name, what, other, its, result, entry.get("reason", "")))
    return found if value is None else found + _with_constant(summary, value, interval)


def _with_constant(summary: Mapping[str, Any], value: float, interval: Sequence[float] | None) -> list[Compared]:
    """Return the answer that needs no model beside the result, if there is one.

    Its value is that of these test rows, so the result is better or worse where its own interval leaves it out.
    """
    constant = commonest(summary)
    if constant is None:
        return []
    result = ""
    if interval is not None:
        low, high = interval
        result = "better" if constant.share < low else "worse" if constant.share > high else "level"
    return [Compared(COMMONEST, f"always answering {constant.label!r}", constant.share, None, result, "")]


def _is_passed(each: Compared) -> bool:
    """Return whether it is the answer without a model, and the result is better, which goes without saying."""
    return each.name == COMMONEST and each.result == "better"


_WORDS = {"better": "better than", "worse": "worse than", "level": "not clearly different from", "": "beside"}


def answer(summary: Mapping[str, Any], untrained: bool = False) -> str:
    """Return one sentence: the result with its interval, against each baseline, and who gains over training alone.

    It is empty for a summary without baselines that were measured.
    """
    metric = Metric.of(summary)
    value = summary.get(metric.name)
    others = [each for each in compared(summary, untrained) if each.value is not None and not _is_passed(each)]
    if value is None or not others:
        return ""
    by_words: dict[str, list[str]] = {}
    for each in others:
        assert each.value is not None
        by_words.setdefault(_WORDS[each.result], []).append(f"{each.what} ({metric.text(each.value)})")
    against = ", ".join(f"{words} {_joined(named)}" for words, named in by_words.items())
    found = f"{metric.label} {metric.text(value)}{_range(interval_of(summary, metric), metric)} is {against}"
    gains = who_gains(summary)
    return f"{found}; {gains}" if gains else found


def _range(interval: Sequence[float] | None, metric: Metric) -> str:
    return "" if interval is None else f" (95 % interval {metric.text(interval[0])} to {metric.text(interval[1])})"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


class Gains(NamedTuple):
    """Names the clients that the result helps, and those that are better by themselves, out of `measured`."""

    gain: list[str]
    lose: list[str]
    measured: int


def gains_of_clients(summary: Mapping[str, Any]) -> Gains:
    """Return which clients are better with their answers, personal ones where there are any, than by themselves, of
    those of which both are known.
    """
    metric = Metric.of(summary)
    pairs = [
        (name, metric.gain(shared, alone))
        for name, shared, alone in zip(
            client_names(summary),
            answers_of_clients(summary, metric),
            summary.get("clients", {}).get("alone", ()),
            strict=False,
        )
        if shared is not None and alone is not None
    ]
    return Gains([name for name, by in pairs if by > 0], [name for name, by in pairs if by < 0], len(pairs))


def who_gains(summary: Mapping[str, Any]) -> str:
    """Return which clients are better with the result than by themselves, in words; empty where nobody knows."""
    metric = Metric.of(summary)
    gain, lose, measured = gains_of_clients(summary)
    rows = "on test rows reweighted to its labels" if are_reweighted(summary, metric) else "on its own test rows"
    rows = f"with its personal answers {rows}" if personal_values(summary) else rows
    if not measured:
        return _mean_gain(summary, metric)
    if not gain and not lose:
        found = (
            f"{count_of(measured, 'client')} {'is' if measured == 1 else 'are'} level with training alone, each {rows}"
        )
    elif not gain:
        found = f"no client of {measured} gains over training alone, each {rows}"
    else:
        gains = "gains" if len(gain) == 1 else "gain"
        found = f"{len(gain)} of {count_of(measured, 'client')} {gains} over training alone, each {rows}"
    if gain and lose:
        found += f", and {_is_are(len(lose))} better alone ({_first(lose)})"
    elif gain and len(gain) < measured:
        found += f" ({_is_are(measured - len(gain))} level)"
    if gain and divided_by_chance(len(gain), len(lose)):
        found += ", and chance alone could give such numbers"
    left_out = len(summary["clients"]["alone"]) - measured
    return found + (f"; {left_out} more {'is' if left_out == 1 else 'are'} not compared" if left_out else "")


def _is_are(number: int) -> str:
    return f"{number} {'is' if number == 1 else 'are'}"


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _mean_gain(summary: Mapping[str, Any], metric: Metric) -> str:
    """Return whether clients gain on average, where single ones are not listed."""
    shared, alone = own_mean(summary, metric), own_mean(summary, metric, "local_only")
    if not shared or not alone:
        return ""
    better = metric.better(shared["mean"], alone["mean"])
    means = f"{metric.text(shared['mean'])} against {metric.text(alone['mean'])} alone"
    return f"clients {'gain' if better else 'do not gain'} over training alone on average ({means})"
