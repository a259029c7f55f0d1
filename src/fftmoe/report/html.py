"""`report.html`: one run on one page, the outcome first, made from what its folder keeps of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fftmoe.report import run_figures
from fftmoe.report.load import RULE, LoadWatch, describe
from fftmoe.report.page import (
    alarm,
    cards,
    facts,
    figures,
    heading,
    page,
    paragraph,
    preformatted,
    section,
    subsection,
    table,
)
from fftmoe.report.progress import duration, size
from fftmoe.report.run import Run

FAULTS_SHOWN = 50
ALARMS_SHOWN = 20
# Measured on each client's own label mix, as far as the recipe asked for it.
OWN_MIX = {
    "client_accuracy": "on each client's own label mix",
    "personal_accuracy": "… with its own experts and router",
    "local_only_client_accuracy": "… trained alone",
}


def report_page(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None) -> str:
    """The text of the page; it needs no network and no script.

    Args:
        config: the resolved recipe. rows: of `metrics.jsonl`.
        summary: of `summary.json`; None of a run that has not finished.
    """
    run = Run(config, rows, summary or {})
    body = "".join(
        (
            _outcome(run),
            section("Learning curve", figures(run_figures.learning(run), run_figures.loss(run))),
            section("Clients", *_clients(run)),
            section("Experts", *_experts(run)),
            section("Budgets and costs", *_costs(run)),
            section("Where the time went", figures(run_figures.phases(run)), paragraph(_time_note(run), note=True)),
            section("Faults", *_faults(run)),
            section("Privacy", *_privacy(run)),
            section("Malicious clients", *_robustness(run)),
            section("To do it again", *_reproduce(run)),
        )
    )
    return page(f"{run.setting('name', 'run')}: {run.setting('method', '?')}, seed {run.setting('seed', '?')}", body)


def _outcome(run: Run) -> str:
    metric, summary = run.metric, run.summary
    shown: list[tuple[str, str]] = []
    curve = metric.curve(run.rows)
    if (value := summary.get(metric.name)) is not None:
        shown.append((metric.text(value), f"{metric.label}, {_measured_on(run)}"))
    elif curve:
        shown.append((metric.text(curve[-1][1]), f"{metric.label} after round {curve[-1][0]}"))
    shown += _against_alone(run)
    if worst := summary.get(f"client_{metric.name}"):
        shown.append((metric.text(worst["worst_decile"]), "worst tenth of the clients, each on its own label mix"))
    if epsilon := _epsilon(run):
        shown.append((f"ε {epsilon[-1][1]:.2f}", f"privacy spent, at delta {run.setting('privacy.delta', 0):g}"))
    if run.rows:
        last = run.rows[-1]
        shown.append((size(last["bytes_up"]), f"sent by clients; {size(last['bytes_down'])} sent to them"))
        shown.append((duration(summary.get("seconds", last["seconds"])), f"for {last['round']} rounds"))
    return heading(str(run.setting("name", "run")), _what_was_run(run)) + alarm(_warnings(run)) + cards(shown)


def _what_was_run(run: Run) -> str:
    """One sentence."""
    partition = run.config.get("partition", {})
    how = [f"{key.replace('_', ' ')} {value}" for key, value in partition.items() if _says_skew(key, value)]
    split = ", ".join([str(partition.get("kind", "?")), *how])
    clients = run.summary.get("num_clients") or partition.get("num_clients") or "its natural"
    names = ("method", "backbone.model", "data.source", "federation.rounds", "federation.clients_per_round", "seed")
    method, backbone, source, rounds, cohort, seed = (run.setting(name, "?") for name in names)
    what = f"{method} adapts {backbone} to {source}"
    return f"{what}: {clients} clients ({split}), {rounds} rounds of {cohort}, seed {seed}."


def _says_skew(key: str, value: Any) -> bool:
    return key not in ("kind", "num_clients", "min_examples") and value is not None


def _measured_on(run: Run) -> str:
    if run.setting("method") == "local-only":
        return "mean of the clients' own models on common test data"
    return "on all test data"


def _against_alone(run: Run) -> list[tuple[str, str]]:
    metric = run.metric
    alone, value = run.summary.get(f"local_only_{metric.name}"), run.summary.get(metric.name)
    if not alone or value is None:
        return []
    gain = value - alone["mean"]
    told = f"against a client that trains alone, {_measured_on(run)} ({metric.text(alone['mean'])} on average)"
    return [(f"{gain:+.3f}", told)]


def _warnings(run: Run) -> list[str]:
    lines = []
    if not run.summary:
        done, planned = (run.rows[-1]["round"] if run.rows else 0), run.setting("federation.rounds", "?")
        lines.append(f"This run has not finished: it is after round {done} of {planned}.")
    if run.summary.get("privacy", {}).get("stopped_early"):
        lines.append("The run ended early, to spend no more privacy than it was allowed.")
    if void := run.summary.get("rounds_void", sum("void" in row for row in run.rows)):
        lines.append(f"{void} rounds changed nothing: too few clients answered.")
    alarms = LoadWatch(run.rows).alarms
    lines += [f"{describe(found)}." for found in alarms[:3]]
    if len(alarms) > 3:
        lines.append(f"… and {len(alarms) - 3} more alarms of the experts' load, below.")
    return [line[0].upper() + line[1:] for line in lines]


def _clients(run: Run) -> list[str]:
    metric, summary = run.metric, run.summary
    known = {key.replace("accuracy", metric.name): text for key, text in OWN_MIX.items()}
    rows = [
        (text, metric.text(summary[key]["mean"]), metric.text(summary[key]["worst_decile"]))
        for key, text in known.items()
        if key in summary
    ]
    if not summary:
        return []
    if not rows:
        return [paragraph("Clients' own values are not known to the server: their data is elsewhere.", note=True)]
    by_tier = summary.get(f"{metric.name}_by_tier", {})
    tiers = {f"{metric.label} as tier {name} would use it": metric.text(value) for name, value in by_tier.items()}
    left_out = "Values of single clients are not kept in private mode." if run.private else ""
    return [
        paragraph(left_out, note=True),
        figures(run_figures.clients(run)),
        table((metric.label, "mean of clients", "worst tenth"), rows),
        paragraph(f"The global model, {_measured_on(run)}:" if tiers else ""),
        facts(tiers),
    ]


def _experts(run: Run) -> list[str]:
    if run.private and run.setting("method") == "fft-moe":
        return [paragraph("Routing of single clients is not known to the server in private mode.", note=True)]
    drawn = figures(run_figures.effective(run), *run_figures.loads(run))
    if not drawn:
        return []
    alarms = LoadWatch(run.rows).alarms
    listed = [f"Alarms: {len(alarms)}.", *(f"{describe(found)}." for found in alarms[:ALARMS_SHOWN])]
    if not alarms:
        listed = ["No alarm of collapse."]
    return [paragraph(RULE, note=True), *map(paragraph, listed), drawn, figures(*run_figures.usage(run))]


def _costs(run: Run) -> list[str]:
    planned, timed = run.summary.get("predicted_by_tier", {}), run.summary.get("prediction", {})
    measured = run.summary.get("per_client_round_by_tier", {})
    rows = []
    for tier in dict.fromkeys((*planned, *measured)):
        cost, found = planned.get(tier, {}), measured.get(tier, {})
        rows.append(
            (
                tier,
                f"{found.get('client_rounds', 0):.0f}",
                _beside(cost.get("bytes_down"), found.get("bytes_down"), size),
                _beside(cost.get("bytes_up"), found.get("bytes_up"), size),
                _beside(_timed(timed, tier), found.get("seconds"), "{:.2f}".format),
                size(cost["training_bytes"]) if cost else "–",
                f"{cost['flops_per_token'] / 1e6:.2f}" if cost else "–",
            )
        )
    header = (
        "tier",
        "times trained",
        "down, plan → measured",
        "up, plan → measured",
        "seconds, timed → measured" if timed else "seconds",
        "memory",
        "MFLOP a token",
    )
    notes = (
        "Of one client in one round, mean. Plan: the first round's message down, and at most as much up. Memory: "
        "adapter and head with gradients and AdamW moments; MFLOP: of the adapter, forward and backward; both of the "
        "plan."
    )
    told = paragraph(notes + _memory(run), note=True) if rows else ""
    return [table(header, rows), told, figures(run_figures.traffic(run))]


def _memory(run: Run) -> str:
    """What the run's processes held."""
    expected, peak = run.summary.get("expected_rss_mib"), run.summary.get("peak_rss_mib")
    if not peak:
        return ""
    before = f"; {expected:.0f} MiB was expected after a few timed steps" if expected else ""
    return f" All processes of the run, backbone and data included, took {peak:.0f} MiB at their peak{before}."


