"""Draws the experts of many blocks at once: a row or a column for each block, instead of a figure for each."""

from collections.abc import Mapping, Sequence

from fftmoe.report.draw import thinned
from fftmoe.report.heat_map import HeatMap
from fftmoe.report.load import EFFECTIVE
from fftmoe.report.marks import Figure
from fftmoe.report.record import RunRecord
from fftmoe.report.usage import count
from fftmoe.shown import count_of

BLOCKS_SHOWN = 6  # each with a figure of its own
MAPPED_CLIENTS = 40
ROUNDS_SHOWN = 60


def effective_map(by_block: Mapping[int, Sequence[tuple[float, float]]], num_experts: int) -> Figure:
    """Draw the effective number of experts as a map of blocks by rounds."""
    every_round = sorted({t for points in by_block.values() for t, _ in points})
    rounds = thinned(every_round, ROUNDS_SHOWN)
    place_of = {t: place for place, t in enumerate(rounds)}
    blocks = sorted(by_block)
    cells = {
        (row, place_of[t]): value for row, block in enumerate(blocks) for t, value in by_block[block] if t in place_of
    }
    last = {block: by_block[block][-1][1] for block in blocks}
    lowest = min(blocks, key=lambda block: last[block])
    uneven = sum(value < EFFECTIVE * num_experts for value in last.values())
    return HeatMap(
        "Effective number of experts, by block",
        f"Effective number of experts of {count_of(len(blocks), 'block')} over rounds; at the end from "
        f"{last[lowest]:.1f} (block {lowest}) to {max(last.values()):.1f} of {num_experts}.",
        cells,
        [str(block) for block in blocks],
        [f"{t:g}" for t in rounds],
        across="round",
        down="block",
        full=float(num_experts),
        show=("{:.1f} of " + str(num_experts)).format,
        legend=(("all experts alike", 1.0), (f"uneven below {EFFECTIVE * num_experts:g}", EFFECTIVE)),
        note=f"At the end the load of {uneven} of {count_of(len(blocks), 'block')} is uneven.",
    ).figure()


def usage_by_block(run: RunRecord) -> list[Figure]:
    """Draw a map of clients by blocks, for many blocks: the shade is the share of the pool that a client trained in a
    round.
    """
    blocks = count(run.rows)
    if len(blocks) <= BLOCKS_SHOWN:
        return []
    num_experts = int(run.setting("adapter.num_experts", 1))
    rounds = {client: number for counts in blocks.values() for client, number in counts.rounds.items()}
    clients = sorted(sorted(rounds, key=lambda client: (-rounds[client], client))[:MAPPED_CLIENTS])
    shares: dict[tuple[int, int], float] = {}
    held: list[tuple[int, int]] = []
    for column, counts in enumerate(blocks.values()):
        for row, client in enumerate(clients):
            if client in counts.held:
                held.append((row, column))
                trained = sum(counts.trained.get(client, {}).values()) / counts.rounds[client]
                shares[row, column] = trained / num_experts
    average = sum(shares.values()) / max(1, len(clients))
    trained_by_one = count_of(round(average * num_experts), "expert")
    found = HeatMap(
        "How much of each block clients use",
        f"What share of the {count_of(num_experts, 'expert')} of each of {count_of(len(blocks), 'block')} "
        f"{count_of(len(clients), 'client')} trained in a round: all blocks together, {trained_by_one} a client on "
        "average.",
        shares,
        [run.client_name(client) for client in clients],
        [str(block) for block in blocks],
        across="block",
        down="client",
        colour=2,
        outlined=held,
        show="{:.0%} of the experts, on average of its rounds".format,
        empty="held, not trained",
        legend=(("all experts", 1.0), ("a quarter", 0.25), ("held, not trained", -1.0)),
    )
    return [found.figure()]
