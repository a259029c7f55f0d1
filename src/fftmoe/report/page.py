"""Makes `report.html`: one run on one page, the outcome first, from what the run's folder records."""

from collections import Counter
from typing import Any

from fftmoe.data.roles import LANGUAGE_TASKS
from fftmoe.report import run_figures, sections
from fftmoe.report.answer import COMMONEST, answer, compared
from fftmoe.report.constant import never_given
from fftmoe.report.labels import labels
from fftmoe.report.load import RULE, LoadWatch, describe_alarm
from fftmoe.report.marks import Figure
from fftmoe.report.metric import EXPLAINED, OWN_ROWS, REWEIGHTED, are_reweighted, own_mean
from fftmoe.report.next_step import next_step
from fftmoe.report.progress import duration, size
from fftmoe.report.record import RunRecord, with_noun
from fftmoe.report.render import Page, render_page
from fftmoe.report.verdict import ended_badly, sentence
from fftmoe.shown import count_of
from fftmoe.strict import yaml_text

WARNED_ALARMS = 3  # alarms at the top of the page; its section on experts lists more


def report_page(run: RunRecord) -> Page:
    """Return the page of a run, which needs no network and no script, and the numbers of its figures."""
    return render_page("run.html.j2", _parts(run))


def _parts(run: RunRecord) -> dict[str, Any]:
    """Return what the page shows, by the names of the template."""
    name, rows = str(run.setting("name", "run")), run.rows
    return dict(
        title=f"{name}: {run.setting('method', '?')}, seed {run.setting('seed', '?')}",
        name=name,
        sentence=_what_was_run(run),
        answer=_answer(run),
        next_step=next_step(run),
        baselines=sections.baselines(run),
        metric=run.metric.label,
        warnings=_warnings(run),
        outcome=_outcome_cards(run),
        learning=_drawn(run_figures.learning(run), run_figures.loss(run)),
        labels=labels(run),
        clients=sections.clients(run),
        experts=sections.experts(run),
        alarm_rule=RULE,
        costs=sections.costs(run),
        traffic=_drawn(run_figures.traffic(run)),
        phases=_drawn(run_figures.phases(run)),
        client_time=duration(rows[-1]["client_seconds"]) if rows and "client_seconds" in rows[-1] else "",
        faults=sections.faults(run),
        hides_costs=bool(rows) and "bytes_up" not in rows[-1],
        privacy=sections.privacy(run),
        epsilon=_drawn(run_figures.epsilon(run)),
        robustness=sections.robustness(run),
        environment=list(run.summary.get("environment", {}).items()),
        recipe=yaml_text(dict(run.config), allow_unicode=True),
    )


def _drawn(*figures: Figure | None) -> list[Figure]:
    """Return the figures that have something to show."""
    return [figure for figure in figures if figure is not None]


def _answer(run: RunRecord) -> str:
    """Return what the run reaches, against which baselines, and who gains; empty for a run without baselines."""
    found = answer(run.summary, untrained=run.setting("backbone.task") in LANGUAGE_TASKS)
    return f"{found[0].upper()}{found[1:]}." if found else ""


def _what_was_run(run: RunRecord) -> str:
    """Return one sentence about the method, the backbone, the data and the federation."""
    partition = run.config.get("partition", {})
    not_shown = ("kind", "num_clients", "min_examples")
    skew = [f"{k.replace('_', ' ')} {v}" for k, v in partition.items() if k not in not_shown and v is not None]
    split = ", ".join([str(partition.get("kind", "?")), *skew])
    clients = run.summary.get("num_clients") or partition.get("num_clients")
    among = with_noun(clients, "client") if clients else "its natural clients"
    names = ("method", "backbone.model", "data.source", "federation.rounds", "federation.clients_per_round", "seed")
    method, backbone, source, rounds, cohort, seed = (run.setting(name, "?") for name in names)
    rounds = with_noun(rounds, "round")
    what = f"{method} adapts {backbone} to {source}"
    if run.capabilities is not None and run.capabilities.pools_data:
        return f"{what}: all training data in one place, {rounds}, seed {seed}."
    return f"{what}: {among} ({split}), {rounds} of {cohort}, seed {seed}."


