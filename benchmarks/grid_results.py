"""Read and write the committed numbers of a grid: one line per cell, from which an empty work folder can continue."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import beside, machine
from fftmoe.comparison.run import is_finished, read_cell, write_cell
from fftmoe.comparison.statistics import CellResult, each_once
from fftmoe.config import Recipe
from fftmoe.errors import InputError
from fftmoe.setup.cells import Cell
from fftmoe.store import disk_errors, write_atomically

KEPT = (
    "accuracy",
    "client_accuracy",
    "personal_accuracy",
    "bytes_up",
    "bytes_down",
    "client_seconds",
    "seconds",
    "trainable_parameters",
)
COLUMNS = ("round", "accuracy", "bytes_up", "bytes_down", "client_seconds")  # of a cell's rows, as they are kept
# Digits kept of the rounds' numbers.
DIGITS = {"accuracy": 6, "client_seconds": 2}
# Of a recipe, what differs between machines and changes no figure.
ELSEWHERE = {"data": {"source"}, "backbone": {"model"}, "engine": True, "trackers": True}

Line = dict[str, Any]
Key = tuple[str, str, str, int]  # (data, variant, partition, seed)


@dataclass(frozen=True)
class Piece:
    """One data set of the grid.

    Attributes:
        overrides: where this machine holds what the recipe names, and the population.
        partitions: None leaves them to the recipe.
        folder: of its comparison.
        cells: of all seeds.
    """

    name: str
    file: Path
    overrides: Mapping[str, Any]
    partitions: Sequence[str] | None
    folder: Path
    cells: tuple[Cell, ...]

    @property
    def seeds(self) -> list[int]:
        """Return the seeds in the order in which they run."""
        return each_once(cell.seed for cell in self.cells)

    @property
    def choices(self) -> dict[str, Any]:
        """What `compare` needs in addition to the recipe."""
        return {"overrides": self.overrides, "partitions": self.partitions}

    def lines(self) -> Iterator[Line]:
        """Return the committed line of every cell."""
        for cell in self.cells:
            yield numbers_of(cell, read_cell(cell, self.folder), self.name)


def digest(recipe: Recipe) -> str:
    """Equal for cells that give the same figures wherever they are run.

    Values at their defaults are left out, so that a key which recipes learn later changes no digest.
    """
    values = recipe.model_dump(mode="json", exclude=ELSEWHERE, exclude_defaults=True)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def numbers_of(cell: Cell, result: CellResult, data: str) -> Line:
    """Return the committed numbers of a cell; its rounds are lists in the order of `COLUMNS`."""
    coordinates = {key: getattr(result, key) for key in ("variant", "method", "head", "partition", "seed", "status")}
    line = {"data": data, **coordinates, "digest": digest(cell.recipe)}
    if result.status == "done":
        line |= {key: result.summary[key] for key in KEPT if key in result.summary}
        line["rows"] = [[_rounded(key, row[key]) for key in COLUMNS] for row in result.rows]
    return line


def _rounded(key: str, value: Any) -> Any:
    return round(value, DIGITS[key]) if key in DIGITS else value


def _contents(line: Line) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the summary and the rounds that `numbers_of` kept, from a finished cell's line."""
    rows: list[dict[str, Any]] = [dict(zip(COLUMNS, row, strict=True)) for row in line["rows"]]
    by_round = {str(row["round"]): row["accuracy"] for row in rows}
    return {**{key: line[key] for key in KEPT if key in line}, "accuracy_by_round": by_round}, rows


def _done(lines: Sequence[Line]) -> int:
    return sum(line["status"] == "done" for line in lines)


