"""Makes the sections of a run's page as plain values; the template `run.html.j2` holds their text."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fftmoe.data.roles import LANGUAGE_TASKS
from fftmoe.report import run_figures
from fftmoe.report.answer import COMMONEST, compared
from fftmoe.report.block_maps import usage_by_block
from fftmoe.report.load import LoadWatch, describe_alarm
from fftmoe.report.marks import Figure
from fftmoe.report.metric import (
    NO_VALUE,
    Metric,
    answers_of_clients,
    client_names,
    own_values,
    personal_values,
    values_of_clients,
)
from fftmoe.report.own_data import CHOICES, own_data_rows
from fftmoe.report.progress import size
from fftmoe.report.record import RunRecord

FAULTS_SHOWN = 50
ALARMS_SHOWN = 20

Pairs = list[tuple[str, Any]]
TextRows = list[tuple[str, ...]]


@dataclass(frozen=True)
class ClientsView:
    """Holds what is known about the clients' own values; without rows the server knows nothing."""

    rows: TextRows
    tiers: Pairs
    figure: Figure | None
    metric: str
    measured_on: str
    private: bool
    header: tuple[str, ...] = ()
    each: TextRows = field(default_factory=list)
    own_data: TextRows = field(default_factory=list)


@dataclass(frozen=True)
class ExpertsView:
    """Holds alarms and maps of the experts' load; `hidden` in private mode, where the server does not know it.

    `recovered`: there were alarms, and the model that is kept is not worse than its best.
    """

    hidden: bool
    alarms: list[str]
    num_alarms: int
    recovered: bool
    loads: list[Figure]
    usage: list[Figure]


@dataclass(frozen=True)
class CostsView:
    """Holds a row for each tier, whether its seconds were predicted, and the memory of the run as text."""

    rows: TextRows
    timed: bool
    peak_mib: float | None
    expected_mib: float | None


@dataclass(frozen=True)
class FaultsView:
    """Holds faults by kind as text, the first of them one by one, and how many more there are."""

    counts: str
    rows: TextRows
    num_more: int


@dataclass(frozen=True)
class PrivacyView:
    """Holds the smallest number of clients in a sum, and what differential privacy spent and added."""

    min_contributors: Any
    spent: Pairs


def measured_on(run: RunRecord) -> str:
    """Return what data the run's metric was measured on."""
    if run.capabilities and run.capabilities.personal:
        return "mean of the clients' own models on common test data"
    return "on all test data"


def clients(run: RunRecord) -> ClientsView | None:
    """Return the clients' own values; None for a run that has not finished."""
    metric, summary = run.metric, run.summary
    if not summary:
        return None
    rows: TextRows = [
        (text, *(metric.text(own[name]) if name in own else "" for name in ("mean", "worst_decile")))
        for key, text in own_values(summary, metric).items()
        if (own := summary[key])
    ]
    by_tier = summary.get(f"{metric.name}_by_tier", {})
    tiers = [(f"{metric.label} as tier {name} would use it", metric.text(value)) for name, value in by_tier.items()]
    return ClientsView(
        rows,
        tiers,
        run_figures.client_values(run),
        metric.label,
        measured_on(run),
        run.private,
        *_each_client(run),
        own_data_rows(summary, metric),
    )


def _each_client(run: RunRecord) -> tuple[tuple[str, ...], TextRows]:
    """Return the header and the rows of a table of all clients by name, those that gain least over training alone
    first; no rows where single clients are not listed.
    """
    metric, listed = run.metric, run.summary.get("clients", {})
    values, alone = values_of_clients(run.summary, metric), listed.get("alone")
    ways = {metric.label: values, "personal answers": personal_values(run.summary), "trained alone": alone}
    known = {title: own for title, own in ways.items() if own}
    chosen = listed.get("answer")
    header = ("client", "tier", *(["its personal answers"] if chosen else []), *known)
    if not values:
        return header, []
    tiers = listed.get("tier", ())
    kinds = [[tier] for tier in tiers]
    if chosen:
        kinds = [[tier, CHOICES.get(own or "", NO_VALUE)] for tier, own in zip(tiers, chosen, strict=True)]
    rows = [*zip(client_names(run.summary), kinds, *known.values(), strict=True)]
    if alone:
        answers = answers_of_clients(run.summary, metric)
        order = sorted(range(len(rows)), key=lambda place: _gain(metric, answers[place], alone[place]))
        rows = [rows[place] for place in order]
    return header, [
        (name, *kind, *(NO_VALUE if value is None else metric.text(value) for value in own))
        for name, kind, *own in rows
    ]


def _gain(metric: Metric, answers: float | None, alone: float | None) -> float:
    """Return by how much a client's answers are better than training alone; those of which nobody knows come last."""
    return math.inf if answers is None or alone is None else metric.gain(answers, alone)


def baselines(run: RunRecord) -> TextRows:
    """Return the result and every baseline: what it is, its value, its interval, and what the comparison says."""
    metric, summary = run.metric, run.summary
    language = run.setting("backbone.task") in LANGUAGE_TASKS
    others = compared(summary, untrained=language)
    measured = any(each.value is not None and each.name != COMMONEST for each in others)
    asked = run.setting("evaluation.baselines") or measured
    if not asked or not others or summary.get(metric.name) is None:
        return []
    own = (
        "this run",
        metric.text(summary[metric.name]),
        interval_text(summary.get(f"{metric.name}_interval"), metric),
        "",
    )
    said = {"better": "the run is better", "worse": "the run is worse", "level": "not clearly different", "": ""}
    return [
        own,
        *(
            (each.what, metric.text(each.value), interval_text(each.interval, metric), said[each.result])
            if each.value is not None
            else (each.what, NO_VALUE, NO_VALUE, each.reason)
            for each in others
        ),
    ]


