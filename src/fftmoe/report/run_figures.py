"""The figures of a run's page."""

from collections.abc import Sequence
from typing import Any

from fftmoe.report import draw
from fftmoe.report.draw import Level, Line
from fftmoe.report.load import EFFECTIVE, effective_experts
from fftmoe.report.progress import size
from fftmoe.report.run import Run
from fftmoe.report.usage import MOST_CLIENTS, Counts, count

BLOCKS_SHOWN = 6
CLIENTS_SHOWN = 40
ROUNDS_SHOWN = 60
POINTS_SHOWN = 400
PHASES = {
    "clients": "clients and merging",
    "head": "solving the head",
    "evaluation": "measuring",
    "checkpoint": "checkpoints",
}


def learning(run: Run) -> str:
    """The metric over rounds, against clients that train alone and the untrained model."""
    metric, levels = run.metric, []
    if alone := run.summary.get(f"local_only_{metric.name}"):
        levels.append(Level("a client alone, mean", alone["mean"], colour=1))
    floor, ceiling = metric.bounds
    points = thinned(metric.curve(run.rows))
    every = run.setting("evaluation.max_examples")
    note = f"During the run on a sample of {every} test rows, after the last round on all." if every else ""
    return draw.lines(
        metric.label.capitalize(),
        [Line("the global model", points)],
        across="round",
        levels=levels,
        show=metric.text if metric.lower_is_better else "{:.3g}".format,
        floor=floor,
        ceiling=ceiling,
        note=note,
    )


def loss(run: Run) -> str:
    """The clients' mean training loss over rounds."""
    points = [(row["round"], row["train_loss"]) for row in run.rows if row.get("train_loss") is not None]
    return draw.lines(
        "Training loss", [Line("mean of the cohort", thinned(points), 3)], across="round", show="{:.3g}".format
    )


def clients(run: Run) -> str:
    """Every client's own value, sorted; of very many, their percentiles."""
    metric, noted = run.metric, run.summary.get("clients", {})
    levels = []
    if own := run.summary.get(f"client_{metric.name}"):
        levels.append(Level("mean", own["mean"], draw.INK, 0))
        levels.append(Level("worst tenth", own["worst_decile"], draw.INK, 1))
    if alone := run.summary.get(f"local_only_client_{metric.name}"):
        levels.append(Level("trained alone, mean", alone["mean"], draw.INK, 2))
    title = f"{metric.label.capitalize()} of every client on its own label mix"
    if values := noted.get(metric.name):
        tiers = list(dict.fromkeys((*run.summary.get(f"{metric.name}_by_tier", ()), *noted["tier"])))
        ordered = sorted(
            ((value, tiers.index(tier)) for value, tier in zip(values, noted["tier"], strict=True) if value is not None)
        )
        across = f"{len(ordered)} clients, sorted"
        return draw.columns(title, ordered, levels=levels, kinds=tiers, show="{:g}".format, across=across)
    if percentiles := noted.get("percentiles"):
        points = list(enumerate(percentiles))
        return draw.lines(title, [Line("clients", points)], across="percentile of the clients", levels=levels)
    return ""


