"""Keeps the run folder: every file is written whole or not at all, and a run never continues from a damaged file."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError, looked_up
from fftmoe.records import ServerState
from fftmoe.shown import quoted
from fftmoe.store.bindings import BINDINGS_FILE as BINDINGS
from fftmoe.store.checkpoints import Checkpoints
from fftmoe.store.client_states import ClientStateFiles
from fftmoe.store.files import DamagedFileError, disk_errors, make_folder, remove_temporaries, sync, write_atomically
from fftmoe.store.owner import LOCK
from fftmoe.store.ranking import Ranking
from fftmoe.store.rows import RowFile
from fftmoe.strict import MOST_RESULTS, json_text, read_small, strict_json, strict_yaml, yaml_text

MARGIN_BYTES = 64 * 2**20
CONFIG = "config.yaml"
SITES = "sites.json"  # of a run over sites: what each said about itself
PLACE = "place.json"  # says that the folder holds the model of a place that was in no round, and no rounds
# What a folder holds before its run has begun.
FIRST = {LOCK, BINDINGS, SITES, "checkpoints", "clients"}
LEDGERS = {"privacy.json", "example_privacy.json"}


@dataclass(frozen=True)
class Saved:
    """Holds what a run continues from: its newest intact checkpoint.

    Attributes:
        state: the server state; None before the end of the first round.
        lines: the intact lines of `metrics.jsonl` up to this checkpoint, whose own line is always among them.
        passed_over: newer checkpoints that are damaged, each with the reason.
        rows_lost: the rounds up to this checkpoint whose lines are damaged or missing.
    """

    state: ServerState | None = None
    lines: tuple[bytes, ...] = ()
    passed_over: tuple[str, ...] = ()
    rows_lost: tuple[int, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return the rows, one for each round whose line is intact."""
        return [json.loads(line) for line in self.lines]


@dataclass(frozen=True)
class Best:
    """Holds the best round of a run: its state and its row; `passed_over` are better ones that are damaged,
    with reasons.
    """

    state: ServerState
    row: Mapping[str, Any]
    passed_over: tuple[str, ...]