def _timed(predictions: Mapping[str, Any], tier: str) -> float | None:
    """Seconds of a client's round as they were timed before the run."""
    return predictions.get(tier, {}).get("seconds_per_client_round", {}).get("predicted")


def _beside(planned: float | None, measured: float | None, show: Any) -> str:
    if planned is None:
        return "–" if measured is None else show(measured)
    return f"{show(planned)} → {'–' if measured is None else show(measured)}"


def _time_note(run: Run) -> str:
    if not run.rows:
        return ""
    return (
        f"Clients computed for {duration(run.rows[-1]['client_seconds'])} in all, side by side where there are several "
        "workers. “Clients and merging” is from the first message of a round to its new global model."
    )


def _faults(run: Run) -> list[str]:
    noted = [(row["round"], fault) for row in run.rows for fault in row.get("faults", ())]
    counts = run.rows[-1].get("fault_counts", {}) if run.rows else {}
    if not counts:
        return [paragraph("None: every client that was asked has answered in time, with an update that was used.")]
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()) if count)
    rows = [(f"round {t}", str(f["client_id"]), f["kind"], f["reason"]) for t, f in noted[:FAULTS_SHOWN]]
    more = f"… and {len(noted) - FAULTS_SHOWN} more; metrics.jsonl has them all." * (len(noted) > FAULTS_SHOWN)
    return [paragraph(f"{told}."), table(("when", "client", "kind", "reason"), rows), paragraph(more, note=True)]


