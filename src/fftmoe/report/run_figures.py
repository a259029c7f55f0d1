"""Draws the figures of a run's page, from what the run recorded."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fftmoe.report.block_maps import BLOCKS_SHOWN, MAPPED_CLIENTS, ROUNDS_SHOWN, effective_map
from fftmoe.report.draw import Column, Level, Line, bar_figure, column_figure, line_figure, thinned
from fftmoe.report.heat_map import HeatMap
from fftmoe.report.load import EFFECTIVE, effective_experts
from fftmoe.report.marks import COLOURS, DASHES, INK, Figure
from fftmoe.report.metric import are_reweighted, client_names, own_mean, values_of_clients
from fftmoe.report.progress import size
from fftmoe.report.record import RunRecord, with_noun
from fftmoe.report.usage import RECORDED_CLIENTS, Counts, count
from fftmoe.shown import count_of

LINED_BLOCKS = 12  # more have no room for a name beside each line
PHASES = {
    "clients": "clients and merging",
    "head": "computing the head",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
}
FULL_SHADE = 3  # times the even share of an expert


def learning(run: RunRecord) -> Figure | None:
    """Draw the metric over rounds, with the level that local training reaches."""
    metric, levels = run.metric, []
    if local := run.summary.get(f"local_only_{metric.name}"):
        levels.append(Level("local training, mean", local["mean"], colour=1))
    bound = run.summary.get("baselines", {}).get("centralized", {}).get("value")
    if bound is not None:
        levels.append(Level("all rows in one place", bound, colour=2))
    floor, ceiling = metric.bounds
    points = metric.curve(run.rows)
    sample = run.setting("evaluation.max_examples")
    notes = (
        [f"During the run on a sample of {with_noun(sample, 'test row')}, after the last round on all."]
        if sample
        else []
    )
    if (best := run.summary.get("best_round")) is not None:
        notes.append(f"The model of round {best} is kept, by the validation rows.")
    return line_figure(
        metric.label.capitalize(),
        [Line("global model", points), *_validation(run)],
        across="round",
        levels=levels,
        show=metric.text if metric.lower_is_better else "{:.3g}".format,
        floor=floor,
        ceiling=ceiling,
        note=" ".join(notes),
    )


def _validation(run: RunRecord) -> list[Line]:
    """Return the metric on the rows that clients have set aside; none where there are no such rows."""
    key = f"validation_{run.metric.name}"
    points = [(row["round"], row[key]) for row in run.rows if row.get(key) is not None]
    return [Line("validation", points, 2, 1)] if points else []


def loss(run: RunRecord) -> Figure | None:
    """Draw the clients' mean training loss over rounds."""
    points = [(row["round"], row["train_loss"]) for row in run.rows if row.get("train_loss") is not None]
    lines = [Line("mean of the cohort", points, 3)]
    return line_figure("Training loss", lines, across="round", show="{:.3g}".format)


def client_values(run: RunRecord) -> Figure | None:
    """Draw the value of every client, sorted; percentiles where there are very many clients."""
    metric, recorded = run.metric, run.summary.get("clients", {})
    title = f"{metric.label.capitalize()} of every client {_measured_on(run)}"
    levels = _client_levels(run)
    if values := values_of_clients(run.summary, metric):
        tiers = list(dict.fromkeys((*run.summary.get(f"{metric.name}_by_tier", ()), *recorded["tier"])))
        each = zip(values, recorded["tier"], client_names(run.summary), strict=True)
        ordered = sorted(Column(value, tiers.index(tier), name) for value, tier, name in each if value is not None)
        return column_figure(
            title,
            ordered,
            kinds=tiers,
            whose="client",
            across=f"{count_of(len(ordered), 'client')}, sorted",
            levels=levels,
        )
    if percentiles := recorded.get("percentiles"):
        lines = [Line("clients", list(enumerate(percentiles)))]
        return line_figure(title, lines, across="percentile of the clients", levels=levels)
    return None