def effective(run: Run) -> str:
    """The effective number of experts of every block over rounds, with the level of the alarm."""
    drawn: dict[int, list[tuple[float, float]]] = {}
    num_experts = 0
    for row in run.rows:
        for block, shares in row.get("load", {}).items():
            drawn.setdefault(int(block), []).append((row["round"], effective_experts(shares)))
            num_experts = len(shares)
    made = [
        Line(f"block {block}", thinned(points), place, place // draw.COLOURS % 4)
        for place, (block, points) in enumerate(sorted(drawn.items()))
    ]
    level = Level(f"alarm below {EFFECTIVE * num_experts:g} of {num_experts}", EFFECTIVE * num_experts, 4)
    return draw.lines("Effective number of experts", made, across="round", levels=[level], floor=0)


def loads(run: Run) -> list[str]:
    """A map for each block: experts by rounds, shaded by the share of routed tokens."""
    rows = [row for row in run.rows if row.get("load")]
    if not rows:
        return []
    rows = thinned(rows, ROUNDS_SHOWN)
    blocks = sorted(rows[-1]["load"], key=int)
    shown = sorted(sorted(blocks, key=lambda b: effective_experts(rows[-1]["load"][b]))[:BLOCKS_SHOWN], key=int)
    made = []
    for block in shown:
        num_experts = len(rows[-1]["load"][block])
        cells = {
            (expert, place): share * num_experts / 3
            for place, row in enumerate(rows)
            for expert, share in enumerate(row["load"].get(block, ()))
        }
        last = rows[-1]["load"][block]
        described = (
            f"Load of the {num_experts} experts of block {block} over rounds; at the end from {min(last):.3f} to "
            f"{max(last):.3f} of the routed tokens, and {1 / num_experts:.3f} would be even."
        )
        note = (
            f"The {BLOCKS_SHOWN} most uneven of {len(blocks)} blocks are shown."
            if block == shown[-1] < blocks[-1]
            else ""
        )
        made.append(
            draw.heat_map(
                f"Load of each expert, block {block}",
                described,
                cells,
                [str(expert) for expert in range(num_experts)],
                [str(row["round"]) for row in rows],
                across="round",
                down="expert",
                legend=(("none", 0.0), ("its even share 1/M", 3 / 8), ("three times as much, or more", 1.0)),
                note=note,
            )
        )
    return made


def usage(run: Run) -> list[str]:
    """A map for each block: clients by experts, shaded by the share of its rounds in which a client trained it."""
    blocks = count(run.rows)
    num_experts = int(run.setting("adapter.num_experts", 1))
    shown = list(blocks.items())[-BLOCKS_SHOWN:]
    return [_usage_map(block, counts, num_experts, block == shown[0][0], len(blocks)) for block, counts in shown]


def _usage_map(block: int, counts: Counts, num_experts: int, first: bool, num_blocks: int) -> str:
    busiest = sorted(counts.rounds, key=lambda client: (-counts.rounds[client], client))[:CLIENTS_SHOWN]
    # Tiers stand together: those that hold more are below.
    order = sorted(busiest, key=lambda client: (max(counts.held[client].values(), default=0), client))
    order.sort(key=lambda client: sum(counts.held[client].values()) / counts.rounds[client])
    num_experts = max([num_experts, *(max(held) + 1 for held in counts.held.values() if held)])
    cells = {
        (row, expert): times / counts.rounds[client]
        for row, client in enumerate(order)
        for expert, times in counts.trained.get(client, {}).items()
    }
    held = [(row, expert) for row, client in enumerate(order) for expert in counts.held[client]]
    described = (
        f"Which of {len(order)} clients trained which of {num_experts} experts of block {block}: on average a client "
        f"held {len(held) / len(order):.1f} of them at some time and trained {len(cells) / len(order):.1f}."
    )
    notes = []
    if first and len(order) < len(counts.rounds):
        notes.append(f"The {len(order)} clients with most rounds, of {len(counts.rounds)}.")
    if first and num_blocks > BLOCKS_SHOWN:
        notes.append(f"The last {BLOCKS_SHOWN} of {num_blocks} blocks.")
    if first and len(counts.rounds) >= MOST_CLIENTS:
        notes.append(f"Of a round, {MOST_CLIENTS} clients at most are noted.")
    return draw.heat_map(
        f"Which client uses which experts, block {block}",
        described,
        cells,
        [str(client) for client in order],
        [str(expert) for expert in range(num_experts)],
        across="expert",
        down="client",
        colour=2,
        outlined=held,
        legend=(("trained in each of its rounds", 1.0), ("in a quarter", 0.25), ("held, not trained", -1.0)),
        note=" ".join(notes),
    )


def traffic(run: Run) -> str:
    """Bytes both ways since the start."""
    if not run.rows:
        return ""
    _, unit = size(max(run.rows[-1]["bytes_down"], run.rows[-1]["bytes_up"], 1)).split()
    step = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    drawn = [
        Line(name, thinned([(row["round"], row[key] / step) for row in run.rows]), colour, dash)
        for key, name, colour, dash in (("bytes_down", "down to clients", 0, 0), ("bytes_up", "up to the server", 1, 1))
    ]
    return draw.lines(f"{unit} since the start", drawn, across="round", show="{:.4g}".format, floor=0)


def phases(run: Run) -> str:
    """The run's seconds, by what they were spent on."""
    spent: dict[str, float] = {}
    for row in run.rows:
        for phase, seconds in row.get("phase_seconds", {}).items():
            spent[phase] = spent.get(phase, 0.0) + seconds
    total = run.summary.get("seconds") or (run.rows[-1]["seconds"] if run.rows else 0.0)
    rest = max(0.0, total - sum(spent.values()))
    names = dict.fromkeys((*PHASES, *spent))
    ordered = [(PHASES.get(name, name), seconds) for name in names if (seconds := spent.get(name, 0.0)) >= 0.05]
    ordered.append(("everything else, such as training clients alone", rest))
    shares = [(name, s, f"{s:.1f} s, {100 * s / total:.0f} %") for name, s in ordered if total] if spent else []
    return draw.bars("Seconds of the run", shares)


def epsilon(points: Sequence[tuple[float, float]], limit: float | None) -> str:
    """Privacy spent over rounds, against what may be."""
    levels = [Level("at most", limit, 4)] if limit else []
    return draw.lines(
        "Epsilon spent",
        [Line("epsilon", thinned(points), 3)],
        across="round",
        levels=levels,
        show="{:.3g}".format,
        floor=0,
    )


def thinned(values: Sequence[Any], most: int = POINTS_SHOWN) -> list[Any]:
    """At most so many of them, evenly, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]