def _epsilon(run: Run) -> list[tuple[float, float]]:
    return [(row["round"], row["epsilon"]) for row in run.rows if "epsilon" in row]


def _privacy(run: Run) -> list[str]:
    if not run.private:
        return []
    spent = run.summary.get("privacy", {})
    told = f"The server keeps sums over {run.setting('privacy.min_contributors', '?')} clients or more, and no update."
    values: dict[str, str] = {}
    if "epsilon" in spent:
        early = "; the run ended early, to spend no more" if spent["stopped_early"] else ""
        values["epsilon of a client"] = f"{spent['epsilon']:.3f} at delta {spent['delta']:g}{early}"
        values["noise"] = f"{spent['noise_multiplier']:.4g} times the clip norm"
        values["clip norm"] = f"{spent['clip_norm']:.4g}"
        values["a client is in a round"] = f"with probability {spent['sampling_rate']:.3g}"
    return [paragraph(told), facts(values), figures(run_figures.epsilon(_epsilon(run), run.setting("privacy.epsilon")))]


def _robustness(run: Run) -> list[str]:
    mode = run.config.get("robustness")
    if not isinstance(mode, Mapping):
        return []
    rejected = run.rows[-1].get("fault_counts", {}).get("rejected", 0) if run.rows else 0
    values = {key.replace("_", " "): value for key, value in mode.items()}
    return [facts({**values, "updates rejected": rejected})]


def _reproduce(run: Run) -> list[str]:
    made = run.summary.get("environment", {})
    return [
        paragraph("Save the recipe below, or take config.yaml of the run's folder, and type:"),
        preformatted("fftmoe run config.yaml --output again"),
        facts(made),
        "" if made else paragraph("The environment is noted when a run has finished.", note=True),
        subsection(
            "The resolved recipe",
            preformatted(yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)),
        ),
    ]
