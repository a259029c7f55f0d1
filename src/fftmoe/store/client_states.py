"""What clients keep for themselves, as files: `clients/000007/round-000012-<SHA-256>.safetensors`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from fftmoe.records import Tensors, pack, unpack
from fftmoe.store.checkpoints import KEPT
from fftmoe.store.files import (
    Damaged,
    disk_errors,
    make_folder,
    read_whole,
    remove,
    remove_temporaries,
    sha256,
    sync,
    write_atomically,
)

GENERATIONS = KEPT + 1  # of a client's state: whatever checkpoint a run goes back to, what came before it is there
NAME = re.compile(r"round-(\d+)-([0-9a-f]{64})\.safetensors")
UNSYNCED = ".unsynced"  # a line for each client whose state has been written and not yet forced to the disk


@dataclass(frozen=True)
class ClientStateFiles:
    """The last states of every client that has kept something, a folder each.

    A state belongs to the round that it was made in. A round that is played again, because the server went back to
    what it had saved before, finds what the client kept before that round.

    Attributes:
        durable: every state is forced to the disk when it is saved. That takes longer than a small client's training;
            without it, whoever saves a checkpoint first forces all of `take_unsynced` there, which takes little longer
            for many than for one.
    """

    folder: Path
    durable: bool = True

    def load(self, client_id: int, before: int) -> Tensors:
        """What the client kept in its last round before this one; empty for a client that has kept nothing.

        Raises:
            Damaged: it is not what was saved.
        """
        kept = _newest(self._own(client_id), before)
        return _read(kept) if kept else {}

    def save(self, client_id: int, round: int, state: Tensors) -> None:
        """Put the state of this round in the place of those of the same round or later, else beside the older ones."""
        if not state:
            return
        own, data = self._own(client_id), pack({"round": round}, state)
        with disk_errors(own):
            if not own.exists():
                make_folder(own) if self.durable else own.mkdir(parents=True)
            _forget_from(own, round)
        write_atomically(own / f"round-{round:06d}-{sha256(data)}.safetensors", data, self.durable)
        with disk_errors(own):
            if self.durable:
                remove(*_outdated(own))
            else:
                with (self.folder / UNSYNCED).open("a") as file:
                    file.write(f"{client_id}\n")  # in one call: lines of several processes do not mix

    def take_unsynced(self) -> list[Path]:
        """The files and folders to force to the disk before a checkpoint that counts on them; they are told once.

        What no checkpoint counts on any more is removed.
        """
        listed = self.folder / UNSYNCED
        if not listed.exists():
            return []
        owns = [self._own(client_id) for client_id in sorted(set(map(int, listed.read_text().split())))]
        remove(listed, *(path for own in owns for path in _outdated(own)))
        return [self.folder, *owns, *(kept.path for own in owns for kept in _all(own)[:1])]

    def check(self, round: int) -> None:
        """Read what every client kept last, as of the end of this round.

        Raises:
            Damaged: of one it is not what was saved.
        """
        for own in self._owns():
            if kept := _newest(own, before=round + 1):
                _read(kept)

    def forget_after(self, round: int) -> None:
        """Remove what clients kept in later rounds, and what was never finished."""
        (self.folder / UNSYNCED).unlink(missing_ok=True)
        sync(*(own for own in self._owns() if _forget_from(own, round + 1)))
        for own in self._owns():
            remove_temporaries(own)

    def _own(self, client_id: int) -> Path:
        return self.folder / f"{client_id:06d}"

    def _owns(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*") if path.name.isdecimal())


class Kept(NamedTuple):
    """One state of a client."""

    round: int
    digest: str
    path: Path


def _all(own: Path) -> list[Kept]:
    """Newest first."""
    named = [(path, NAME.fullmatch(path.name)) for path in own.iterdir()] if own.exists() else []
    return sorted((Kept(int(name[1]), name[2], path) for path, name in named if name), reverse=True)


def _newest(own: Path, before: int) -> Kept | None:
    return next((kept for kept in _all(own) if kept.round < before), None)


def _forget_from(own: Path, round: int) -> bool:
    """Remove the states of this round and later ones; whether there were any."""
    later = [kept.path for kept in _all(own) if kept.round >= round]
    remove(*later)
    return bool(later)


def _outdated(own: Path) -> list[Path]:
    return [kept.path for kept in _all(own)[GENERATIONS:]]


def _read(kept: Kept) -> Tensors:
    try:
        return unpack(read_whole(kept.path, kept.digest))[1]
    except (Damaged, ValueError, LookupError, TypeError, SafetensorError) as error:
        client_id = int(kept.path.parent.name)
        reason = error if isinstance(error, Damaged) else f"{kept.path} is no state of a client: {error}"
        raise Damaged(
            f"{reason}; client {client_id} kept it in round {kept.round}: remove it, and the client goes on with what "
            "it kept before, which is not the same run"
        ) from error
