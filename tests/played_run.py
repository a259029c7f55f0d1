"""A run of five rounds whose files are written as a run writes them, but whose tensors are drawn, not trained."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fftmoe.records import ServerState, Tensors
from fftmoe.rng import generator
from fftmoe.store import RunFolder, Saved, pack_state

ROUNDS = 5
CLIENTS = range(3)


def random_tensor(*key: object) -> torch.Tensor:
    return torch.randn(5, generator=generator(3, *map(str, key)))


def state_after(round: int) -> ServerState:
    return ServerState(
        round,
        {"head.weight": random_tensor("model", round)},
        {"head.weight:m": random_tensor("moments", round)},
        preferences={client: {1: (2, round)} for client in CLIENTS},
    )


def takes_part(client: int, round: int) -> bool:
    """One client in every round, the others in every other."""
    return client == 2 or (round + client) % 2 == 0


def kept_after(client: int, round: int) -> Tensors:
    """The state that the client has at the end of this round."""
    last = round if takes_part(client, round) else round - 1
    return {"affinity": random_tensor(client, last)} if last > 0 else {}


def play(folder: RunFolder, first: int, done: Callable[[int], None] = lambda _: None) -> None:
    """Write the rounds from this one on, as a run does."""
    if first == 1:
        folder.append_metrics({"round": 0, "bytes_up": 0})
    for round in range(first, ROUNDS + 1):
        for client in CLIENTS:
            if takes_part(client, round):
                folder.client_states.save(client, round, kept_after(client, round))
        folder.append_metrics({"round": round, "bytes_up": 1000 * round})
        folder.save_state(state_after(round))
        done(round)


def go_on(folder: RunFolder, done: Callable[[int], None] = lambda _: None) -> None:
    saved = folder.load_newest()
    assert_was_saved(folder, saved)
    folder.rewind(saved)
    play(folder, saved.state.round + 1 if saved.state else 1, done)


def assert_was_saved(folder: RunFolder, saved: Saved) -> None:
    """What was saved belongs to one round, and is that round with all its files."""
    if saved.state is None:
        assert saved.rows == []
        return
    round = saved.state.round
    assert pack_state(saved.state) == pack_state(state_after(round))
    kept = [t for t in range(round + 1) if t not in saved.rows_lost]
    assert kept[-1] == round
    assert saved.rows == [{"round": t, "bytes_up": 1000 * t} for t in kept]
    for client in CLIENTS:
        found, expected = folder.client_states.load(client, before=round + 1), kept_after(client, round)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def played(folder: Path) -> Path:
    """The folder of a run after its last round; tests change copies of it."""
    run = RunFolder.create(folder, {"name": "tiny"}, needed_bytes=0)
    play(run, 1)
    return run.path


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    with TemporaryDirectory() as place:
        yield Path(shutil.copytree(folder, Path(place) / "run"))
