"""Says what clients have on their own data: alone, with the common model, and with their personal answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from fftmoe.report.metric import OWN_ROWS, REWEIGHTED, Metric, are_reweighted
from fftmoe.shown import count_of

WAYS = {
    "alone": "training alone",
    "global": "the common model",
    "own_model": "clients' own models",
    "personal": "personal answers",
}
CHOICES = {
    "common": "the common model's, as they are",
    "corrected": "corrected for its labels",
    "private part": "with a private part",
}
"""What a client may choose as its personal answers, as the summary names it, in words."""


def own_data_rows(summary: Mapping[str, Any], metric: Metric) -> list[tuple[str, str, str]]:
    """Return what each way gives on clients' own data, the mean over the clients, and the worst client's value."""
    own = summary.get("own_data", {})
    return [
        (text, metric.text(own[way]["mean"]), metric.text(own[way]["worst"]))
        for way, text in WAYS.items()
        if way in own
    ]


def own_data_lines(summary: Mapping[str, Any], metric: Metric) -> list[str]:
    """Return the same as lines, and how many clients lose nothing by taking part; nothing where nobody knows."""
    rows = own_data_rows(summary, metric)
    if not rows:
        return []
    width = max(len(text) for text, *_ in rows)
    where = REWEIGHTED if are_reweighted(summary, metric) else OWN_ROWS
    lines = [f"  {where}:", f"    {'':<{width}}   mean    worst client"]
    lines += [f"    {text:<{width}}   {mean:<6}  {worst}" for text, mean, worst in rows]
    lines += _choices(summary.get("clients", {}).get("answer", ()))
    gain = summary["own_data"].get("gain_over_alone")
    if gain is not None:
        kept, most = round(gain["share_of_clients"] * gain["num_clients"]), gain["num_clients"]
        lines.append(
            f"  {kept} of {count_of(most, 'client')} {'loses' if kept == 1 else 'lose'} nothing by taking part; the "
            f"gain over training alone is {gain['mean']:+.3f} in the mean and {gain['worst']:+.3f} for the worst client"
        )
    return lines


def _choices(chosen: Sequence[str | None]) -> list[str]:
    """Return how many clients chose each kind of personal answers, as one line; none where nobody chose."""
    counts = [(chosen.count(name), text) for name, text in CHOICES.items()]
    named = [f"{number} {text}" for number, text in counts if number]
    return [f"  personal answers are, by each client's own rows: {', '.join(named)}"] if named else []
