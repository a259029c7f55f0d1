"""Live progress on a terminal; plain lines anywhere else."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Shows rounds, clients, accuracy and bytes while a run goes on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None

    @classmethod
    def silent(cls) -> "Progress":
        """Shows nothing."""
        return cls(Console(quiet=True))

    def say(self, text: str) -> None:
        """One line about what happens next."""
        self._console.print(text, highlight=False, markup=False)  # it may hold what a site wrote

    @contextmanager
    def rounds(self, num_rounds: int, clients_per_round: int, done: int = 0) -> Iterator[None]:
        """Bars for rounds (`done` before) and clients while the block runs, if the console is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console) as bars:
            self._bars = bars
            self._rounds = bars.add_task("rounds ", total=num_rounds, completed=done)
            self._clients = bars.add_task("clients", total=clients_per_round)
            try:
                yield
            finally:
                self._bars = None

    def client_done(self, client_id: int) -> None:
        """A client's update has arrived."""
        if self._bars:
            self._bars.advance(self._clients)

    def round_done(self, row: Mapping[str, Any]) -> None:
        """One line per round: accuracy where measured, training loss, and bytes so far."""
        if self._bars:
            self._bars.update(self._rounds, completed=row["round"])
            self._bars.reset(self._clients)
        parts = [f"round {row['round']:>3}"]
        if "train_loss" in row:
            parts.append(f"loss {row['train_loss']:.3f}")
        if row["accuracy"] is not None:
            parts.append(f"accuracy {row['accuracy']:.3f}")
        if "epsilon" in row:
            parts.append(f"epsilon {row['epsilon']:.3f}")
        if "void" in row:
            parts.append("void: too few updates")
        if "faults" in row:
            parts.append(f"{len(row['faults'])} faults")
        parts.append(f"down {size(row['bytes_down'])}  up {size(row['bytes_up'])}")
        self.say("  ".join(parts))


def size(num_bytes: float) -> str:
    """A byte count for people: `512 B`, `3.4 MiB`, `433 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
