"""Prints what `fftmoe plan` shows: the forecast of a run, or the profile of this machine."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Column, Table

from fftmoe.cli.held_experts import client_lines, counts_blocks, coverage, ranges
from fftmoe.cost.analytic import BaselineCost, Forecast, StatisticsCost, TierCost
from fftmoe.cost.measured import MachineProfile
from fftmoe.report.progress import size
from fftmoe.shown import count_of

CLIENTS_SHOWN = 20


def print_forecast(console: Console, forecast: Forecast, all_clients: bool, every_block: bool = False) -> None:
    """Print what each tier costs, and which experts the first twenty clients (or all) will hold.

    Args:
        every_block: name the experts of all blocks; otherwise those of many blocks are counted.
    """
    _print_lines(console, (f"warning: {note}" for note in forecast.notes))
    console.print(_tiers_table(forecast))
    _print_lines(console, (*_explanations(forecast), ""))
    shown = list(forecast.experts)[: None if all_clients else CLIENTS_SHOWN]
    _print_lines(console, client_lines(forecast, shown, every_block))
    if len(shown) < len(forecast.experts):
        console.print(
            f"… and {count_of(len(forecast.experts) - len(shown), 'more client')} (--clients lists all)",
            highlight=False,
        )
    if counts_blocks(forecast):
        more = "" if every_block else " `fftmoe plan --verbose` names all."
        _print_lines(console, [coverage(forecast.experts) + more])


def _tiers_table(forecast: Forecast) -> Table:
    table = _plain_table("tier", "clients", "uses", "blocks", "down", "up ≤", "trained", "memory", "MFLOP")
    for tier in forecast.tiers:
        table.add_row(
            tier.budget.name,
            str(len(tier.clients)),
            _uses(tier, _has_experts(forecast)),
            ranges(tier.budget.blocks),
            size(tier.bytes_down),
            size(tier.bytes_up),
            in_millions(tier.trainable_parameters),
            size(tier.training_bytes),
            f"{tier.flops_per_token / 1e6:.2f}",
        )
    return table


def in_millions(number: int) -> str:
    """Return a number of parameters in seven letters: as it is below a million, and `2.60 M` from there."""
    if number < 10**6:
        return f"{number:,}"
    return f"{number / 1e6:.2f} M" if number < 10**7 else f"{number / 1e6:.1f} M"


def _explanations(forecast: Forecast) -> list[str]:
    """Return what the columns of the table mean, and what a run costs in addition to them."""
    lines = []
    if _has_experts(forecast):
        lines.append("uses: experts a token activates, of those a client holds in each block.")
    elif forecast.tiers[0].rank:
        lines.append("uses: LoRA's rank.")
    millions = ", M: millions" if any(tier.trainable_parameters >= 10**6 for tier in forecast.tiers) else ""
    lines += [
        "down, up: one client's messages in one round.",
        "memory: adapter and head with gradients and AdamW moments.",
        f"trained: parameters{millions}. MFLOP: the adapter's for one token, forward and backward.",
        f"{count_of(forecast.rounds, 'round')} of {count_of(forecast.clients_per_round, 'client')}; the frozen "
        f"backbone takes {size(forecast.backbone_bytes)}, shared by worker processes where its file has the weights as "
        "they are kept.",
        _prefix_line(forecast),
    ]
    found = {
        "the server computes the head from feature statistics: for them, every client": forecast.sums,
        "for validation every client that sets rows aside": forecast.validation,
    }
    lines += [_statistics_line(what, cost) for what, cost in found.items() if cost is not None]
    if forecast.own_steps:
        own, steps = count_of(forecast.own_steps, "step"), f"{forecast.steps:,}"
        lines.append(f"own parts: {own} of training after the last round (all clients), where all rounds take {steps}.")
    return [*lines, *(_baseline_line(name, cost, forecast.steps) for name, cost in forecast.baselines.items())]


def _baseline_line(name: str, cost: BaselineCost, steps: int) -> str:
    """Return what a baseline costs beside the steps of all clients in all rounds."""
    if cost.reason is not None:
        return f"baseline {name}: not measured, because {cost.reason}."
    if not cost.clients:
        once = (
            f"the feature statistics of {count_of(cost.statistics, 'client')}, once"
            if cost.statistics
            else "nothing but measuring"
        )
        return f"baseline {name}: {once}."
    who = "all rows in one place" if cost.clients == 1 else f"{count_of(cost.clients, 'client')}, each by itself"
    return f"baseline {name}: {count_of(cost.steps, 'step')} of training ({who}), where all rounds take {steps:,}."


def _has_experts(forecast: Forecast) -> bool:
    return any(forecast.experts.values())


def _uses(tier: TierCost, has_experts: bool) -> str:
    if tier.rank is not None:
        return f"rank {tier.rank}"
    return f"{tier.budget.top_k} of {tier.budget.experts}" if has_experts else "head"


def _prefix_line(forecast: Forecast) -> str:
    cached = f"the blocks below the adapter are computed once for each example: {size(forecast.prefix_bytes)} on disk"
    if forecast.prefix_refused is None:
        return f"{cached}."
    refused = f"not cached: {forecast.prefix_refused}."
    return f"{cached}; some examples are {refused}" if forecast.prefix_bytes else f"the frozen prefix is {refused}"


def _statistics_line(what: str, cost: StatisticsCost) -> str:
    """Return the bytes that all clients exchange for one purpose; `what` begins the sentence."""
    when, gets = "once, before the first round", size(cost.bytes_first)
    if cost.every is not None:
        gets += f" ({size(cost.bytes_down)} after a round)"
        then = "round" if cost.every == 1 else f"{count_of(cost.every, 'round')} and after the last"
        when = f"{count_of(cost.times, 'time')}: before the first round, then after every {then}"
    return f"{what} also gets {gets} and sends at most {size(cost.bytes_up)}, {when}."


def print_profile(console: Console, profile: MachineProfile) -> None:
    """Print what was measured of this machine, the recipe's tiers on it, and the largest budget that fits."""
    _print_lines(
        console,
        [
            f"\nmemory: {profile.available_mib:.0f} MiB free of {profile.total_mib:.0f}; this process took "
            f"{profile.process_mib:.0f} with the largest budget that was timed"
        ],
    )
    table = _plain_table("tier", "uses", "blocks", "seconds a round", "memory of the process")
    for predicted in (*profile.tiers, profile.chosen):
        budget = predicted.budget
        table.add_row(
            budget.name,
            f"{budget.top_k} of {budget.experts}",
            ranges(budget.blocks),
            f"{predicted.seconds:.3g}",
            f"{predicted.memory_mib:.0f} MiB",
        )
    console.print(table)
    limits = profile.limits
    network = "the network is not counted" if limits.uplink_mbit is None else f"upload at {limits.uplink_mbit:g} Mbit/s"
    _print_lines(
        console,
        [
            f"seconds: of one client's round of {profile.steps:g} steps, with one core to itself; {network}.",
            f"measured: the largest budget within {limits.deadline_seconds:g} s and {limits.memory_mib:.0f} MiB; "
            "more blocks come first, then more experts, then more experts for each token.",
            f"what bounds it: {profile.bound}.",
        ],
    )


def _plain_table(*heads: str) -> Table:
    return Table(*(Column(head, no_wrap=True) for head in heads), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
