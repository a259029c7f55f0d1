"""Recipes, rows and summaries of runs, and checks that every page must pass."""

import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

import fftmoe.comparison.page as compared
from fftmoe.comparison.statistics import Comparison
from fftmoe.report import page
from fftmoe.report.record import RunRecord

VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = "<script>alert('x')</script>&\"'"


def config(**changes: Any) -> dict[str, Any]:
    """The parts of a resolved recipe that a page reads."""
    return {
        "name": "tiny",
        "seed": 3,
        "backbone": {"model": "builtin:minilm"},
        "data": {"source": "builtin:stdlib-docs"},
        "partition": {"kind": "dirichlet", "num_clients": 7, "alpha": 0.1, "min_examples": None},
        "method": "fft-moe",
        "adapter": {"num_experts": 5},
        "federation": {"rounds": 3, "clients_per_round": 2},
        "evaluation": {"baselines": "off", "max_examples": None},
        **changes,
    }


def rows(metric: str = "accuracy", values: tuple[float | None, ...] = (0.25, None, 0.5, 0.75)) -> list[dict[str, Any]]:
    """Four rows of a run with two adapted blocks."""
    loads = ([0.2] * 5, [0.01, 0.29, 0.3, 0.2, 0.2], [0.0, 0.9, 0.1, 0.0, 0.0])
    return [
        {
            "round": t,
            "metric": metric,
            metric: value,
            **({"train_loss": 2.0 - t / 2} if t else {}),
            **({"load": {"4": loads[0], "11": loads[t - 1]}} if t else {}),
            **({"experts": {"1": {"4": ["13", "11"], "11": ["3", "0"]}, "6": {"4": ["1f", "1f"]}}} if t else {}),
            "bytes_down": 3 * 2**20 * t,
            "bytes_up": 2**20 * t,
            "client_seconds": 7.0 * t,
            "seconds": 5.0 * t + 1,
            "phase_seconds": {"clients": 3.0, "head": 0.0, "evaluation": 1.5, "checkpoint": 0.25},
        }
        for t, value in enumerate(values)
    ]


def summary(metric: str = "accuracy", **changes: Any) -> dict[str, Any]:
    """The summary of the run with these rows."""
    each = {"client_rounds": 3.0, "bytes_down": 2.0**20, "bytes_up": 2.0**19, "seconds": 1.25}
    plan = {"bytes_down": 2**20, "bytes_up": 2**20, "training_bytes": 5 * 2**20, "flops_per_token": 3_000_000}
    return {
        "metric": metric,
        "method": "fft-moe",
        "seed": 3,
        "rounds_completed": 3,
        "num_clients": 7,
        metric: 0.75,
        f"{metric}_by_tier": {"small": 0.5, "large": 0.75},
        f"client_{metric}": {"mean": 0.7, "worst_decile": 0.125},
        "clients": {"tier": ["small", "large"] * 3 + ["small"], metric: [0.125, 0.5, 0.75, None, 0.9, 0.25, 0.6]},
        "predicted_by_tier": {"small": plan, "large": plan},
        "per_client_round_by_tier": {"small": each, "large": each},
        "environment": {"fftmoe": "0.1.0", "python": "3.11.2"},
        "bytes_down": 9 * 2**20,
        "bytes_up": 3 * 2**20,
        "rounds_void": 0,
        "seconds": 18.0,
        "peak_rss_mib": 512.0,
        **changes,
    }


def report_page(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None) -> str:
    """The HTML of the page of a run."""
    return page.report_page(RunRecord(config, rows, summary or {})).html


def comparison_page(comparison: Comparison) -> str:
    """The HTML of the page of a comparison."""
    return compared.comparison_page(comparison).html


class Structure(HTMLParser):
    """Reads a page as strictly as XML: every element must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data.strip("\n")  # the line breaks between elements are no text
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


def structure_of(page: str) -> Structure:
    """The elements, headings and text of a page.

    Raises:
        AssertionError: it is not well-formed, would load something, or has a figure without words.
    """
    found = Structure()
    found.feed(page)
    found.close()
    assert found.open == []
    assert external_loads(page) == []
    for tag, attributes in found.elements:
        assert tag not in ("script", "img", "iframe", "object")
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "svg" and attributes.get("aria-hidden") != "true":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    return found


def external_loads(page: str) -> list[str]:
    """The addresses that a browser would load."""
    inside = re.findall(r"""(?:src|href|action|poster|\sdata)\s*=\s*["']?([^"'#\s>]+)""", page)
    inside = [address for address in inside if not address.startswith("data:")]  # in the page itself
    return inside + re.findall(r"url\(([^#)][^)]*)\)|@import", page)
