"""The four kinds of figure: lines over a common axis, horizontal bars, columns, and a map of shades.

Each function takes numbers and labels, and returns what to draw (`fftmoe.report.marks`), or None if that is nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fftmoe.report.marks import (
    FIGURE_WIDTH,
    Box,
    Figure,
    Key,
    Mark,
    Path,
    Text,
    axis,
    colour_name,
    every,
    grid,
    line_key,
    scale,
    stroke,
    ticks,
)

NUM_SHADES = 8  # shades of a map
DOTS = 30  # points of a line that get a dot each; with more, dots would hide the line

Point = tuple[float, float]
Show = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A line with its colour and dash (both numbers), and a band of (x, low, high) around it."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    dash: int = 0
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    label: str
    y: float
    colour: int = 7
    dash: int = 1


@dataclass(frozen=True)
class Area:
    """The part of a figure inside its axes, in units of the figure."""

    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def middle(self) -> float:
        """Halfway between left and right."""
        return (self.left + self.right) / 2


LINES = Area(height=210, left=44, right=350, top=8, bottom=178)
COLUMNS = Area(height=200, left=44, right=350, top=8, bottom=176)


def line_figure(
    title: str,
    lines: Sequence[Line],
    *,
    across: str,
    levels: Sequence[Level] = (),
    show: Show = "{:g}".format,
    floor: float | None = None,
    ceiling: float | None = None,
    note: str = "",
) -> Figure | None:
    """Lines over a common axis; None where there is no point to draw.

    Args:
        across: what the horizontal axis is.
        show: a value of the vertical axis as text.
        floor, ceiling: limits of the vertical axis.
    """
    # A value that is not finite has no place on an axis.
    finite = [replace(line, points=[p for p in line.points if math.isfinite(p[1])]) for line in lines]
    lines, levels = [line for line in finite if line.points], [level for level in levels if math.isfinite(level.y)]
    if not lines:
        return None
    xs, y_ticks = [x for line in lines for x, _ in line.points], _y_ticks(lines, levels, floor, ceiling)
    x_of = scale(min(xs), max(xs), LINES.left, LINES.right)
    y_of = scale(y_ticks[0], y_ticks[-1], LINES.bottom, LINES.top)

    def place(x: float, y: float) -> str:
        return f"{x_of(x):.1f} {y_of(min(max(y, y_ticks[0]), y_ticks[-1])):.1f}"

    x_ticks = [t for t in ticks(min(xs), max(xs), 6) if min(xs) <= t <= max(xs)] or [xs[0]]
    marks = grid(y_ticks, y_of, LINES.left, LINES.right, show)
    marks += axis(x_ticks, x_of, LINES.bottom, across, LINES.middle)
    marks += [_level_mark(level, y_of, LINES, 1.3) for level in levels]
    marks += [mark for line in lines for mark in _line_marks(line, place)]
    keys = [line_key(each.label, each.colour, each.dash) for each in (*lines, *levels)]
    spoken = [f"{line.label} from {show(line.points[0][1])} to {show(line.points[-1][1])}" for line in lines]
    spoken += [f"{level.label} {show(level.y)}" for level in levels]
    described = f"{title}, by {across}: {'; '.join(spoken)}."
    return Figure(title, described, LINES.height, marks, keys if len(keys) > 1 else (), note)


def _y_ticks(lines: Sequence[Line], levels: Sequence[Level], floor: float | None, ceiling: float | None) -> list[float]:
    ys = [y for line in lines for _, y in line.points]
    ys += [y for line in lines for _, low, high in line.band for y in (low, high)] + [level.y for level in levels]
    values = ticks(min(ys), max(ys))
    kept = [v for v in values if (floor is None or v >= floor) and (ceiling is None or v <= ceiling)]
    return kept if len(kept) > 1 else values


def _level_mark(level: Level, y_of: Callable[[float], float], area: Area, width: float) -> Path:
    return stroke(f"M{area.left} {y_of(level.y):.1f}H{area.right}", level.colour, level.dash, width)


def _line_marks(line: Line, place: Callable[[float, float], str]) -> list[Mark]:
    """A line's band, the line itself, and a dot at each of its points if there are few."""
    marks: list[Mark] = []
    if line.band:
        outline = [place(x, high) for x, _, high in line.band] + [place(x, low) for x, low, _ in line.band[::-1]]
        marks.append(Path(f"M{'L'.join(outline)}Z", fill=colour_name(line.colour), opacity=0.13))
    where = [place(*point) for point in line.points]
    marks.append(stroke(f"M{'L'.join(where)}", line.colour, line.dash, 1.8))
    if len(where) <= DOTS:
        dots = "".join(f"M{at}h0" for at in where)
        marks.append(Path(dots, stroke=colour_name(line.colour), width=5, round_ends=True))
    return marks


