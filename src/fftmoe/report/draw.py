"""Figures as small SVG: drawn in the page's own colours, so that dark mode and paper need nothing more.

A figure is 360 units wide, about as wide as a phone, and scales. Each has a title and says in words what it shows.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from fftmoe.report.page import COLOURS

WIDTH = 360
DASHES = ("", "6 3", "2 2", "8 2 2 2")
LEVELS = 8  # shades of a heat map
TINY = 1e-300
INK = -1  # the colour of the text, for what has to be told from all others

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line with its colour and dash (numbers of the page's), and a band of (x, low, high) around it."""

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


def figure(title: str, described: str, svg: str, height: float, legend: str = "", note: str = "") -> str:
    """A figure with its caption; `described` is read aloud in its place."""
    said = f"<p class='note'>{escape(note)}</p>" if note else ""
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(described)}">'
        f"<title>{escape(described)}</title>{svg}</svg>{legend}{said}</figure>"
    )


def lines(
    title: str,
    drawn: Sequence[Line],
    *,
    across: str,
    levels: Sequence[Level] = (),
    show: Callable[[float], str] = "{:g}".format,
    show_x: Callable[[float], str] = "{:g}".format,
    floor: float | None = None,
    ceiling: float | None = None,
    note: str = "",
) -> str:
    """Lines over a common axis; empty where there is no point to draw.

    Args:
        across: what the horizontal axis is.
        show, show_x: a value of the axes as text.
        floor, ceiling: that the vertical axis does not go beyond.
    """
    # What has diverged has no place on an axis.
    drawn = [replace(line, points=[p for p in line.points if math.isfinite(p[1])]) for line in drawn]
    drawn, levels = [line for line in drawn if line.points], [level for level in levels if math.isfinite(level.y)]
    if not drawn:
        return ""
    height, left, right, top, bottom = 210, 44, 350, 8, 178
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    ys += [y for line in drawn for _, low, high in line.band for y in (low, high)] + [level.y for level in levels]
    y_ticks = _clipped(ticks(min(ys), max(ys)), floor, ceiling)
    x_ticks = [t for t in ticks(min(xs), max(xs), 6) if min(xs) <= t <= max(xs)] or [xs[0]]
    x_of = _scale(min(xs), max(xs), left, right)
    y_of = _scale(y_ticks[0], y_ticks[-1], bottom, top)

    def place(x: float, y: float) -> str:
        return f"{x_of(x):.1f} {y_of(min(max(y, y_ticks[0]), y_ticks[-1])):.1f}"

    parts = [_grid(y_ticks, y_of, left, right, show), _axis(x_ticks, x_of, bottom, show_x, across, (left + right) / 2)]
    for level in levels:
        parts.append(_stroke(f"M{left} {y_of(level.y):.1f}H{right}", level.colour, level.dash, 1.3))
    for line in drawn:
        colour = line.colour % COLOURS
        if line.band:
            outline = [place(x, high) for x, _, high in line.band] + [place(x, low) for x, low, _ in line.band[::-1]]
            parts.append(f'<path d="M{"L".join(outline)}Z" fill="var(--c{colour})" opacity=".13"/>')
        where = [place(*point) for point in line.points]
        parts.append(_stroke(f"M{'L'.join(where)}", line.colour, line.dash, 1.8))
        if len(where) <= 30:
            dots = "".join(f"M{at}h0" for at in where)
            parts.append(f'<path d="{dots}" stroke="var(--c{colour})" stroke-width="5" stroke-linecap="round"/>')
    keyed = [(line.label, line.colour, line.dash) for line in drawn] + [(v.label, v.colour, v.dash) for v in levels]
    legend = _line_legend(keyed) if len(keyed) > 1 else ""
    said = [f"{line.label} from {show(line.points[0][1])} to {show(line.points[-1][1])}" for line in drawn]
    said += [f"{level.label} {show(level.y)}" for level in levels]
    return figure(title, f"{title}, by {across}: {'; '.join(said)}.", "".join(parts), height, legend, note)


