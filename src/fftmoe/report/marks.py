"""Describes a figure as plain values: what is drawn where, in which colour, without any markup.

A figure is 360 units wide, about as wide as a phone, and scales. Every colour is a name in the style sheet:
`c0` … `c7`, `ink` (text), `line` (rules) or `card` (the ground of a map). A template turns the marks into SVG.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fftmoe.report.numbers import Numbers

FIGURE_WIDTH = 360
COLOURS = 8  # c0 … c7
INK = -1  # as a colour number: the text's colour, which differs from all others
DASHES = ("", "6 3", "2 2", "8 2 2 2")
SMALLEST_STEP = 1e-300


@dataclass(frozen=True)
class Path:
    """Describes a line or an area; `d` is its outline as SVG writes it. Empty colours are not painted.

    Attributes:
        hint: the text that is shown to a pointer that rests on it.
    """

    kind: ClassVar[str] = "path"

    d: str
    fill: str = ""
    stroke: str = ""
    width: float = 1
    dash: str = ""
    round_ends: bool = False
    opacity: float = 1
    hint: str = ""


@dataclass(frozen=True)
class Box:
    """Describes a filled rectangle; with an opacity of 0 it is there for its hint alone (see `Path`)."""

    kind: ClassVar[str] = "box"

    x: float
    y: float
    width: float
    height: float
    fill: str
    corner: float = 0
    opacity: float = 1
    hint: str = ""


@dataclass(frozen=True)
class Text:
    """Describes one line of text; `turned` reads upwards."""

    kind: ClassVar[str] = "text"

    x: float
    y: float
    text: str
    anchor: str = "middle"
    turned: bool = False


Mark = Path | Box | Text


@dataclass(frozen=True)
class Key:
    """Describes an entry of a legend: a sample of what is drawn, in a space `width` wide and 11 high,
    and what it means.
    """

    label: str
    mark: Mark
    width: int = 26


@dataclass(frozen=True)
class Figure:
    """Describes a drawing with its title; `description` says in words what it shows,
    and `numbers` are what it is drawn from.
    """

    title: str
    description: str
    height: float
    marks: Sequence[Mark]
    legend: Sequence[Key] = ()
    note: str = ""
    numbers: Numbers | None = None
    width: ClassVar[int] = FIGURE_WIDTH


def colour_name(number: int) -> str:
    """Return the style sheet's name of a colour: `c0` … `c7` in turn, or `ink`."""
    return "ink" if number == INK else f"c{number % COLOURS}"


def stroke(d: str, colour: int, dash: int, width: float, hint: str = "") -> Path:
    """Return an unfilled line."""
    return Path(d, stroke=colour_name(colour), dash=DASHES[dash], width=width, hint=hint)


def line_key(label: str, colour: int, dash: int) -> Key:
    """Return a legend's entry for a line."""
    return Key(label, stroke("M0 6H26", colour, dash, 2.5))


def scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """Return the linear map that takes `low` to `start` and `high` to `stop`."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Return round numbers from at or below `low` to at or above `high`, about `most` of them at most.

    Args:
        whole: only whole numbers, as for rounds: there is no round 1.5.
    """
    largest = max(abs(low), abs(high))
    if high - low <= max(1e-9 * largest, SMALLEST_STEP):  # a difference that is only rounding
        around = largest / 2 if largest > SMALLEST_STEP else 0.5
        high, low = low + around, low - around
    raw = max((high - low) / most, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= raw * 0.999]
    step = next(step for step in steps if not whole or step.is_integer())
    return [step * n for n in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def grid(values: Sequence[float], y_of: Callable[[float], float], left: int, right: int, show: Callable) -> list[Mark]:
    """Return horizontal rules at the values, each with its value on the left."""
    rules = "".join(f"M{left} {y_of(v):.1f}H{right}" for v in values)
    return [Path(rules, stroke="line"), *(Text(left - 5, y_of(v) + 4, show(v), "end") for v in values)]


def axis(values: Sequence[float], x_of: Callable[[float], float], bottom: int, name: str, middle: float) -> list[Mark]:
    """Return the values of a horizontal axis, and its name below them."""
    texts = [Text(x_of(v), bottom + 14, f"{v:g}") for v in values]
    return [*texts, Text(middle, bottom + 28, name)]


def every(names: Iterable[str], step: int) -> list[tuple[int, str]]:
    """Return every step-th name with its place."""
    return [(place, name) for place, name in enumerate(names) if place % max(1, step) == 0]