def bar_figure(title: str, values: Sequence[tuple[str, float, str]]) -> Figure | None:
    """Horizontal bars of (name, length, the value as text); None without bars."""
    if not values:
        return None
    longest, marks = max(value for _, value, _ in values) or 1.0, list[Mark]()
    for row, (name, value, text) in enumerate(values):
        y = 30 * row
        marks += [Text(0, y + 11, name, "start"), Text(FIGURE_WIDTH, y + 11, text, "end")]
        marks.append(Box(0, y + 15, FIGURE_WIDTH, 7, "line", corner=2, opacity=0.5))
        marks.append(Box(0, y + 15, max(1.0, FIGURE_WIDTH * value / longest), 7, "c0", corner=2))
    spoken = "; ".join(f"{name} {text}" for name, _, text in values)
    return Figure(title, f"{title}: {spoken}.", 30 * len(values), marks)


def column_figure(
    title: str,
    values: Sequence[tuple[float, int]],
    *,
    kinds: Sequence[str],
    across: str,
    levels: Sequence[Level] = (),
) -> Figure | None:
    """A column for each (value, number of its kind), in the given order; None without columns.

    Args:
        kinds: the names of the kinds, each of which has its own colour.
        across: what stands below the columns.
    """
    if not values:
        return None
    y_ticks = ticks(0.0, max(*(value for value, _ in values), *(level.y for level in levels), 1e-9))
    y_of = scale(y_ticks[0], y_ticks[-1], COLUMNS.bottom, COLUMNS.top)
    marks = grid(y_ticks, y_of, COLUMNS.left, COLUMNS.right, "{:g}".format)
    marks += _column_marks(values, y_of)
    marks += [_level_mark(level, y_of, COLUMNS, 1.5) for level in levels]
    marks.append(Text(COLUMNS.middle, COLUMNS.height - 6, across))
    keys = [Key(name, Box(0, 1, 26, 9, colour_name(kind))) for kind, name in enumerate(kinds)]
    keys += [line_key(level.label, level.colour, level.dash) for level in levels]
    ordered = sorted(value for value, _ in values)
    spoken = f"{len(ordered)} values from {ordered[0]:g} to {ordered[-1]:g}"
    spoken += "".join(f"; {level.label} {level.y:g}" for level in levels)
    return Figure(title, f"{title}: {spoken}.", COLUMNS.height, marks, keys)


def _column_marks(values: Sequence[tuple[float, int]], y_of: Callable[[float], float]) -> list[Mark]:
    """One path for each kind; a value of 0 has a thin column as well, so that no value seems to be missing."""
    step = (COLUMNS.right - COLUMNS.left) / len(values)
    gap = min(2.0, step / 4)
    outlines: dict[int, list[str]] = {}
    for place, (value, kind) in enumerate(values):
        x = COLUMNS.left + place * step + gap / 2
        tall = max(COLUMNS.bottom - y_of(max(value, 0.0)), 0.8)
        outline = f"M{x:.1f} {COLUMNS.bottom}v{-tall:.1f}h{step - gap:.1f}v{tall:.1f}z"
        outlines.setdefault(kind, []).append(outline)
    return [Path("".join(d), fill=colour_name(kind)) for kind, d in sorted(outlines.items())]


