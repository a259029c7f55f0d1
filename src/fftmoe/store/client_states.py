"""Stores the states that clients keep, as files: `clients/000007/round-000012-<SHA-256>.safetensors`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from fftmoe.records import Tensors, pack, unpack
from fftmoe.store.checkpoints import KEPT_CHECKPOINTS
from fftmoe.store.files import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    DamagedFileError,
    disk_errors,
    make_folder,
    read_whole,
    remove,
    remove_temporaries,
    sha256,
    sync,
    write_atomically,
)

GENERATIONS = KEPT_CHECKPOINTS + 1  # states of a client: the state before the oldest checkpoint is among them
NAME = re.compile(r"round-(\d+)-([0-9a-f]{64})\.safetensors")
UNSYNCED = ".unsynced"  # has a line for each client whose state was written but not yet forced to the disk


@dataclass(frozen=True)
class ClientStateFiles:
    """Keeps the last states of every client, in one folder for each client that has saved a state.

    A state belongs to the round in which it was made. When the server returns to an older checkpoint and a round is
    repeated, the client finds the state that it had before that round.

    Attributes:
        durable: force every state to the disk when it is saved. That takes longer than the training of a small client.
            Without it, the files of `take_unsynced` must be forced to the disk before a checkpoint is saved, which
            takes hardly longer for many files than for one.
    """

    folder: Path
    durable: bool = True

    def load(self, client_id: int, before: int) -> Tensors:
        """Return the client's state from its last round before this one; empty for a client without a state.

        Raises:
            DamagedFileError: the file does not hold what was saved.
        """
        kept = _newest(self._folder_of(client_id), before)
        return _read_state(kept) if kept else {}

    def save(self, client_id: int, round: int, state: Tensors) -> None:
        """Save the state of this round; it replaces those of the same round and of later rounds.

        Raises:
            OutputError: it cannot be written, or the folder of all states was renamed or removed with the one that held
                it: to make that again would leave a part of a run in its former place.
        """
        if not state:
            return
        folder, data = self._folder_of(client_id), pack({"round": round}, state)
        with disk_errors(folder):
            self.folder.parent.stat()
            if not folder.exists():
                make_folder(folder) if self.durable else folder.mkdir(PRIVATE_FOLDER, parents=True)
            _forget_from(folder, round)
        write_atomically(folder / f"round-{round:06d}-{sha256(data)}.safetensors", data, self.durable)
        with disk_errors(folder):
            if self.durable:
                remove(*_outdated(folder))
            else:
                (self.folder / UNSYNCED).touch(PRIVATE_FILE)
                with (self.folder / UNSYNCED).open("a") as file:
                    file.write(f"{client_id}\n")  # one call, so that the lines of several processes do not mix

    def take_unsynced(self) -> list[Path]:
        """Return the files and folders to force to the disk before the next checkpoint is saved, each listed once.

        States that no checkpoint needs any more are removed.
        """
        listed = self.folder / UNSYNCED
        if not listed.exists():
            return []
        folders = [self._folder_of(client_id) for client_id in sorted(set(map(int, listed.read_text().split())))]
        remove(listed, *(path for folder in folders for path in _outdated(folder)))
        return [self.folder, *folders, *(kept.path for folder in folders for kept in _states_in(folder)[:1])]

    def check(self, round: int) -> None:
        """Read the last state of every client as of the end of this round.

        Raises:
            DamagedFileError: a file does not hold what was saved.
        """
        for folder in self._folders():
            if kept := _newest(folder, before=round + 1):
                _read_state(kept)

    def forget_after(self, round: int) -> None:
        """Remove the states of later rounds, and files that were not completely written."""
        (self.folder / UNSYNCED).unlink(missing_ok=True)
        sync(*(folder for folder in self._folders() if _forget_from(folder, round + 1)))
        for folder in self._folders():
            remove_temporaries(folder)

    def _folder_of(self, client_id: int) -> Path:
        return self.folder / f"{client_id:06d}"

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*") if path.name.isdecimal())


class ClientStateFile(NamedTuple):
    """Describes one saved state of a client."""

    round: int
    digest: str
    path: Path


def _states_in(folder: Path) -> list[ClientStateFile]:
    """Return the states in a client's folder, newest first."""
    named = [(path, NAME.fullmatch(path.name)) for path in folder.iterdir()] if folder.exists() else []
    return sorted((ClientStateFile(int(name[1]), name[2], path) for path, name in named if name), reverse=True)


def _newest(folder: Path, before: int) -> ClientStateFile | None:
    return next((kept for kept in _states_in(folder) if kept.round < before), None)


def _forget_from(folder: Path, round: int) -> bool:
    """Remove the states of this and later rounds; return whether there were any."""
    later = [kept.path for kept in _states_in(folder) if kept.round >= round]
    remove(*later)
    return bool(later)


def _outdated(folder: Path) -> list[Path]:
    return [kept.path for kept in _states_in(folder)[GENERATIONS:]]


def _read_state(kept: ClientStateFile) -> Tensors:
    try:
        return unpack(read_whole(kept.path, kept.digest))[1]
    except (DamagedFileError, ValueError, LookupError, TypeError, SafetensorError) as error:
        client_id = int(kept.path.parent.name)
        reason = error if isinstance(error, DamagedFileError) else f"{kept.path} is not the state of a client: {error}"
        raise DamagedFileError(
            f"{reason}; client {client_id} saved it in round {kept.round}: restore the file, or remove it, and the "
            "client continues from its older state, which changes the result of the run"
        ) from error
