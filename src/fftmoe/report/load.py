"""The load of the experts over the rounds, and when it raises an alarm.

A row's `load` is the server's moving average of the share of routed slots that went to each expert of a block. Two
conditions raise an alarm: an expert stays below a tenth of its even share 1/M for `STARVED_ROUNDS` rounds, or a block's
effective number of experts, exp(entropy of the load), is below M/2.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fftmoe.records import names

DIGITS = 5
STARVED = 0.1  # of the even share 1/M
STARVED_ROUNDS = 3  # rounds in a row
EFFECTIVE = 0.5  # of the number of experts M
MOST_ALARMS = 100  # kept for a run
RULE = (
    f"An alarm is raised where an expert's share of the routed tokens stays below {STARVED:g}/M for "
    f"{STARVED_ROUNDS} rounds, or where the effective number of experts, exp(entropy of the shares), is below "
    f"{EFFECTIVE:g} M."
)


def load_row(load: Mapping[str, Any]) -> dict[str, Any]:
    """The load of a server state (`blocks.{i}` -> float64 [M]) as part of a round's row: block -> shares."""
    by_block = {names.block_of_load(name): shares for name, shares in load.items()}
    rounded = {str(block): [round(float(u), DIGITS) for u in shares] for block, shares in sorted(by_block.items())}
    return {"load": rounded} if rounded else {}


def effective_experts(shares: Sequence[float]) -> float:
    """exp(entropy of the shares): M if all experts have equal shares, 1 if one expert has everything."""
    total = sum(shares)
    return math.exp(-sum(u / total * math.log(u / total) for u in shares if u > 0)) if total > 0 else 0.0


class LoadWatch:
    """Raises alarms while the rows of a run come in; an alarm is not repeated while its condition lasts."""

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self.alarms: list[dict[str, Any]] = []
        self._starving: dict[tuple[str, int], int] = {}
        self._collapsed: set[str] = set()
        for row in rows:
            self.see(row)

    def see(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The alarms that this row raises: round, block, kind (`starved` or `collapsed`), and the kind's numbers."""
        found = []
        for block, shares in row.get("load", {}).items():
            at = {"round": row["round"], "block": int(block)}
            if starved := self._starved(block, shares):
                found.append({**at, "kind": "starved", "experts": starved})
            effective = effective_experts(shares)
            if effective < EFFECTIVE * len(shares):
                if block not in self._collapsed:
                    found.append({**at, "kind": "collapsed", "effective": round(effective, 2), "of": len(shares)})
                self._collapsed.add(block)
            else:
                self._collapsed.discard(block)
        self.alarms += found[: MOST_ALARMS - len(self.alarms)]
        return found

    def _starved(self, block: str, shares: Sequence[float]) -> list[int]:
        """The experts whose share has been low for exactly `STARVED_ROUNDS` rounds."""
        reached = []
        for expert, share in enumerate(shares):
            low = share < STARVED / len(shares)
            self._starving[block, expert] = (self._starving.get((block, expert), 0) + 1) * low
            if self._starving[block, expert] == STARVED_ROUNDS:
                reached.append(expert)
        return reached


def describe_alarm(alarm: Mapping[str, Any]) -> str:
    """An alarm as one line of text."""
    where = f"round {alarm['round']}, block {alarm['block']}"
    if alarm["kind"] == "collapsed":
        return f"{where}: routing has collapsed to {alarm['effective']:.1f} effective experts of {alarm['of']}"
    experts = ", ".join(map(str, alarm["experts"]))
    return f"{where}: hardly any token went to expert {experts} for {STARVED_ROUNDS} rounds"