def interval_text(interval: Any, metric: Metric) -> str:
    """Return an interval as text."""
    if not interval or any(end is None for end in interval):
        return NO_VALUE
    return f"{metric.text(interval[0])} to {metric.text(interval[1])}"


def experts(run: RunRecord) -> ExpertsView | None:
    """Return how evenly experts were used, and by whom; None for a method without experts."""
    if run.private and run.capabilities and run.capabilities.trains == "experts":
        return ExpertsView(True, [], 0, False, [], [])
    overall, loads = run_figures.effective_number(run), run_figures.expert_loads(run)
    if overall is None:
        return None
    watch = LoadWatch(run.rows)
    alarms = watch.alarms
    recovered = bool(alarms) and not watch.lasting(run.summary.get(run.metric.name), run.metric)
    shown = [f"{describe_alarm(found)}." for found in alarms[:ALARMS_SHOWN]]
    usage = [*usage_by_block(run), *run_figures.expert_usage(run)]
    return ExpertsView(False, shown, len(alarms), recovered, [overall, *loads], usage)


def costs(run: RunRecord) -> CostsView:
    """Return what one client of each tier sends, computes and holds in a round: as planned and as measured."""
    summary = run.summary
    planned, measured = summary.get("predicted_by_tier", {}), summary.get("per_client_round_by_tier", {})
    timed = summary.get("prediction", {})
    rows: TextRows = []
    for tier in dict.fromkeys((*planned, *measured)):
        cost, found = planned.get(tier, {}), measured.get(tier, {})
        seconds = timed.get(tier, {}).get("seconds_per_client_round", {}).get("predicted")
        rows.append(
            (
                tier,
                f"{found.get('client_rounds', 0):.0f}",
                _planned_and_measured(cost.get("bytes_down"), found.get("bytes_down"), size),
                _planned_and_measured(cost.get("bytes_up"), found.get("bytes_up"), size),
                _planned_and_measured(seconds, found.get("seconds"), "{:.2f}".format),
                size(cost["training_bytes"]) if cost else NO_VALUE,
                f"{cost['flops_per_token'] / 1e6:.2f}" if cost else NO_VALUE,
            )
        )
    return CostsView(rows, bool(timed), summary.get("peak_rss_mib"), summary.get("expected_rss_mib"))


def _planned_and_measured(planned: float | None, measured: float | None, show: Callable[[float], str]) -> str:
    if planned is None:
        return NO_VALUE if measured is None else show(measured)
    return f"{show(planned)} → {NO_VALUE if measured is None else show(measured)}"


def faults(run: RunRecord) -> FaultsView | None:
    """Return what went wrong with clients; None if nothing did."""
    counts = run.rows[-1].get("fault_counts", {}) if run.rows else {}
    if not counts:
        return None
    recorded = [(row["round"], fault) for row in run.rows for fault in row.get("faults", ())]
    rows: TextRows = [
        (f"round {t}", run.client_name(f["client_id"]), f["kind"], f["reason"]) for t, f in recorded[:FAULTS_SHOWN]
    ]
    text = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()) if number)
    return FaultsView(text, rows, max(0, len(recorded) - FAULTS_SHOWN))


def account(run: RunRecord) -> Mapping[str, Any]:
    """Return what differential privacy has spent, of clients or of single examples; empty for other runs."""
    spent = run.summary.get("privacy", {})
    return spent.get("examples", spent)


def privacy(run: RunRecord) -> PrivacyView | None:
    """Return what a private run keeps from the server, and what it spent; None for a run that is not private."""
    if not run.private:
        return None
    spent, values = account(run), []
    if "epsilon" in spent:
        whose = "example" if run.setting("privacy.examples") else "client"
        early = "; the run ended early, to stay within its budget" if spent["stopped_early"] else ""
        values = [
            (
                f"epsilon of {'an' if whose == 'example' else 'a'} {whose}",
                f"{spent['epsilon']:.3f} at delta {spent['delta']:g}{early}",
            ),
            ("compared are federations in which", spent.get("adjacency", "?")),
            ("noise", f"{spent['noise_multiplier']:.4g} times the clip norm"),
        ]
        if "clip_norm" in spent:
            values.append(("clip norm", f"{spent['clip_norm']:.4g}"))
        where = "a step" if whose == "example" else "a round"
        values.append((f"{whose}s are in {where}", f"with probability {spent['sampling_rate']:.3g}"))
    return PrivacyView(run.setting("privacy.min_contributors", "?"), values)


def robustness(run: RunRecord) -> Pairs:
    """Return the settings of a robust run, and how many updates it rejected; empty for other runs."""
    mode = run.config.get("robustness")
    if not isinstance(mode, Mapping):
        return []
    rejected = run.rows[-1].get("fault_counts", {}).get("rejected", 0) if run.rows else 0
    return [*((key.replace("_", " "), value) for key, value in mode.items()), ("updates rejected", rejected)]
