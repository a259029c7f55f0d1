"""Shows the progress of a run: bars on a terminal, plain lines elsewhere."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from fftmoe.report.console import Console as PlainConsole
from fftmoe.shown import count_of, shown

RECENT = 5  # rounds whose median predicts the time of the next
WORTH_SAYING = 60  # seconds; a shorter time left is not shown


class TimeLeft(ProgressColumn):
    """Shows the time until a task's field `ends`, which goes down while a round is computed; nothing after it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        """Return the time left in words."""
        ends = task.fields.get("ends")
        left = 0.0 if ends is None else ends - self._clock()
        return Text(f"about {duration(left)} left" if left > 0 else "")


class Progress:
    """Shows rounds, clients, the metric, bytes and the time left while a run goes on.

    Args:
        clock: returns seconds since any fixed moment.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.perf_counter) -> None:
        self._console = console
        self._clock = clock
        self._bars: Bars | None = None
        self._num_rounds: int | None = None
        self._last = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    @classmethod
    def silent(cls) -> "Progress":
        """Return a progress that shows nothing."""
        return cls(PlainConsole(quiet=True))

    @property
    def visible(self) -> bool:
        """Return whether anything is shown."""
        return not self._console.quiet

    def say(self, text: str) -> None:
        """Print one line."""
        # The text may come from a site.
        self._console.print(shown(text), highlight=False, markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def rounds(self, num_rounds: int, clients_per_round: int, done: int = 0) -> Iterator[None]:
        """Show on a terminal bars for rounds (`done` of them before) and clients while the block runs."""
        self._num_rounds, self._last = num_rounds, self._clock()
        self._recent.clear()
        try:
            if self._console.is_terminal:
                with self._shown(num_rounds, clients_per_round, done):
                    yield
            else:
                yield
        finally:
            self._num_rounds = None

    @contextmanager
    def _shown(self, num_rounds: int, clients_per_round: int, done: int) -> Iterator[None]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bars(*columns, TimeLeft(self._clock), console=self._console) as bars:
            self._bars = bars
            self._rounds = bars.add_task("rounds ", total=num_rounds, completed=done)
            self._clients = bars.add_task("clients", total=clients_per_round)
            try:
                yield
            finally:
                self._bars = None

    def client_done(self, client_id: int) -> None:
        """Count a client's update that has arrived."""
        if self._bars:
            self._bars.advance(self._clients)

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Print a round's line: training loss, the metric if it was measured, bytes so far, and the time left."""
        left = self._time_left(row["round"])
        if self._bars:
            self._bars.update(self._rounds, completed=row["round"], ends=left and self._last + left)
            self._bars.reset(self._clients)
        parts = [f"round {row['round']:>3}"]
        if "train_loss" in row:
            parts.append(f"loss {row['train_loss']:.3f}")
        metric = row.get("metric", "accuracy")
        if row.get(metric) is not None:
            parts.append(f"{metric.replace('_', ' ')} {row[metric]:.3f}")
        if (validated := row.get(f"validation_{metric}")) is not None:
            parts.append(f"validation {validated:.3f}")
        spent = row.get("epsilon", row.get("example_epsilon"))
        if spent is not None:
            parts.append(f"epsilon {spent:.3f}")
        if "void" in row:
            parts.append("void: too few updates")
        if "faults" in row:
            parts.append(count_of(len(row["faults"]), "fault"))
        parts.append(f"down {size(row['bytes_down'])}  up {size(row['bytes_up'])}")
        if left and left >= WORTH_SAYING and not self._bars:
            parts.append(f"about {duration(left)} left")
        self.say("  ".join(parts))

    def _time_left(self, done: int) -> float | None:
        """Return the remaining rounds times the median of the last ones, so that one slow round does not change it."""
        if self._num_rounds is None:
            return None
        now = self._clock()
        self._recent.append(now - self._last)
        self._last = now
        return (self._num_rounds - done) * statistics.median(self._recent)


def size(num_bytes: float) -> str:
    """Return a number of bytes as text: `512 B`, `3.4 MiB`, `433 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def duration(seconds: float) -> str:
    """Return a time as text, rounded as an estimate deserves: `40 s`, `12 min`, `3 h 20 min`, `2 d 5 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes / 5) * 5, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