def _measured_on(run: RunRecord) -> str:
    """Say on which test rows a client's own value was measured."""
    if are_reweighted(run.summary, run.metric):
        return "on test rows reweighted to its labels"
    return "on its own test rows"


def _client_levels(run: RunRecord) -> list[Level]:
    metric, levels = run.metric, []
    if own := own_mean(run.summary, metric):
        levels.append(Level("mean", own["mean"], INK, 0))
        if "worst_decile" in own:
            levels.append(Level("worst tenth", own["worst_decile"], INK, 1))
    if local := own_mean(run.summary, metric, "local_only"):
        levels.append(Level("local training, mean", local["mean"], INK, 2))
    return levels


def effective_number(run: RunRecord) -> Figure | None:
    """Draw the effective number of experts of every block over rounds, and the level below which the load is uneven.

    A few blocks are lines, and many are rows of a map.
    """
    by_block: dict[int, list[tuple[float, float]]] = {}
    num_experts = 0
    for row in run.rows:
        for block, shares in row.get("load", {}).items():
            by_block.setdefault(int(block), []).append((row["round"], effective_experts(shares)))
            num_experts = len(shares)
    if len(by_block) > LINED_BLOCKS:
        return effective_map(by_block, num_experts)
    lines = [
        Line(f"block {block}", points, place, place // COLOURS % len(DASHES))
        for place, (block, points) in enumerate(sorted(by_block.items()))
    ]
    level = Level(f"uneven below {EFFECTIVE * num_experts:g} of {num_experts}", EFFECTIVE * num_experts, 4)
    return line_figure("Effective number of experts", lines, across="round", levels=[level], floor=0)


def expert_loads(run: RunRecord) -> list[Figure]:
    """Draw a map for each of the most uneven blocks: experts by rounds, shaded by the share of routed tokens."""
    rows = [row for row in run.rows if row.get("load")]
    if not rows:
        return []
    rows, last = thinned(rows, ROUNDS_SHOWN), rows[-1]["load"]
    uneven = sorted(sorted(last, key=int), key=lambda block: effective_experts(last[block]))
    shown = sorted(uneven[:BLOCKS_SHOWN], key=int)
    drawn = [_load_map(block, rows) for block in shown]
    if len(shown) < len(last):
        drawn[-1] = replace(
            drawn[-1], note=f"The {BLOCKS_SHOWN} most uneven of {count_of(len(last), 'block')} are shown."
        )
    return [each.figure() for each in drawn]


def _load_map(block: str, rows: Sequence[Any]) -> HeatMap:
    last = rows[-1]["load"][block]
    num_experts = len(last)
    shares = {
        (expert, place): share
        for place, row in enumerate(rows)
        for expert, share in enumerate(row["load"].get(block, ()))
    }
    return HeatMap(
        f"Load of each expert, block {block}",
        f"Load of the {count_of(num_experts, 'expert')} of block {block} over rounds; at the end from {min(last):.3f} "
        f"to {max(last):.3f} of the routed tokens, where {1 / num_experts:.3f} would be even.",
        shares,
        [str(expert) for expert in range(num_experts)],
        [str(row["round"]) for row in rows],
        across="round",
        down="expert",
        full=FULL_SHADE / num_experts,
        show="{:.3f} of the routed tokens".format,
        legend=(("none", 0.0), ("its even share 1/M", 3 / 8), ("three times as much, or more", 1.0)),
    )


def expert_usage(run: RunRecord) -> list[Figure]:
    """Draw a map for each of the last blocks: clients by experts,
    shaded by the share of its rounds a client trained it.
    """
    blocks = count(run.rows)
    num_experts = int(run.setting("adapter.num_experts", 1))
    shown = list(blocks.items())[-BLOCKS_SHOWN:]
    drawn = [_usage_map(run, block, counts, num_experts) for block, counts in shown]
    if drawn:
        drawn[0] = replace(drawn[0], note=_usage_note(shown[0][1], len(blocks)))
    return [each.figure() for each in drawn]


def _usage_note(counts: Counts, num_blocks: int) -> str:
    notes, num_clients = [], len(counts.rounds)
    if num_clients > MAPPED_CLIENTS:
        notes.append(f"The {MAPPED_CLIENTS} clients with most rounds, of {num_clients}.")
    if num_blocks > BLOCKS_SHOWN:
        notes.append(f"The last {BLOCKS_SHOWN} of {count_of(num_blocks, 'block')}.")
    if num_clients >= RECORDED_CLIENTS:
        notes.append(f"In each round, at most {RECORDED_CLIENTS} clients are recorded.")
    return " ".join(notes)


def _usage_map(run: RunRecord, block: int, counts: Counts, num_experts: int) -> HeatMap:
    busiest = sorted(counts.rounds, key=lambda client: (-counts.rounds[client], client))[:MAPPED_CLIENTS]
    # Clients of one tier stand together, and those that hold more experts stand lower.
    order = sorted(busiest, key=lambda client: (max(counts.held[client].values(), default=0), client))
    order.sort(key=lambda client: sum(counts.held[client].values()) / counts.rounds[client])
    num_experts = max([num_experts, *(max(held) + 1 for held in counts.held.values() if held)])
    shades = {
        (row, expert): times / counts.rounds[client]
        for row, client in enumerate(order)
        for expert, times in counts.trained.get(client, {}).items()
    }
    held = [(row, expert) for row, client in enumerate(order) for expert in counts.held[client]]
    return HeatMap(
        f"Which client uses which experts, block {block}",
        f"Which of {count_of(len(order), 'client')} trained which of {count_of(num_experts, 'expert')} of block "
        f"{block}: on average a client held {len(held) / len(order):.1f} of them at some time and trained "
        f"{len(shades) / len(order):.1f}.",
        shades,
        [run.client_name(client) for client in order],
        [str(expert) for expert in range(num_experts)],
        across="expert",
        down="client",
        colour=2,
        outlined=held,
        show=lambda share: f"trained in {share:.0%} of its rounds",
        empty="held, not trained",
        legend=(("trained in each of its rounds", 1.0), ("in a quarter", 0.25), ("held, not trained", -1.0)),
    )


def traffic(run: RunRecord) -> Figure | None:
    """Draw bytes both ways since the start."""
    if not run.rows or "bytes_up" not in run.rows[-1]:
        return None
    _, unit = size(max(run.rows[-1]["bytes_down"], run.rows[-1]["bytes_up"], 1)).split()
    step = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    lines = [
        Line(name, [(row["round"], row[key] / step) for row in run.rows], colour, dash)
        for key, name, colour, dash in (("bytes_down", "down to clients", 0, 0), ("bytes_up", "up to the server", 1, 1))
    ]
    return line_figure(f"{unit} since the start", lines, across="round", show="{:.4g}".format, floor=0)


def phases(run: RunRecord) -> Figure | None:
    """Draw the run's seconds, by what they were spent on."""
    spent: dict[str, float] = {}
    for row in run.rows:
        for phase, seconds in row.get("phase_seconds", {}).items():
            spent[phase] = spent.get(phase, 0.0) + seconds
    total = run.summary.get("seconds") or (run.rows[-1].get("seconds", 0.0) if run.rows else 0.0)
    if not (spent and total):
        return None
    names = dict.fromkeys((*PHASES, *spent))
    parts = [(PHASES.get(name, name), seconds) for name in names if (seconds := spent.get(name, 0.0)) >= 0.05]
    parts.append(("everything else, such as local training", max(0.0, total - sum(spent.values()))))
    bars = [(name, seconds, f"{seconds:.1f} s, {100 * seconds / total:.0f} %") for name, seconds in parts]
    return bar_figure("Seconds of the run", bars)


def epsilon(run: RunRecord) -> Figure | None:
    """Draw privacy spent over rounds, with the limit of the recipe."""
    limit = run.privacy_settings.get("epsilon")
    levels = [Level("at most", limit, 4)] if limit else []
    lines = [Line("epsilon", run.epsilon, 3)]
    return line_figure("Epsilon spent", lines, across="round", levels=levels, show="{:.3g}".format, floor=0)
