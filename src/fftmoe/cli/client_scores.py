"""Writes lines about what a language model reaches on each client's own test rows, and about what it writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from fftmoe.shown import count_of, shown_on_a_line

STAGES = ("before", "alone", "together", "personal")
TITLES = {"exact_match": "exact match", "rouge_l": "ROUGE-L", "option_accuracy": "option accuracy"}
CLIENTS_SCORED = 20
WIDTH = 100  # of a text that is shown


def client_score_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return a table with a row for each client, the first twenty of more;
    nothing where clients were not measured so.
    """
    clients: Mapping[str, Mapping[str, Mapping[str, float]]] = summary.get("before_and_after", {})
    if not clients:
        return []
    stages = [stage for stage in STAGES if any(stage in own for own in clients.values())]
    names = [summary["metric"], *TITLES]
    scores = [name for name in names if any(name in own["together"] for own in clients.values())]
    first = max(len("client"), *(len(shown_on_a_line(name)) for name in clients)) + 2
    width = 10
    lines = [
        "\non each client's own test rows:",
        " " * first + "".join(f"{TITLES.get(name, name):<{width * len(stages) + 2}}" for name in scores),
        f"{'client':<{first}}" + "  ".join("".join(f"{stage:<{width}}" for stage in stages) for _ in scores),
    ]
    for name, own in list(clients.items())[:CLIENTS_SCORED]:
        cells = ["".join(f"{_number(own.get(stage, {}).get(score)):<{width}}" for stage in stages) for score in scores]
        lines.append(f"{shown_on_a_line(name):<{first}}" + "  ".join(cells))
    if len(clients) > CLIENTS_SCORED:
        lines.append(f"… and {count_of(len(clients) - CLIENTS_SCORED, 'more client')} in summary.json")
    return [line.rstrip() for line in lines]


def sample_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the prompts that are shown, each with its completion and with what was written before and after."""
    samples: Sequence[Mapping[str, str]] = summary.get("samples", ())
    lines = []
    for sample in samples:
        lines += [f"\nprompt      {_cut(sample['prompt'])}", f"completion  {_cut(sample['completion'])}"]
        lines += [f"before      {_cut(sample['before'])}", f"after       {_cut(sample['after'])}"]
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _cut(text: str) -> str:
    """Return the text on one line, without its middle where it is long;
    a question is often at its beginning or its end.
    """
    line = shown_on_a_line(" ".join(text.split()))
    return line if len(line) <= WIDTH else f"{line[: WIDTH // 2]} … {line[-WIDTH // 2 :]}"
