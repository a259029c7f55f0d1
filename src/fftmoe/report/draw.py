"""Draws three kinds of figure: lines over a common axis, horizontal bars, and columns.

Each function takes numbers and labels, and returns what to draw (`fftmoe.report.marks`), or None if that is nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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
    grid,
    line_key,
    scale,
    stroke,
    ticks,
)
from fftmoe.report.numbers import Numbers, PlottedNumber
from fftmoe.shown import count_of

DOTS = 30  # points of a line that get a dot each; with more, dots would hide the line
POINTS_SHOWN = 400  # points of a line that are drawn
REACH = 14.0  # how wide and high the place around a point is where a pointer finds it

Point = tuple[float, float]
Show = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """Describes a line with its colour and dash (both numbers), and a band of (x, low, high) around it."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    dash: int = 0
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Level:
    """Describes a horizontal line to compare with."""

    label: str
    y: float
    colour: int = 7
    dash: int = 1


@dataclass(frozen=True)
class Area:
    """Describes the part of a figure inside its axes, in units of the figure."""

    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def middle(self) -> float:
        """Return halfway between left and right."""
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
    """Draw lines over a common axis; None where there is no point to draw.

    Of very many points some are drawn, evenly; `Figure.numbers` has them all.

    Args:
        across: what the horizontal axis is.
        show: a value of the vertical axis as text.
        floor, ceiling: limits of the vertical axis.
    """
    numbers = [number for line in lines for number in _numbers_of(line)]
    numbers += [PlottedNumber(level.label, "", level.y) for level in levels]
    # A value that is not finite has no place on an axis.
    finite = [replace(line, points=[p for p in line.points if math.isfinite(p[1])]) for line in lines]
    lines, levels = [line for line in finite if line.points], [level for level in levels if math.isfinite(level.y)]
    if not lines:
        return None
    xs, y_ticks = [x for line in lines for x, _ in line.points], _y_ticks(lines, levels, floor, ceiling)
    x_of = scale(min(xs), max(xs), LINES.left, LINES.right)
    y_of = scale(y_ticks[0], y_ticks[-1], LINES.bottom, LINES.top)

    def place(x: float, y: float) -> tuple[float, float]:
        return x_of(x), y_of(min(max(y, y_ticks[0]), y_ticks[-1]))

    whole = all(float(x).is_integer() for x in xs)
    x_ticks = [t for t in ticks(min(xs), max(xs), 6, whole) if min(xs) <= t <= max(xs)] or [xs[0]]
    drawn = [replace(line, points=thinned(line.points), band=thinned(line.band)) for line in lines]
    marks = grid(y_ticks, y_of, LINES.left, LINES.right, show)
    marks += axis(x_ticks, x_of, LINES.bottom, across, LINES.middle)
    marks += [_level_mark(level, y_of, LINES, 1.3, show) for level in levels]
    marks += [mark for line in drawn for mark in _line_marks(line, place)]
    marks += [mark for line in drawn for mark in _point_hints(line, place, across, show)]
    keys = [line_key(each.label, each.colour, each.dash) for each in (*lines, *levels)]
    described = f"{title}, by {across}: {_described(lines, levels, show)}."
    legend = keys if len(keys) > 1 else ()
    return Figure(title, described, LINES.height, marks, legend, note, Numbers(title, across, numbers))


def _described(lines: Sequence[Line], levels: Sequence[Level], show: Show) -> str:
    """Return the lines and levels in words, for a person who hears the page."""
    spoken = [f"{line.label} from {show(line.points[0][1])} to {show(line.points[-1][1])}" for line in lines]
    return "; ".join([*spoken, *(f"{level.label} {show(level.y)}" for level in levels)])


def _numbers_of(line: Line) -> list[PlottedNumber]:
    """Return all points of a line, with their intervals where it has a band."""
    intervals = {x: (low, high) for x, low, high in line.band}
    return [PlottedNumber(line.label, x, y, *intervals.get(x, ())) for x, y in line.points]


def thinned(values: Sequence[Any], most: int = POINTS_SHOWN) -> list[Any]:
    """Return at most `most` of the values, evenly, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def _y_ticks(lines: Sequence[Line], levels: Sequence[Level], floor: float | None, ceiling: float | None) -> list[float]:
    ys = [y for line in lines for _, y in line.points]
    ys += [y for line in lines for _, low, high in line.band for y in (low, high)] + [level.y for level in levels]
    values = ticks(min(ys), max(ys))
    kept = [v for v in values if (floor is None or v >= floor) and (ceiling is None or v <= ceiling)]
    return kept if len(kept) > 1 else values


def _level_mark(level: Level, y_of: Callable[[float], float], area: Area, width: float, show: Show) -> Path:
    hint = f"{level.label}: {show(level.y)}"
    return stroke(f"M{area.left} {y_of(level.y):.1f}H{area.right}", level.colour, level.dash, width, hint)


def _line_marks(line: Line, place: Callable[[float, float], tuple[float, float]]) -> list[Mark]:
    """Draw a line's band, the line itself, and a dot at each of its points if there are few."""
    marks: list[Mark] = []
    if line.band:
        above, below = [(x, high) for x, _, high in line.band], [(x, low) for x, low, _ in line.band[::-1]]
        outline = [_written(place(*point)) for point in (*above, *below)]
        marks.append(Path(f"M{'L'.join(outline)}Z", fill=colour_name(line.colour), opacity=0.13))
    where = [_written(place(*point)) for point in line.points]
    marks.append(stroke(f"M{'L'.join(where)}", line.colour, line.dash, 1.8))
    if len(where) <= DOTS:
        dots = "".join(f"M{at}h0" for at in where)
        marks.append(Path(dots, stroke=colour_name(line.colour), width=5, round_ends=True))
    return marks