@dataclass(frozen=True)
class HeatMap:
    """Shades of one colour in rows and columns.

    Attributes:
        cells: (row, column) -> shade, 0 … 1.
        outlined: cells that are drawn as an empty frame if they have no shade.
        legend: (what it means, shade); a shade of -1 is the frame.
        described: in words, what the map shows.
    """

    title: str
    described: str
    cells: Mapping[tuple[int, int], float]
    rows: Sequence[str]
    columns: Sequence[str]
    across: str
    down: str
    colour: int = 0
    outlined: Iterable[tuple[int, int]] = ()
    legend: Sequence[tuple[str, float]] = ()
    note: str = ""

    left: ClassVar[int] = 44
    top: ClassVar[int] = 4
    wide: ClassVar[int] = FIGURE_WIDTH - 44 - 4

    @property
    def step_x(self) -> float:
        """How wide a column is."""
        return self.wide / max(1, len(self.columns))

    @property
    def step_y(self) -> float:
        """How high a row is."""
        return min(14.0, max(2.5, 300 / max(1, len(self.rows))))

    @property
    def bottom(self) -> float:
        """Where the last row ends."""
        return self.top + self.step_y * len(self.rows)

    def outline(self, row: int, column: int, inset: float = 0.0) -> str:
        """A cell's outline; cells have a gap between them where they are large enough."""
        gap = 1 if min(self.step_x, self.step_y) > 5 else 0
        w, h = self.step_x - gap - 2 * inset, self.step_y - gap - 2 * inset
        x, y = self.left + column * self.step_x + inset, self.top + row * self.step_y + inset
        return f"M{x:.1f} {y:.1f}h{w:.1f}v{h:.1f}h{-w:.1f}z"

    def figure(self) -> Figure:
        """The map as a figure."""
        ground = Box(self.left, self.top, self.wide, self.bottom - self.top, "card")
        marks = [ground, *self._cell_marks(), *self._names()]
        keys = [Key(label, _shade_sample(self.colour, shade), width=11) for label, shade in self.legend]
        return Figure(self.title, self.described, self.bottom + 34, marks, keys, self.note)

    def _cell_marks(self) -> list[Mark]:
        """The frames in one path, and the cells of each shade in one path."""
        colour, shades = colour_name(self.colour), dict[int, list[str]]()
        for (row, column), value in self.cells.items():
            if level := math.ceil(min(1.0, value) * NUM_SHADES):
                shades.setdefault(level, []).append(self.outline(row, column))
        empty = [place for place in self.outlined if self.cells.get(place, 0) <= 0]
        frames = "".join(self.outline(row, column, 0.5) for row, column in empty)
        filled = [Path("".join(d), fill=colour, opacity=level / NUM_SHADES) for level, d in sorted(shades.items())]
        return [Path(frames, stroke=colour, width=0.8, opacity=0.55), *filled]

    def _names(self) -> list[Mark]:
        """As many names of rows and columns as there is room for, and what they are."""
        rows = [
            Text(self.left - 4, self.top + (row + 0.5) * self.step_y + 4, name, "end")
            for row, name in every(self.rows, math.ceil(11 / self.step_y))
        ]
        columns = [
            Text(self.left + (column + 0.5) * self.step_x, self.bottom + 13, name)
            for column, name in every(self.columns, math.ceil(24 / self.step_x))
        ]
        across = Text(self.left + self.wide / 2, self.bottom + 28, self.across)
        return [*rows, *columns, across, Text(9, (self.top + self.bottom) / 2, self.down, turned=True)]


def _shade_sample(colour: int, shade: float) -> Mark:
    """A shade as in a map; -1 is a frame, and 0 the bare ground."""
    if shade > 0:
        return Box(0, 0.5, 10, 10, colour_name(colour), opacity=shade)
    return Path("M.5 1h9v9h-9z", stroke=colour_name(colour) if shade < 0 else "line", opacity=0.7)