def bars(
    title: str,
    values: Sequence[tuple[str, float, str]],
    *,
    note: str = "",
) -> str:
    """Horizontal bars of (name, length, the value as text)."""
    if not values:
        return ""
    most, parts = max((value for _, value, _ in values), default=0.0) or 1.0, []
    for row, (name, value, text) in enumerate(values):
        y = 30 * row
        parts.append(f'<text x="0" y="{y + 11}">{escape(name)}</text>')
        parts.append(f'<text x="{WIDTH}" y="{y + 11}" text-anchor="end">{escape(text)}</text>')
        parts.append(f'<rect x="0" y="{y + 15}" width="{WIDTH}" height="7" rx="2" fill="var(--line)" opacity=".5"/>')
        length = max(1.0, WIDTH * value / most)
        parts.append(f'<rect x="0" y="{y + 15}" width="{length:.1f}" height="7" rx="2" fill="var(--c0)"/>')
    said = "; ".join(f"{name} {text}" for name, _, text in values)
    return figure(title, f"{title}: {said}.", "".join(parts), 30 * len(values), note=note)


def columns(
    title: str,
    values: Sequence[tuple[float, int]],
    *,
    levels: Sequence[Level] = (),
    kinds: Sequence[str] = (),
    show: Callable[[float], str] = "{:g}".format,
    across: str,
    note: str = "",
) -> str:
    """A column for each (value, kind), in the given order; `kinds` names the colours."""
    if not values:
        return ""
    height, left, right, top, bottom = 200, 44, 350, 8, 176
    y_ticks = ticks(0.0, max(*(value for value, _ in values), *(level.y for level in levels), 1e-9))
    y_of = _scale(y_ticks[0], y_ticks[-1], bottom, top)
    step = (right - left) / len(values)
    gap = min(2.0, step / 4)
    shapes: dict[int, list[str]] = {}
    for place, (value, kind) in enumerate(values):
        x, y = left + place * step + gap / 2, y_of(max(value, 0.0))
        tall = max(bottom - y, 0.8)  # nothing is drawn too, so that nobody looks for a missing client
        shapes.setdefault(kind, []).append(f"M{x:.1f} {bottom}v{-tall:.1f}h{step - gap:.1f}v{tall:.1f}z")
    parts = [_grid(y_ticks, y_of, left, right, show)]
    parts += [f'<path d="{"".join(d)}" fill="var(--c{kind % COLOURS})"/>' for kind, d in sorted(shapes.items())]
    parts += [_stroke(f"M{left} {y_of(v.y):.1f}H{right}", v.colour, v.dash, 1.5) for v in levels]
    parts.append(f'<text x="{(left + right) / 2}" y="{height - 6}" text-anchor="middle">{escape(across)}</text>')
    legend = _legend(
        [
            (name, f'<rect y="1" width="26" height="9" fill="var(--c{kind % COLOURS})"/>')
            for kind, name in enumerate(kinds)
        ]
        + [(level.label, _sample(level.colour, level.dash)) for level in levels]
    )
    ordered = sorted(value for value, _ in values)
    said = f"{len(ordered)} values from {show(ordered[0])} to {show(ordered[-1])}"
    said += "".join(f"; {level.label} {show(level.y)}" for level in levels)
    return figure(title, f"{title}: {said}.", "".join(parts), height, legend, note)


