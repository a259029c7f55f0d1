"""Covering arrays: few combinations of many features that contain every combination of any t of their values.

Greedy, one row at a time (AETG: Cohen, Dalal, Fredman and Patton 1997), with rules that exclude combinations. Of the
libraries for this, allpairspy was tried: version 2.5.1 leaves out pairs that its filter makes hard to reach, and says
nothing. With one excluded pair among six features of two to four values, 157 of 200 random cases lacked a possible
pair, and without one none did.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product, takewhile
from typing import Any

Axes = Mapping[str, Sequence[Any]]
Row = dict[str, Any]
Group = tuple[tuple[str, Any], ...]  # axes with a value each, in the order of the axes
Excluded = Callable[[Mapping[str, Any]], bool]
"""Whether a row cannot be, as far as its axes decide; not every axis need have a value."""


def groups(axes: Axes, strength: int) -> list[Group]:
    """All combinations of a value each of any `strength` axes."""
    return [
        tuple(zip(names, values, strict=True))
        for names in combinations(axes, strength)
        for values in product(*(axes[name] for name in names))
    ]


def covering(axes: Axes, strength: int, excluded: Excluded, seed: int = 0) -> list[Row]:
    """Rows that contain every group of values which is in any row that is not excluded."""
    source = random.Random(seed)
    order = groups(axes, strength)
    source.shuffle(order)
    filler, rows = _Filler(axes, excluded, dict.fromkeys(order), strength, source), list[Row]()
    for group in order:
        if group in filler.left and (row := filler.completed(dict(group))) is not None:
            rows.append(row)
            for covered in combinations(row.items(), strength):
                filler.left.pop(covered, None)
    return rows


def most_covering(rows: Sequence[Row], strength: int, number: int) -> tuple[list[Row], float]:
    """This number of the rows, chosen one by one for what they add, and the share of all groups that they contain."""
    left = {group for row in rows for group in combinations(row.items(), strength)}
    total, rest, chosen = len(left), list(rows), list[Row]()
    while rest and len(chosen) < number:
        best = max(rest, key=lambda row: sum(group in left for group in combinations(row.items(), strength)))
        rest.remove(best)
        chosen.append(best)
        left -= set(combinations(best.items(), strength))
    return chosen, 1 - len(left) / total


@dataclass
class _Filler:
    """Completes rows.

    Attributes:
        left: the groups that no row has yet.
        hard: the axes at which a row could not go on, which are from then on given their values first, with a search.
    """

    axes: Axes
    excluded: Excluded
    left: dict[Group, None]
    strength: int
    source: random.Random
    hard: list[str] = field(default_factory=list)

    def completed(self, given: Row) -> Row | None:
        """A row with the given values that covers many of the groups that are left; None if all are excluded."""
        if self.excluded(given):
            return None
        while (row := self._searched(given, [name for name in self.hard if name not in given])) is not None:
            stuck = self._filled(row, [name for name in self.axes if name not in row])
            if stuck is None:
                return {name: row[name] for name in self.axes}
            self.hard.insert(0, stuck)
        return None

    def _searched(self, row: Row, names: Sequence[str]) -> Row | None:
        """Give these axes a value each, by depth first search."""
        if not names:
            return dict(row)
        for value in self._best_first(row, names[0]):
            further = {**row, names[0]: value}
            if not self.excluded(further) and (found := self._searched(further, names[1:])) is not None:
                return found
        return None

    def _filled(self, row: Row, names: Sequence[str]) -> str | None:
        """Give these axes a value each, without a way back; the axis that has none, or None."""
        for name in names:
            allowed = (value for value in self._best_first(row, name) if not self.excluded({**row, name: value}))
            if (value := next(allowed, None)) is None:
                return name
            row[name] = value
        return None

    def _best_first(self, row: Row, name: str) -> list[Any]:
        """The values of an axis: first those that cover most of the groups that are left."""
        values = list(self.axes[name])
        self.source.shuffle(values)
        if len(values) == 1 or not self.left:
            return values
        others = [(axis, row[axis]) for axis in self.axes if axis in row]
        earlier = {axis for axis in takewhile(lambda axis: axis != name, self.axes) if axis in row}
        parts = [
            (tuple(part[:place]), tuple(part[place:]))
            for part in combinations(others, self.strength - 1)
            for place in [sum(axis in earlier for axis, _ in part)]
        ]

        def gain(value: Any) -> int:
            return sum((*first, (name, value), *second) in self.left for first, second in parts)

        return sorted(values, key=gain, reverse=True)