def _written(at: tuple[float, float]) -> str:
    return f"{at[0]:.1f} {at[1]:.1f}"


def _point_hints(
    line: Line, place: Callable[[float, float], tuple[float, float]], across: str, show: Show
) -> list[Mark]:
    """Draw an area around each point that shows the value to a pointer, as wide as its neighbours leave room for."""
    intervals = {x: f" ({show(low)} to {show(high)})" for x, low, high in line.band}
    wide = min(REACH, (LINES.right - LINES.left) / max(1, len(line.points) - 1))
    found: list[Mark] = []
    for x, y in line.points:
        at_x, at_y = place(x, y)
        hint = f"{line.label}, {across} {x:g}: {show(y)}{intervals.get(x, '')}"
        found.append(Box(at_x - wide / 2, at_y - REACH / 2, wide, REACH, "ink", opacity=0, hint=hint))
    return found


def bar_figure(title: str, values: Sequence[tuple[str, float, str]]) -> Figure | None:
    """Draw horizontal bars of (name, length, the value as text); None without bars."""
    if not values:
        return None
    longest, marks = max(value for _, value, _ in values) or 1.0, list[Mark]()
    for row, (name, value, text) in enumerate(values):
        y = 30 * row
        marks += [Text(0, y + 11, name, "start"), Text(FIGURE_WIDTH, y + 11, text, "end")]
        marks.append(Box(0, y + 15, FIGURE_WIDTH, 7, "line", corner=2, opacity=0.5))
        marks.append(Box(0, y + 15, max(1.0, FIGURE_WIDTH * value / longest), 7, "c0", 2, hint=f"{name}: {text}"))
    spoken = "; ".join(f"{name} {text}" for name, _, text in values)
    numbers = Numbers(title, "part", [PlottedNumber("", name, value) for name, value, _ in values])
    return Figure(title, f"{title}: {spoken}.", 30 * len(values), marks, numbers=numbers)


class Column(NamedTuple):
    """Describes a column of a figure: its value, the number of its kind, and whose it is."""

    value: float
    kind: int
    name: str


def column_figure(
    title: str,
    values: Sequence[Column],
    *,
    kinds: Sequence[str],
    whose: str,
    across: str,
    levels: Sequence[Level] = (),
) -> Figure | None:
    """Draw a column for each value, in the given order; None without columns.

    Args:
        kinds: the names of the kinds, each of which has its own colour.
        whose: what the names of columns are, such as "client". across: what stands below the columns.
    """
    if not values:
        return None
    y_ticks = ticks(0.0, max(*(each.value for each in values), *(level.y for level in levels), 1e-9))
    y_of = scale(y_ticks[0], y_ticks[-1], COLUMNS.bottom, COLUMNS.top)
    marks = grid(y_ticks, y_of, COLUMNS.left, COLUMNS.right, "{:g}".format)
    marks += _column_marks(values, kinds, whose, y_of)
    marks += [_level_mark(level, y_of, COLUMNS, 1.5, "{:.3g}".format) for level in levels]
    marks.append(Text(COLUMNS.middle, COLUMNS.height - 6, across))
    keys = [Key(name, Box(0, 1, 26, 9, colour_name(kind))) for kind, name in enumerate(kinds)]
    keys += [line_key(level.label, level.colour, level.dash) for level in levels]
    ordered = sorted(each.value for each in values)
    spoken = f"{count_of(len(ordered), 'value')} from {ordered[0]:g} to {ordered[-1]:g}"
    spoken += "".join(f"; {level.label} {level.y:g}" for level in levels)
    numbers = [PlottedNumber(kinds[each.kind], each.name, each.value) for each in values]
    numbers += [PlottedNumber(level.label, "", level.y) for level in levels]
    return Figure(title, f"{title}: {spoken}.", COLUMNS.height, marks, keys, numbers=Numbers(title, whose, numbers))


def _column_marks(
    values: Sequence[Column], kinds: Sequence[str], whose: str, y_of: Callable[[float], float]
) -> list[Mark]:
    """Draw the columns, a thin one for a value of 0 as well, so that no value seems to be missing."""
    step = (COLUMNS.right - COLUMNS.left) / len(values)
    gap = min(2.0, step / 4)
    found: list[Mark] = []
    for place, (value, kind, name) in enumerate(values):
        tall = max(COLUMNS.bottom - y_of(max(value, 0.0)), 0.8)
        x, hint = COLUMNS.left + place * step + gap / 2, f"{whose} {name}, {kinds[kind]}: {value:.3g}"
        found.append(Box(x, COLUMNS.bottom - tall, step - gap, tall, colour_name(kind), hint=hint))
    return found
