"""Expert load over the rounds, and when it counts as collapsed.

A row's `load` is the server's moving average of the share of routed slots that went to each expert of a block. Two
things raise an alarm: an expert that stays below a tenth of its even share 1/M for `PATIENCE` rounds, and a block
whose effective number of experts, exp(entropy of the load), is below M/2.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fftmoe.records import names

DIGITS = 5
STARVED = 0.1  # of the even share
PATIENCE = 3  # rounds in a row
EFFECTIVE = 0.5  # of M
MOST_ALARMS = 100  # kept of a run
RULE = (
    f"An alarm is raised where an expert's share of the routed tokens stays below {STARVED:g}/M for {PATIENCE} rounds, "
    f"or where the effective number of experts, exp(entropy of the shares), is below {EFFECTIVE:g} M."
)


def load_row(load: Mapping[str, Any]) -> dict[str, Any]:
    """The load of a server state, `blocks.{i}` -> float64 [M], for a round's row: block -> shares."""
    by_block = {names.block_of_load(name): shares for name, shares in load.items()}
    rounded = {str(block): [round(float(u), DIGITS) for u in shares] for block, shares in sorted(by_block.items())}
    return {"load": rounded} if rounded else {}


def effective_experts(shares: Sequence[float]) -> float:
    """exp(entropy): M when all experts are used alike, 1 when one gets everything."""
    total = sum(shares)
    return math.exp(-sum(u / total * math.log(u / total) for u in shares if u > 0)) if total > 0 else 0.0


class LoadWatch:
    """Raises alarms as the rows of a run come in; each once, until what raised it is over."""

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self.alarms: list[dict[str, Any]] = []
        self._starving: dict[tuple[str, int], int] = {}
        self._collapsed: set[str] = set()
        for row in rows:
            self.see(row)

    def see(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The alarms that this row raises: round, block, kind (`starved`, `collapsed`), and its numbers."""
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
        """The experts that have just been below their share for long enough."""
        reached = []
        for expert, share in enumerate(shares):
            low = share < STARVED / len(shares)
            self._starving[block, expert] = (self._starving.get((block, expert), 0) + 1) * low
            if self._starving[block, expert] == PATIENCE:
                reached.append(expert)
        return reached


def describe(alarm: Mapping[str, Any]) -> str:
    """One line for a person."""
    where = f"round {alarm['round']}, block {alarm['block']}"
    if alarm["kind"] == "collapsed":
        return f"{where}: routing has collapsed to {alarm['effective']:.1f} effective experts of {alarm['of']}"
    experts = ", ".join(map(str, alarm["experts"]))
    return f"{where}: hardly any token went to expert {experts} for {PATIENCE} rounds"
