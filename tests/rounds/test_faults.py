"""Rounds with lost clients end, name the lost clients, and merge the updates of the others only."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.config import load_recipe
from fftmoe.engines.base import Engine, Fault, Group, Quota, Reply
from fftmoe.errors import RunError
from fftmoe.records import ServerState, unpack_plan
from fftmoe.server.cohort import choose_cohort, quorum_of, substitute
from fftmoe.setup.engine import open_engine
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.run import resume, run
from fftmoe.store import RunFolder, unpack_state
from shared_fixtures import Cli

SETTINGS = ["evaluation.local_only=false", "trackers=[]"]
Kinds = Callable[[int, int], str | None]
"""Maps (round, client_id) to the kind of fault, or to None."""


class Flaky:
    """Real clients behind a network that loses some of them; answers arrive in reverse order."""

    def __init__(self, inner: Engine, kinds: Kinds, gone: Collection[int] = ()) -> None:
        self._inner, self._kinds, self._gone = inner, kinds, gone
        self.asked: list[tuple[int, ...]] = []

    @property
    def reliable(self) -> bool:
        return False

    def absent(self) -> Collection[int]:
        return self._gone

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        requests = [request for group in groups for request in group]
        self.asked.append(tuple(client_id for client_id, _ in requests))
        good = 0
        for client_id, message in reversed(requests):
            kind = self._kinds(unpack_plan(message)[0].round, client_id)
            if kind is None and quota is not None and quota.is_met:
                kind = "spare"
            if kind is not None:
                yield Fault(client_id, kind, f"{kind} for a test")
            else:
                good += 1
                yield from self._inner.run_clients([[(client_id, message)]])
        if good:
            yield Fault(requests[0][0], "stale", "an answer to an earlier round")

    def close(self) -> None:
        self._inner.close()

    def peak_rss_mib(self) -> float:
        return self._inner.peak_rss_mib()


Finish = Callable[..., tuple[Path, Flaky]]


@pytest.fixture
def finish(recipe_file: Path, tmp_path: Path) -> Finish:
    """`finish("name", kinds, "a.b=c", …, gone=[…])`: the run's folder, and the engine that it had."""

    def make(name: str, kinds: Kinds, *overrides: str, gone: Collection[int] = ()) -> tuple[Path, Flaky]:
        engines: list[Flaky] = []

        def opened(experiment: Experiment, folder: RunFolder) -> Engine:
            engines.append(Flaky(open_engine(experiment, folder), kinds, gone))
            return engines[0]

        folder = tmp_path / name
        if folder.exists():
            resume(folder, open_engine=opened)
        else:
            run(load_recipe(recipe_file, [*SETTINGS, *overrides]), folder, open_engine=opened)
        return folder, engines[0]

    return make


def state(folder: Path) -> ServerState:
    return unpack_state(max((folder / "checkpoints").glob("*.safetensors")).read_bytes())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def nothing(round: int, client_id: int) -> None:
    return None


@pytest.mark.parametrize("kind", ["failed", "late", "absent"])
def test_a_lost_client_is_named_and_counted_and_changes_nothing_else(finish: Finish, kind: str):
    """The round equals one in which the answer of the lost client was not needed."""
    lost = choose_cohort(7, 5, 3, 1)[2]
    folder, engine = finish("lost", lambda round, client: kind if (round, client) == (1, lost) else None)
    summary = json.loads((folder / "summary.json").read_text())
    assert lost in engine.asked[0]
    assert summary["faults"] == {kind: 1, "stale": 2}
    assert summary["clients_failed"] == (kind != "absent")
    assert summary["rounds_void"] == 0
    named = [(row["round"], f["client_id"], f["reason"]) for row in rows(folder) for f in row.get("faults", ())]
    assert (1, lost, f"{kind} for a test") in named
    without, _ = finish("without", lambda round, client: "spare" if (round, client) == (1, lost) else None)
    assert (folder / "adapter/adapter_model.safetensors").read_bytes() == (
        without / "adapter/adapter_model.safetensors"
    ).read_bytes()


