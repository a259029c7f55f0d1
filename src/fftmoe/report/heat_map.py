"""Draws a map of shades in rows and columns."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fftmoe.report.marks import FIGURE_WIDTH, Box, Figure, Key, Mark, Path, Text, colour_name, every
from fftmoe.report.numbers import Numbers, PlottedNumber

NUM_SHADES = 8
LETTERS_OF_A_ROW = 6  # of the name of a row that have room beside a map


@dataclass(frozen=True)
class HeatMap:
    """Draws shades of one colour in rows and columns.

    Attributes:
        cells: (row, column) -> value, 0 or more. full: the value of the darkest shade.
        outlined: cells that are drawn as an empty frame if they have no value.
        legend: (what it means, shade 0 … 1); a shade of -1 is the frame.
        described: in words, what the map shows.
        show: a value as text. empty: what an empty frame means.
    """

    title: str
    described: str
    cells: Mapping[tuple[int, int], float]
    rows: Sequence[str]
    columns: Sequence[str]
    across: str
    down: str
    full: float = 1.0
    colour: int = 0
    outlined: Sequence[tuple[int, int]] = ()
    legend: Sequence[tuple[str, float]] = ()
    note: str = ""
    show: Callable[[float], str] = "{:.3g}".format
    empty: str = ""

    left: ClassVar[int] = 44
    top: ClassVar[int] = 4
    wide: ClassVar[int] = FIGURE_WIDTH - 44 - 4

    @property
    def step_x(self) -> float:
        """Return how wide a column is."""
        return self.wide / max(1, len(self.columns))

    @property
    def step_y(self) -> float:
        """Return how high a row is."""
        return min(14.0, max(2.5, 300 / max(1, len(self.rows))))

    @property
    def bottom(self) -> float:
        """Return where the last row ends."""
        return self.top + self.step_y * len(self.rows)

    def outline(self, row: int, column: int, inset: float = 0.0) -> str:
        """Return a cell's outline; cells have a gap between them where they are large enough."""
        gap = 1 if min(self.step_x, self.step_y) > 5 else 0
        w, h = self.step_x - gap - 2 * inset, self.step_y - gap - 2 * inset
        x, y = self.left + column * self.step_x + inset, self.top + row * self.step_y + inset
        return f"M{x:.1f} {y:.1f}h{w:.1f}v{h:.1f}h{-w:.1f}z"

    def figure(self) -> Figure:
        """Draw the map as a figure."""
        ground = Box(self.left, self.top, self.wide, self.bottom - self.top, "card")
        marks = [ground, *self._frames(), *self._filled(), *self._names()]
        keys = [Key(label, _shade_sample(self.colour, shade), width=11) for label, shade in self.legend]
        cells = {**dict.fromkeys(self._empty(), 0.0), **self.cells}
        numbers = [PlottedNumber(f"{self.down} {self.rows[r]}", self.columns[c], v) for (r, c), v in cells.items()]
        counted = Numbers(self.title, self.across, numbers)
        return Figure(self.title, self.described, self.bottom + 34, marks, keys, self.note, counted)

    def _hint(self, row: int, column: int, text: str) -> str:
        return f"{self.down} {self.rows[row]}, {self.across} {self.columns[column]}: {text}"

    def _empty(self) -> list[tuple[int, int]]:
        """Return the places of empty frames."""
        return [place for place in self.outlined if self.cells.get(place, 0) <= 0]

    def _frames(self) -> list[Mark]:
        """Draw the frames of cells without a value."""
        colour = colour_name(self.colour)
        return [
            Path(self.outline(*place, 0.5), stroke=colour, width=0.8, opacity=0.55, hint=self._hint(*place, self.empty))
            for place in self._empty()
        ]

    def _filled(self) -> list[Mark]:
        """Draw the cells that have a shade."""
        colour, marks = colour_name(self.colour), list[Mark]()
        for place, value in self.cells.items():
            if level := math.ceil(min(1.0, value / self.full) * NUM_SHADES):
                hint = self._hint(*place, self.show(value))
                marks.append(Path(self.outline(*place), fill=colour, opacity=level / NUM_SHADES, hint=hint))
        return marks

    def _names(self) -> list[Mark]:
        """Write as many names of rows and columns as there is room for, and what they are."""
        rows = [
            Text(self.left - 4, self.top + (row + 0.5) * self.step_y + 4, _short(name), "end")
            for row, name in every(self.rows, math.ceil(11 / self.step_y))
        ]
        columns = [
            Text(self.left + (column + 0.5) * self.step_x, self.bottom + 13, name)
            for column, name in every(self.columns, math.ceil(24 / self.step_x))
        ]
        across = Text(self.left + self.wide / 2, self.bottom + 28, self.across)
        return [*rows, *columns, across, Text(9, (self.top + self.bottom) / 2, self.down, turned=True)]


def _short(name: str) -> str:
    """Shorten a name, so that it has room beside a map."""
    return name if len(name) <= LETTERS_OF_A_ROW else f"{name[: LETTERS_OF_A_ROW - 1]}…"


def _shade_sample(colour: int, shade: float) -> Mark:
    """Draw a shade as in a map; -1 is a frame, and 0 the bare ground."""
    if shade > 0:
        return Box(0, 0.5, 10, 10, colour_name(colour), opacity=shade)
    return Path("M.5 1h9v9h-9z", stroke=colour_name(colour) if shade < 0 else "line", opacity=0.7)
