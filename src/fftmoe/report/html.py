"""One self-contained page per run: the outcome, the curves, who uses which expert."""

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from fftmoe.report.progress import size

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}td,th{{padding:.2rem .8rem .2rem 0;text-align:left}}
svg{{max-width:100%;height:auto}}</style>
<h1>{title}</h1><table>{outcome}</table>
<h2>Accuracy and bytes</h2>{curves}
{load}
</html>
"""


# Measured on each client's own label mix, as far as the recipe asked for it.
OWN_MIX = {
    "client_accuracy": "on each client's own label mix",
    "personal_accuracy": "… with its own experts and router",
    "local_only_client_accuracy": "… trained alone",
}


def report_page(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], load: Mapping[str, Tensor]) -> str:
    """The text of `report.html`; it needs no network."""
    facts = {
        "accuracy on all test data": f"{summary['accuracy']:.3f}",
        **{f"… as tier {name}": f"{value:.3f}" for name, value in summary["accuracy_by_tier"].items()},
        **_own_mix(summary),
        **_local_only(summary),
        **_privacy(summary),
        "rounds": str(summary["rounds_completed"]),
        "bytes down / up": f"{size(summary['bytes_down'])} / {size(summary['bytes_up'])}",
        "seconds": f"{summary['seconds']:.0f}",
    }
    outcome = "".join(f"<tr><td>{html.escape(k)}</td><th>{html.escape(v)}</th></tr>" for k, v in facts.items())
    title = html.escape(f"{summary['method']}, seed {summary['seed']}")
    return _PAGE.format(title=title, outcome=outcome, curves=_svg(_curves(rows)), load=_load(load))


def _own_mix(summary: Mapping[str, Any]) -> dict[str, str]:
    """What is known of the clients on their own label mixes."""
    return {
        f"{name}, {statistic.replace('_', ' ')}": f"{summary[key][statistic]:.3f}"
        for key, name in OWN_MIX.items()
        if key in summary
        for statistic in ("mean", "worst_decile")
    }


def _privacy(summary: Mapping[str, Any]) -> dict[str, str]:
    spent = summary.get("privacy", {})
    if "epsilon" not in spent:
        return {}
    early = "; the run ended early, to spend no more" if spent["stopped_early"] else ""
    return {"epsilon of a client": f"{spent['epsilon']:.3f} at delta {spent['delta']:g}{early}"}


def _local_only(summary: Mapping[str, Any]) -> dict[str, str]:
    alone = summary.get("local_only_accuracy")
    return {"a client that trains alone, on all labels, mean": f"{alone['mean']:.3f}"} if alone else {}


def _curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    measured = [(row["round"], row["accuracy"]) for row in rows if row["accuracy"] is not None]
    left.plot(*zip(*measured, strict=True), marker="o", color="#1f5fa8")
    left.set(xlabel="round", ylabel="accuracy", ylim=(0, 1))
    for key, label, color in (("bytes_down", "down", "#1f5fa8"), ("bytes_up", "up", "#c2571a")):
        right.plot([r["round"] for r in rows], [r[key] / 2**20 for r in rows], label=label, color=color)
    right.set(xlabel="round", ylabel="MiB so far")
    right.legend(frameon=False)
    return figure


def _load(load: Mapping[str, Tensor]) -> str:
    """Nothing for a method without experts."""
    if not load:
        return ""
    explained = "Share of routed slots, moving average over rounds; even use is 1/M."
    return f"<h2>Load of each expert</h2><p>{explained}</p>{_svg(_load_map(load))}"


def _load_map(load: Mapping[str, Tensor]) -> Figure:
    names = sorted(load, key=lambda name: int(name.split(".")[1]))
    values = np.stack([load[name].numpy() for name in names])
    figure = Figure(figsize=(8, 0.6 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0)
    axes.set(xlabel="expert", yticks=range(len(names)), yticklabels=[n.replace("blocks.", "block ") for n in names])
    figure.colorbar(image)
    return figure


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