def test_a_round_without_a_quorum_changes_only_the_round_number(finish: Finish):
    """Two of five clients answer, and the quorum is three."""
    few = choose_cohort(7, 5, 3, 2)[2:]
    folder, _ = finish(
        "void", lambda round, client: "late" if round == 2 and client in few else None, "federation.quorum=0.6"
    )
    before, _ = finish("before", nothing, "federation.rounds=1")
    assert equal(state(folder).tensors, state(before).tensors)
    assert state(folder).round == 2
    assert [row.get("void", False) for row in rows(folder)] == [False, False, True]
    assert json.loads((folder / "summary.json").read_text())["rounds_void"] == 1
    enough, _ = finish(
        "enough", lambda round, client: "late" if round == 2 and client in few else None, "federation.quorum=0.4"
    )
    assert not equal(state(enough).tensors, state(before).tensors)


def test_a_run_without_answers_ends_with_a_reason_and_can_be_resumed(finish: Finish, tmp_path: Path):
    """The run ends after exactly three such rounds, with a checkpoint of the third."""
    overrides = ("federation.rounds=7",)
    with pytest.raises(
        RunError, match=r"last 3 rounds had fewer than 3 valid updates .*client \d late: late for a test.*resume"
    ):
        finish("dead", lambda round, client: "late" if round > 1 else None, *overrides)
    assert state(tmp_path / "dead").round == 4
    assert not (tmp_path / "dead" / "summary.json").exists()
    folder, _ = finish("dead", nothing)
    assert state(folder).round == 7
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["rounds_void"], summary["faults"]["late"]) == (3, 15)


def test_absent_clients_are_replaced_by_others(finish: Finish):
    folder, engine = finish("absent", nothing, gone=[0, 3])
    assert all(len(asked) == 5 and not {0, 3} & set(asked) for asked in engine.asked)
    assert json.loads((folder / "summary.json").read_text())["rounds_void"] == 0


def test_over_selection_asks_more_clients_than_needed(finish: Finish):
    """Updates beyond the needed number are not merged."""
    folder, engine = finish("spare", nothing, "federation.over_selection=2")
    assert all(len(asked) == 7 for asked in engine.asked)
    assert json.loads((folder / "summary.json").read_text())["faults"] == {"spare": 4, "stale": 2}


def test_the_command_line_shows_faults_and_local_runs_have_none(cli: Cli, recipe_file: Path, tmp_path: Path):
    sets = [part for setting in [*SETTINGS, "federation.over_selection=2"] for part in ("--set", setting)]
    outcome = cli("run", recipe_file, "--output", tmp_path / "run", *sets)
    assert (outcome.status, "faults" in outcome.out) == (0, False)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["clients_failed"], summary["faults"]) == (0, {})


@given(st.integers(1, 29), st.data())
def test_substitutes_are_present_distinct_and_as_many_as_possible(num_clients: int, data: st.DataObject):
    size = data.draw(st.integers(1, num_clients))
    absent = data.draw(st.sets(st.integers(0, num_clients - 1)))
    cohort = choose_cohort(num_clients, size, 3, 5)
    found = substitute(cohort, absent, num_clients, 3, 5)
    assert list(found) == sorted(set(found))
    assert len(found) == min(size, num_clients - len(absent))
    assert set(found) & absent == set()
    assert set(cohort) - absent <= set(found)
    assert found == substitute(cohort, absent, num_clients, 3, 5)


@pytest.mark.parametrize(("fraction", "of"), [(0.0, 1), (0.5, 3), (0.6, 3), (0.61, 4), (1.0, 5)])
def test_a_quorum_is_rounded_up_to_at_least_one(fraction: float, of: int):
    assert quorum_of(5, fraction) == of