def heat_map(
    title: str,
    described: str,
    cells: Mapping[tuple[int, int], float],
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    across: str,
    down: str,
    colour: int = 0,
    outlined: Iterable[tuple[int, int]] = (),
    legend: Sequence[tuple[str, float]] = (),
    note: str = "",
) -> str:
    """Shades of one colour for (row, column) -> 0 … 1.

    Args:
        outlined: cells that are drawn as an empty frame where they have no shade.
        legend: (what it means, shade); a shade of -1 is the frame.
    """
    left, top, wide = 44, 4, WIDTH - 44 - 4
    step_x = wide / max(1, len(column_names))
    step_y = min(14.0, max(2.5, 300 / max(1, len(row_names))))
    gap = 1 if min(step_x, step_y) > 5 else 0
    tall = step_y * len(row_names)

    def cell(row: int, column: int, inset: float = 0.0) -> str:
        w, h = step_x - gap - 2 * inset, step_y - gap - 2 * inset
        return f"M{left + column * step_x + inset:.1f} {top + row * step_y + inset:.1f}h{w:.1f}v{h:.1f}h{-w:.1f}z"

    shades: dict[int, list[str]] = {}
    for (row, column), value in cells.items():
        if level := math.ceil(min(1.0, value) * LEVELS):
            shades.setdefault(level, []).append(cell(row, column))
    frames = "".join(cell(row, column, 0.5) for row, column in outlined if cells.get((row, column), 0) <= 0)
    parts = [f'<rect x="{left}" y="{top}" width="{wide}" height="{tall:.1f}" fill="var(--card)"/>']
    parts.append(f'<path d="{frames}" fill="none" stroke="var(--c{colour})" stroke-opacity=".55" stroke-width=".8"/>')
    parts += [
        f'<path d="{"".join(d)}" fill="var(--c{colour})" fill-opacity="{level / LEVELS:g}"/>'
        for level, d in sorted(shades.items())
    ]
    bottom = top + tall
    for row, name in _every(row_names, math.ceil(11 / step_y)):
        parts.append(
            f'<text x="{left - 4}" y="{top + (row + 0.5) * step_y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
    for column, name in _every(column_names, math.ceil(24 / step_x)):
        x = left + (column + 0.5) * step_x
        parts.append(f'<text x="{x:.1f}" y="{bottom + 13:.1f}" text-anchor="middle">{escape(name)}</text>')
    parts.append(f'<text x="{left + wide / 2}" y="{bottom + 28:.1f}" text-anchor="middle">{escape(across)}</text>')
    parts.append(
        f'<text transform="translate(9 {top + tall / 2:.1f}) rotate(-90)" text-anchor="middle">{escape(down)}</text>'
    )
    keys = [(name, _swatch(colour, shade)) for name, shade in legend]
    return figure(title, described, "".join(parts), bottom + 34, _legend(keys, wide=False), note)


def _swatch(colour: int, shade: float) -> str:
    """A shade as in a heat map, where -1 is a frame and 0 the ground."""
    if shade > 0:
        return f'<rect y=".5" width="10" height="10" fill="var(--c{colour})" fill-opacity="{shade:g}"/>'
    line = f"var(--c{colour})" if shade < 0 else "var(--line)"
    return f'<rect x=".5" y="1" width="9" height="9" fill="none" stroke="{line}" stroke-opacity=".7"/>'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, at most about `most` of them."""
    largest = max(abs(low), abs(high))
    if high - low <= max(1e-9 * largest, TINY):  # no more than rounding
        around = largest / 2 if largest > TINY else 0.5
        high, low = low + around, low - around
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= raw * 0.999)
    return [step * n for n in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _clipped(values: list[float], floor: float | None, ceiling: float | None) -> list[float]:
    kept = [v for v in values if (floor is None or v >= floor) and (ceiling is None or v <= ceiling)]
    return kept if len(kept) > 1 else values


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def _stroke(path: str, colour: int, dash: int, width: float) -> str:
    dashes = f' stroke-dasharray="{DASHES[dash]}"' if dash else ""
    paint = "currentColor" if colour == INK else f"var(--c{colour % COLOURS})"
    return f'<path d="{path}" fill="none" stroke="{paint}" stroke-width="{width}" stroke-linejoin="round"{dashes}/>'


def _grid(values: Sequence[float], y_of: Callable[[float], float], left: int, right: int, show: Callable) -> str:
    rules = "".join(f"M{left} {y_of(v):.1f}H{right}" for v in values)
    texts = "".join(
        f'<text x="{left - 5}" y="{y_of(v) + 4:.1f}" text-anchor="end">{escape(show(v))}</text>' for v in values
    )
    return f'<path d="{rules}" stroke="var(--line)" fill="none"/>{texts}'


def _axis(
    values: Sequence[float], x_of: Callable[[float], float], bottom: int, show: Callable, name: str, middle: float
) -> str:
    texts = "".join(
        f'<text x="{x_of(v):.1f}" y="{bottom + 14}" text-anchor="middle">{escape(show(v))}</text>' for v in values
    )
    return f'{texts}<text x="{middle:g}" y="{bottom + 28}" text-anchor="middle">{escape(name)}</text>'


def _line_legend(keyed: Iterable[tuple[str, int, int]]) -> str:
    return _legend([(label, _sample(colour, dash)) for label, colour, dash in keyed])


def _sample(colour: int, dash: int) -> str:
    return _stroke("M0 6H26", colour, dash, 2.5)


def _legend(keyed: Sequence[tuple[str, str]], wide: bool = True) -> str:
    size = 'viewBox="0 0 26 11"' if wide else 'viewBox="0 0 11 11" class="small"'
    items = "".join(f'<li><svg {size} aria-hidden="true">{sample}</svg>{escape(label)}</li>' for label, sample in keyed)
    return f'<ul class="legend">{items}</ul>' if items else ""


def _every(names: Sequence[str], step: int) -> list[tuple[int, str]]:
    return [(place, name) for place, name in enumerate(names) if place % max(1, step) == 0]