@dataclass(frozen=True)
class RunFolder:
    """Keeps `config.yaml`, `summary.json`, `metrics.jsonl`, `adapter/`, `checkpoints/`, `clients/`, `report.html`,
    and the numbers of that page in `report-figures.csv`.
    """

    path: Path

    @classmethod
    def create(
        cls,
        path: Path,
        config: Mapping[str, Any],
        needed_bytes: int,
        write_first: Callable[["RunFolder"], object] = lambda folder: None,
    ) -> "RunFolder":
        """Make a new run folder with its resolved recipe.

        `config.yaml` says that there is a run, so it is written when all else is there that a run continues from.

        Args:
            write_first: writes what belongs to the run from its beginning.

        Raises:
            InputError: the folder holds another run or other files, it cannot be made, or the disk has fewer than
                `needed_bytes` and a margin left. Nothing has been written then.
        """
        nearest = check_run_output(path)
        free = shutil.disk_usage(nearest).free
        if free < needed_bytes + MARGIN_BYTES:
            raise InputError(
                f"the disk of {nearest} has {free / 2**20:.0f} MiB left and the run needs about "
                f"{(needed_bytes + MARGIN_BYTES) / 2**20:.0f} MiB; free some space, or name another disk with --output"
            )
        with disk_errors(path):
            make_folder(path)
            cls(path)._make_folders()
            write_first(cls(path))
            write_atomically(path / CONFIG, yaml_text(dict(config)).encode())
        return cls(path)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        self.rows.append(dict(row))

    def all_metrics(self) -> list[dict[str, Any]]:
        """Return the intact rows of `metrics.jsonl`."""
        return [row.values for row in self.rows.read()]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json` as strict JSON."""
        text = json_text(summary, indent=2)
        write_atomically(self.path / "summary.json", text.encode() + b"\n")

    def write_report(self, page: str, numbers: str) -> None:
        """Write `report.html` and, before it, the numbers of its figures as `report-figures.csv`."""
        write_atomically(self.path / "report-figures.csv", numbers.encode())
        write_atomically(self.path / "report.html", page.encode())

    @property
    def over_sites(self) -> bool:
        """Return whether the run is one over sites."""
        return (self.path / SITES).exists()

    def save_state(self, state: ServerState, ranking: Ranking | None = None) -> None:
        """Save a checkpoint after a round whose row has been written; it is on the disk when this returns.

        Args:
            ranking: see `Checkpoints.save`.
        """
        with disk_errors(self.rows.path):
            sync(self.path, self.path / "checkpoints", *self.rows.files(), *self.client_states.take_unsynced())
        self.checkpoints.save(state, ranking)

    def load_newest(self) -> Saved:
        """Return the newest checkpoint that is intact together with its rows and the states of clients; no file is
        changed.

        Raises:
            InputError: the run got beyond its first round, and no checkpoint is intact.
        """
        rounds, passed_over = self.checkpoints.rounds(), list[str]()
        for round in rounds:
            try:
                state, line = self.checkpoints.load(round)
                self.client_states.check(round)
            except DamagedFileError as reason:
                passed_over.append(f"round {round}: {reason}")
            else:
                return self._saved(state, line, tuple(passed_over))
        if max(self._rounds_in_metrics(), *rounds, 0) < 2:  # the first checkpoint may not have been completed
            return Saved(passed_over=tuple(passed_over))
        reasons = ". ".join(passed_over) or "none exists although metrics.jsonl has rows of several rounds"
        raise InputError(
            f"the run in {self.path} has no intact checkpoint to continue from ({reasons}); "
            "restore its files, or start a new run"
        )

    def _saved(self, state: ServerState, line: bytes, passed_over: tuple[str, ...]) -> Saved:
        """Return the checkpoint of this state with its rows; `line` is its own row."""
        kept = {row.values["round"]: row.line for row in self.rows.read() if row.values["round"] <= state.round}
        kept |= {state.round: line} if line else {}
        lost = tuple(round for round in range(state.round + 1) if round not in kept) if line else ()
        return Saved(state, tuple(line for _, line in sorted(kept.items())), passed_over, lost)

    def load_best(self, ranking: Ranking) -> Best | None:
        """Return the state of the best round among the checkpoints, and its row; None where no round has the metric.

        A checkpoint that is damaged is passed over.
        """
        passed_over = list[str]()
        for round in self.checkpoints.ranked(ranking):
            try:
                state, line = self.checkpoints.load(round)
            except DamagedFileError as reason:
                passed_over.append(f"round {round}: {reason}")
            else:
                return Best(state, json.loads(line), tuple(passed_over))
        return None

    def rewind(self, saved: Saved, ranking: Ranking | None = None) -> None:
        """Remove what came after this checkpoint, because those rounds are repeated; see `Checkpoints.save`."""
        round = saved.state.round if saved.state else 0
        with disk_errors(self.path):
            self._make_folders()
            self.checkpoints.forget_after(round, ranking)
            self.rows.replace(saved.lines)
            self.client_states.forget_after(round)
            remove_temporaries(self.path)

    def _make_folders(self) -> None:
        for name in ("checkpoints", "clients"):
            make_folder(self.path / name)

    def _rounds_in_metrics(self) -> int:
        if not self.rows.path.exists():
            return 0
        return max(0, self.rows.path.read_bytes().count(b"\n") - 1)  # the first row belongs to no round

    @property
    def rows(self) -> RowFile:
        """Return the rows of `metrics.jsonl`."""
        return RowFile(self.path)

    @property
    def checkpoints(self) -> Checkpoints:
        """Return the server states of the last rounds."""
        return Checkpoints(self.path)

    @property
    def client_states(self) -> ClientStateFiles:
        """Return the states of this run's clients."""
        return ClientStateFiles(self.path / "clients", durable=False)  # `save_state` forces them to the disk

    @property
    def own_parts(self) -> ClientStateFiles:
        """Return what this run's clients have trained for themselves."""
        return ClientStateFiles(self.path / "own-parts")


def check_run_output(path: Path) -> Path:
    """Check that a run can be written to `path`, and return the nearest existing folder at or above it.

    What a run has left that was killed before it had begun does not count, and neither does the lock of an owner.

    Raises:
        InputError: the folder holds another run or other files, or cannot be made.
    """
    return path.absolute() if _is_cut_off(path) else check_output(path)


def _is_cut_off(path: Path) -> bool:
    """Return whether the folder holds only what is written before `config.yaml`."""
    if not path.is_dir() or (path / CONFIG).exists():
        return False
    names = {entry.name for entry in path.iterdir() if not _is_temporary(entry)}
    inner = {
        entry.name
        for name in ("checkpoints", "clients")
        if (path / name).is_dir()
        for entry in (path / name).iterdir()
        if not _is_temporary(entry)
    }
    return bool(names) and names <= FIRST and inner <= LEDGERS


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".tmp"


def check_output(path: Path) -> Path:
    """Check that `path` is a new or an empty folder, and return the nearest existing folder at or above it.

    Raises:
        InputError: the folder holds another run or other files, or cannot be made.
    """
    with looked_up(f"the output folder {path}"):
        if path.is_dir() and any(path.iterdir()):
            what = "another run" if (path / CONFIG).exists() else "other files"
            raise InputError(f"the output folder {path} holds {what}; name a new one with --output or remove it")
        nearest = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot make the output folder {path}: {nearest} is a file; name another with --output")
    return nearest


def read_run(folder: Path) -> dict[str, Any]:
    """Return the resolved recipe of a finished run.

    Raises:
        InputError: the folder is not a run, is damaged, or the run did not finish.
    """
    recipe = read_config(folder)
    with looked_up(f"the run in {folder}"):
        finished = (folder / "adapter" / "adapter_config.json").is_file()
    if not finished and (folder / "summary.json").exists():  # then `resume` would not make it again
        raise InputError(
            f"the run in {folder} has lost its adapter/; restore it, or have it made again from the last checkpoint: "
            f"rm {quoted(folder / 'summary.json')} && fftmoe resume {quoted(folder)}"
        )
    if not finished:
        raise InputError(
            f"the run in {folder} did not finish: it has no adapter/; wait for it if it is running, or finish it: "
            f"fftmoe resume {quoted(folder)}"
        )
    return recipe


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of a finished run.

    Raises:
        InputError: the run has not finished, or the file is damaged.
    """
    path = folder / "summary.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; finish the run first: fftmoe resume {quoted(folder)}")
    try:
        return strict_json(read_small(path, MOST_RESULTS))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}; restore it, or start the run again") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return the resolved recipe of a run, finished or not.

    Raises:
        InputError: the folder is not a run, or is damaged.
    """
    with looked_up(f"the run in {folder}"):
        is_run = (folder / "config.yaml").is_file()
    if not is_run:
        raise InputError(f"{folder} is not a run folder: it has no config.yaml; pass the --output of `fftmoe run`")
    try:
        values = strict_yaml(read_small(folder / "config.yaml"))
        if not isinstance(values, dict):
            raise ValueError("it holds no sections")
        return values
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {folder / 'config.yaml'}: {error}; the run folder is damaged, so start the run again"
        ) from error
