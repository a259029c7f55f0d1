"""What clients keep for themselves, as files."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fftmoe.records import Tensors, pack, unpack, unpack_header
from fftmoe.store.files import disk_errors, write_atomically

GENERATIONS = 4  # of a client's state


@dataclass(frozen=True)
class ClientStateFiles:
    """The last states of every client that has kept something, a safetensors file each.

    A state belongs to the round that it was made in. A round that is played again, because the server went back to
    what it had saved before, finds what the client kept before that round.
    """

    folder: Path

    def load(self, client_id: int, before: int) -> Tensors:
        """What the client kept in its last round before this one; empty for a client that has kept nothing."""
        for path in self._paths(client_id):
            if path.exists() and _round(path) < before:
                return unpack(path.read_bytes())[1]
        return {}

    def save(self, client_id: int, round: int, state: Tensors) -> None:
        """Put the state of this round in the place of one of the same round or later, else beside the older ones.

        It is not forced to the disk: that takes longer than a small client's training, and whoever loses power loses
        the round as well.
        """
        if not state:
            return
        paths = self._paths(client_id)
        with disk_errors(paths[0]):
            if paths[0].exists() and _round(paths[0]) >= round:
                _remove_from(round, paths)
            for newer, older in reversed(list(itertools.pairwise(paths))):
                if newer.exists():
                    os.replace(newer, older)
        write_atomically(paths[0], pack({"round": round}, state), durable=False)

    def _paths(self, client_id: int) -> list[Path]:
        """Newest first."""
        names = [f"{client_id:06d}.safetensors"] + [f"{client_id:06d}.{n}.safetensors" for n in range(1, GENERATIONS)]
        return [self.folder / name for name in names]


def _remove_from(round: int, paths: Sequence[Path]) -> None:
    """Take away the states of this round and later ones; the older ones move to the front."""
    found = [(path, _round(path)) for path in paths if path.exists()]
    for path, made in found:
        if made >= round:
            path.unlink()
    for target, path in zip(paths, [path for path, made in found if made < round], strict=False):
        os.replace(path, target)


def _round(path: Path) -> int:
    with path.open("rb") as file:
        length = file.read(8)
        return unpack_header(length + file.read(int.from_bytes(length, "little")))["round"]