def _key(line: Line) -> Key:
    return line["data"], line["variant"], line["partition"], line["seed"]


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a results file, each with the record of its machine; without a file, none."""
    if not path.exists():
        return []
    try:
        values = json.loads(path.read_text())
        machines = values["machines"]
        return [{**line, "machine": _at(machines, line["machine"])} for line in values["cells"]]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"cannot read the results {path}: {error!r}; remove it, or name another --results") from error


def read_cells(path: Path) -> list[CellResult]:
    """The cells of a results file, as a comparison has them.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if not path.exists():
        raise InputError(f"there are no results in {path}; run benchmarks/grid.py first, or name another --results")
    cells = []
    for line in read_lines(path):
        done = _contents(line) if line["status"] == "done" else ({}, [])
        place = {key: line[key] for key in ("data", "variant", "method", "head", "partition", "seed", "status")}
        cells.append(CellResult(**place, summary=done[0], rows=done[1]))
    return cells


def _at(machines: Sequence[Any], index: int | None) -> Any:
    return None if index is None else machines[index]


class GridResults:
    """The results file, while one call of the benchmark runs these pieces."""

    def __init__(self, path: Path, scale: str, pieces: Sequence[Piece]) -> None:
        self.path, self.scale, self.pieces = path, scale, pieces
        self.written = path  # where the lines are
        self.machine = machine()
        self.ran_on: dict[Key, Any] = {}  # of cells that this call need not run; None where nobody knows

    def restore(self, say: Callable[[str], None]) -> None:
        """Put the stored cells that this call would run the same into the work folder, as finished ones.

        Raises:
            InputError: the file cannot be read, or the work folder has a cell that was run with another recipe.
        """
        stored = {_key(line): line for line in read_lines(self.path) if line["status"] == "done"}
        finished = [[is_finished(cell, piece.folder) for cell in piece.cells] for piece in self.pieces]
        restored = outdated = 0
        for piece, done in zip(self.pieces, finished, strict=True):
            before = self._take_over(piece)
            for cell, is_done, now in zip(piece.cells, done, piece.lines(), strict=True):
                line = stored.get(_key(now))
                if is_done:
                    self.ran_on[_key(now)] = line["machine"] if line and _numbers(line) == _numbers(now) else before
                elif line and line["digest"] == now["digest"]:
                    write_cell(cell, piece.folder, *_contents(line))
                    self.ran_on[_key(now)] = line["machine"]
                    restored += 1
                else:
                    outdated += line is not None
        if restored:
            say(f"{restored} finished cells taken from {self.path}")
        if outdated:
            say(f"{outdated} cells in {self.path} are of other recipes than now and run again")

    def _take_over(self, piece: Piece) -> Any:
        """Return the machine of the last call in the piece's folder, and store this call's machine there."""
        path = piece.folder.with_name(f"{piece.folder.name}.machine.json")
        before = json.loads(path.read_text()) if path.is_file() else None
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(self.machine).encode())
        return before

    def write(self) -> None:
        """Write the present lines of these pieces, and keep the file's lines of the others.

        As long as fewer cells are done than in the file, the lines are written beside it: cells of other recipes are
        lost only when these have run again.
        """
        ours, known = {piece.name for piece in self.pieces}, read_lines(self.path)
        lines = [line for line in known if line["data"] not in ours]
        for piece in self.pieces:
            lines += ({**line, "machine": self._machine_of(line)} for line in piece.lines())
        lines.sort(key=lambda line: line["data"])  # stable: a data set's lines keep the order in which they run
        machines: list[Any] = []
        for line in lines:
            line["machine"] = _index(machines, line["machine"])
        text = ",\n".join(json.dumps(line, allow_nan=False) for line in lines)
        head = f'{{"scale": {json.dumps(self.scale)}, "machines": {json.dumps(machines)}, "cells": [\n'
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.written = self.path if _done(lines) >= _done(known) else beside(self.path)
        write_atomically(self.written, f"{head}{text}\n]}}\n".encode())

    def _machine_of(self, line: Line) -> Any:
        return self.ran_on.get(_key(line), self.machine) if line["status"] == "done" else None


def _numbers(line: Line) -> Line:
    """Return all numbers without the machine, as read back from JSON."""
    return json.loads(json.dumps({key: value for key, value in line.items() if key != "machine"}))


def _index(machines: list[Any], record: Any) -> int | None:
    """Return the index of the record among the machines; a new record is added."""
    if record is None:
        return None
    if record not in machines:
        machines.append(record)
    return machines.index(record)