def _warnings(run: RunRecord) -> list[str]:
    """Return what nobody should overlook: an unfinished run, lost rounds, names that are nearly equal,
    collapsed experts.
    """
    lines = []
    if not run.summary:
        done, planned = (run.rows[-1]["round"] if run.rows else 0), run.setting("federation.rounds", "?")
        lines.append(f"This run has not finished: it is after round {done} of {planned}.")
    if lost := _rounds_lost(run):
        what = f"rows of rounds {', '.join(map(str, lost))} are" if len(lost) > 1 else f"row of round {lost[0]} is"
        lines.append(f"The {what} damaged or missing in metrics.jsonl, and left out here.")
    lines += [f"A change was accepted {change}." for change in run.summary.get("accepted_changes", ())]
    if sections.account(run).get("stopped_early"):
        lines.append("The run ended early, because another round would have exceeded its privacy budget.")
    if ended_badly(run.summary):
        lines.append(f"{sentence(run.summary)}.")
    if void := run.summary.get("rounds_void", sum("void" in row for row in run.rows)):
        lines.append(f"{with_noun(void, 'round')} changed nothing: too few valid updates{_kinds(run)}.")
    if any(each.name == COMMONEST and each.result in ("level", "worse") for each in compared(run.summary)):
        lines += [f"{missed}." for missed in (never_given(run.summary),) if missed]
    lines += [f"{note}." for note in run.summary.get("notes", ())]
    alarms = LoadWatch(run.rows).lasting(run.summary.get(run.metric.name), run.metric)
    lines += [f"{describe_alarm(found)}." for found in alarms[:WARNED_ALARMS]]
    if len(alarms) > WARNED_ALARMS:
        lines.append(f"… and {count_of(len(alarms) - WARNED_ALARMS, 'more alarm')} about the load of experts, below.")
    return [line[0].upper() + line[1:] for line in lines]


def _kinds(run: RunRecord) -> str:
    """Return what became of the clients of void rounds, by kind of fault."""
    kinds = Counter(fault["kind"] for row in run.rows if "void" in row for fault in row.get("faults", ()))
    return f" ({', '.join(f'{number} {kind}' for kind, number in sorted(kinds.items()))})" if kinds else ""


def _rounds_lost(run: RunRecord) -> list[int]:
    """Return the rounds before the last row that have no row."""
    present = {row["round"] for row in run.rows}
    return [round for round in range(max(present, default=0)) if round not in present]


def _outcome_cards(run: RunRecord) -> list[tuple[str, str]]:
    """Return (value, what it is): the metric, what the federation gained, the worst clients, and what the run cost."""
    metric, summary = run.metric, run.summary
    shown: list[tuple[str, str]] = []
    value, curve = summary.get(metric.name), metric.curve(run.rows)
    if value is not None:
        shown.append((metric.text(value), f"{metric.label}, {sections.measured_on(run)}"))
    elif curve:
        shown.append((metric.text(curve[-1][1]), f"{metric.label} after round {curve[-1][0]}"))
    if summary.get("r2") is not None:
        shown.append((f"R² {metric.text(summary['r2'])}", EXPLAINED))
    if value is not None and (local := summary.get(f"local_only_{metric.name}")):
        what = f"{sections.measured_on(run)} ({metric.text(local['mean'])} on average)"
        shown.append((f"{metric.gain(value, local['mean']):+.3f}", f"gain over local training, {what}"))
    if (worst := own_mean(summary, metric)) and "worst_decile" in worst:
        rows = REWEIGHTED if are_reweighted(summary, metric) else OWN_ROWS
        shown.append((metric.text(worst["worst_decile"]), f"worst tenth of the clients, {rows}"))
    if run.epsilon:
        whose = "examples" if run.setting("privacy.examples") else "clients"
        delta = run.privacy_settings.get("delta") or 0
        shown.append((f"ε {run.epsilon[-1][1]:.2f}", f"privacy of {whose} spent, at delta {delta:g}"))
    if run.rows:
        last = run.rows[-1]
        if "bytes_up" in last:
            shown.append((size(last["bytes_up"]), f"sent by clients; {size(last['bytes_down'])} sent to them"))
        seconds = summary.get("seconds", last.get("seconds"))
        spent = str(last["round"]) if seconds is None else duration(seconds)
        rounds = with_noun(last["round"], "round")
        shown.append((spent, rounds.split()[1] if seconds is None else f"for {rounds}"))
    return shown
