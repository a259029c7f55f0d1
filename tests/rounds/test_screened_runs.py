"""Whole runs in which clients send what no honest client sends: they go on as if it had not come, and say so."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe.config import parse_recipe
from fftmoe.engines.base import Engine, Fault, Group, Quota, Reply
from fftmoe.errors import RunError
from fftmoe.methods.registry import METHODS
from fftmoe.records import ClientPlan, ServerState, Tensors, unpack_plan
from fftmoe.server.cohort import choose_cohort
from fftmoe.setup.engine import open_engine
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.run import resume, run
from fftmoe.store import RunFolder, unpack_state
from spoiling import of, say
from tampering import CELLS, recipe_of

Answer = Callable[[ClientPlan, bytes], bytes | Fault]
"""What becomes of a client's honest answer."""


class Tampering:
    """Real clients, whose answers are what `answer` makes of them."""

    def __init__(self, inner: Engine, answer: Answer) -> None:
        self._inner, self._answer = inner, answer

    @property
    def reliable(self) -> bool:
        return self._inner.reliable

    def absent(self) -> Collection[int]:
        return self._inner.absent()

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        plans = {client_id: unpack_plan(message)[0] for group in groups for client_id, message in group}
        for reply in self._inner.run_clients(groups, quota):
            assert isinstance(reply, Reply)
            answer = self._answer(plans[reply.client_id], reply.message)
            yield answer if isinstance(answer, Fault) else reply._replace(message=answer)

    def close(self) -> None:
        self._inner.close()

    def peak_rss_mib(self) -> float:
        return self._inner.peak_rss_mib()


Finish = Callable[..., Path]
Whose = Callable[[ClientPlan], bool]


@pytest.fixture
def finish(recipe_values: dict[str, Any], tmp_path: Path) -> Finish:
    """`finish("name", "fedit", answer, **{"federation.rounds": 7})`: the run's folder, or the rest of one there."""

    def make(name: str, cell: str, answer: Answer, **changes: Any) -> Path:
        def opened(experiment: Experiment, folder: RunFolder) -> Engine:
            return Tampering(open_engine(experiment, folder), answer)

        folder = tmp_path / name
        if folder.exists():
            resume(folder, open_engine=opened)
        else:
            run(parse_recipe(recipe_of(cell, recipe_values, **changes), "tiny"), folder, open_engine=opened)
        return folder

    return make


def honest(plan: ClientPlan, message: bytes) -> bytes:
    return message


def instead(whose: Whose, change: Callable[[bytes], bytes | None]) -> Answer:
    """These clients' answers changed."""
    return lambda plan, message: change(message) or message if whose(plan) else message


def missing(whose: Whose) -> Answer:
    """These clients' answers left out."""
    return lambda plan, message: Fault(plan.client_id, "spare", "left out for a test") if whose(plan) else message


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def faults(folder: Path) -> list[tuple[int, int, str]]:
    return [(row["round"], f["client_id"], f["kind"]) for row in rows(folder) for f in row.get("faults", ())]


def state(folder: Path) -> ServerState:
    return unpack_state(max((folder / "checkpoints").glob("*.safetensors")).read_bytes())


def assert_equal_runs(one: Path, other: Path) -> None:
    """The same tensors in every file, and the same accuracy."""
    files = {path.relative_to(one): path.read_bytes() for path in one.rglob("*.safetensors")}
    assert files == {path.relative_to(other): path.read_bytes() for path in other.rglob("*.safetensors")}
    assert {"adapter", "checkpoints"} <= {path.parts[0] for path in files}
    for key in ("accuracy", "accuracy_by_tier", "accuracy_by_round", "bytes_down", "rounds_void"):
        assert summary(one)[key] == summary(other)[key]


def not_a_number(header: dict[str, Any], tensors: Tensors) -> None:
    """In every tensor, and where there is none in the weight."""
    for tensor in tensors.values():
        tensor.view(-1)[:1] = float("nan")
    if not tensors:
        header["num_examples"] = 10**6


def first_of(round: int, num_clients: int) -> int:
    return choose_cohort(num_clients, min(3, num_clients), 3, round)[0]


@pytest.mark.parametrize("method", tuple(METHODS))
def test_a_run_with_rejected_updates_equals_a_run_without_them(finish: Finish, method: str):
    """In both rounds one, or in the first if there is one client only; on one machine, where engines lose nobody."""
    lost = {1: 0} if method == "centralized" else {1: first_of(1, 5), 2: first_of(2, 5)}

    def whose(plan: ClientPlan) -> bool:
        return lost.get(plan.round) == plan.client_id

    refused = finish("refused", method, instead(whose, of(not_a_number)))
    without = finish("without", method, missing(whose))
    assert_equal_runs(refused, without)
    assert faults(refused) == [(t, c, "rejected") for t, c in lost.items()]
    reasons = [f["reason"] for row in rows(refused) for f in row.get("faults", ())]
    assert all("nan" in reason or "num_examples 1000000" in reason for reason in reasons)
    assert summary(refused)["faults"] == {"rejected": len(lost)}
    assert (summary(refused)["clients_failed"], summary(without)["clients_failed"]) == (len(lost), 0)
    assert summary(refused)["bytes_up"] > summary(without)["bytes_up"]


@pytest.mark.parametrize("cell", ["fft-moe-solved-head", "head-only-solved-head", "fedsa-lora-sums", "flora-sums"])
def test_rejected_statistics_change_nothing(finish: Finish, cell: str):
    def whose(plan: ClientPlan) -> bool:
        return plan.task == "sums" and plan.client_id == 2

    refused = finish("refused", cell, instead(whose, of(not_a_number)))
    assert_equal_runs(refused, finish("without", cell, missing(whose)))
    assert faults(refused)[0] == (0, 2, "rejected")
    assert set(summary(refused)["faults"]) == {"rejected"}
    assert not torch.equal(
        state(refused).tensors["head.weight"], state(finish("all", cell, honest)).tensors["head.weight"]
    )


@pytest.mark.parametrize("cell", ["fft-moe", "fft-moe-int8", "hetlora", "local-only", "fft-moe-solved-head"])
def test_bad_results_of_local_training_are_left_out(finish: Finish, cell: str):
    def whose(plan: ClientPlan) -> bool:
        return plan.task == "alone" and plan.client_id in (0, 4)

    local = {"evaluation.local_only": True}
    refused = finish(
        "refused", cell, instead(whose, of(lambda h, t: h["metrics"].update(holdout_accuracy=7.0))), **local
    )
    without = finish("without", cell, missing(whose), **local)
    assert_equal_runs(refused, without)
    for key in ("local_only_accuracy", "reweighted_local_only_accuracy"):
        assert summary(refused)[key] == summary(without)[key]
    assert summary(refused)["local_only_accuracy"]["num_clients"] == 3
    named = [(f["client_id"], f["kind"], f["reason"]) for f in summary(refused)["local_only_faults"]]
    reason = "its holdout_accuracy is 7.0; expected a number from 0 to 1"
    assert named == [(0, "rejected", reason), (4, "rejected", reason)]
    all_bad = finish("nobody", cell, instead(lambda plan: plan.task == "alone", lambda _: b"-"), **local)
    assert len(summary(all_bad)["local_only_faults"]) == 5
    assert "local_only_accuracy" not in summary(all_bad)
    assert "local_only_faults" not in summary(finish("all", cell, honest, **local))


def test_a_run_with_only_bad_updates_ends_with_a_reason_and_can_be_resumed(finish: Finish, tmp_path: Path):
    """After three rounds without an update, which count as rounds and change nothing."""
    lies = instead(lambda plan: plan.round > 1, say(num_examples=0))
    reason = r"last 3 rounds had no valid update and changed nothing \(.*client \d rejected: its update states num_"
    with pytest.raises(RunError, match=reason + r"examples 0; .*; remove the cause, then continue with `fftmoe resume"):
        finish("dead", "fedit", lies, **{"federation.rounds": 6})
    assert state(tmp_path / "dead").round == 4
    folder = finish("dead", "fedit", honest)
    assert state(folder).round == 6
    assert (summary(folder)["rounds_void"], summary(folder)["faults"]) == (3, {"rejected": 9})


def test_without_statistics_the_head_stays_or_the_run_ends(finish: Finish, tmp_path: Path):
    """A head that exists stays; without one the run ends."""
    named = (
        r"no client sent the feature statistics .*client 4 rejected: its message is not an fftmoe update: it has 1 b"
    )
    with pytest.raises(RunError, match=named):
        finish("none", "fft-moe-solved-head", instead(lambda plan: plan.task == "sums", lambda _: b"-"))
    assert not (tmp_path / "none" / "summary.json").exists()
    folder = finish(
        "kept", "fft-moe-solved-head", instead(lambda plan: plan.task == "sums" and plan.round > 0, lambda _: b"-")
    )
    before = finish("before", "fft-moe-solved-head", honest, **{"head.update": "frozen"})
    assert torch.equal(state(folder).tensors["head.weight"], state(before).tensors["head.weight"])
    assert summary(folder)["faults"] == {"rejected": 10}


def test_the_recipe_bounds_the_norm_of_an_update(finish: Finish):
    bound = "federation.max_update_norm"
    changed, large = finish("large", "fedit", honest), finish("bounded", "fedit", honest, **{bound: 1e6})
    assert_equal_runs(changed, large)
    with pytest.raises(RunError, match=r"no round of 2 had .* its deltas have the norm .*; at most 1e-06"):
        finish("tiny", "fedit", honest, **{bound: 1e-6})


@pytest.mark.parametrize("cell", [cell for cell, (_, head, task, _) in CELLS.items() if task == "train"])
def test_a_run_of_honest_clients_has_no_faults(finish: Finish, cell: str):
    folder = finish("run", cell, honest, **{"federation.rounds": 4, "evaluation.local_only": True})
    assert summary(folder)["faults"] == {}
    assert "local_only_faults" not in summary(folder)
    assert [row.get("void", False) for row in rows(folder)] == [False] * 5


# Changes that are far too long


def times(factor: float) -> Callable[[bytes], bytes | None]:
    """The same changes or features, longer by this factor."""

    def longer(header: dict[str, Any], tensors: Tensors) -> None:
        if "sums.moment" in tensors:
            tensors |= of_longer_features(tensors, factor)
            return
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor *= factor

    return of(longer)


def of_longer_features(tensors: Tensors, factor: float) -> Tensors:
    along = torch.full((len(tensors["sums.moment"]),), factor)
    along[-1] = 1.0  # the ones that count the examples
    moment = tensors["sums.moment"] * along[:, None]
    if "sums.factor" in tensors:
        return {"sums.factor": tensors["sums.factor"] * along, "sums.moment": moment}
    rows, columns = torch.triu_indices(len(along), len(along))
    return {"sums.gram": tensors["sums.gram"] * along[rows] * along[columns], "sums.moment": moment}


def long_ones(round: int, task: str = "train") -> Whose:
    who = first_of(round, 5) if task == "train" else 2
    return lambda plan: (plan.round, plan.client_id, plan.task) == (round, who, task)


@pytest.mark.parametrize(
    ("cell", "factor", "round"),
    [("fft-moe", 1e3, 1), ("fft-moe-int8", 1e6, 2), ("fedit", 1e6, 1), ("flora", 1e3, 2), ("head-only", 1e3, 1)],
)
def test_changes_that_are_far_too_long_are_as_if_they_had_not_come(
    finish: Finish, cell: str, factor: float, round: int
):
    """By the default, in the first round and in a later one."""
    whose = long_ones(round)
    refused = finish("refused", cell, instead(whose, times(factor)))
    assert_equal_runs(refused, finish("without", cell, missing(whose)))
    assert faults(refused) == [(round, first_of(round, 5), "rejected")]
    (reason,) = [f["reason"] for row in rows(refused) for f in row.get("faults", ())]
    assert "federation.max_update_norm: none allows any" in reason


@pytest.mark.parametrize(("cell", "factor"), [("fft-moe-solved-head", 1e3), ("fft-moe-sums-of-few", 1e6)])
def test_statistics_of_features_far_too_long_are_as_if_they_had_not_come(finish: Finish, cell: str, factor: float):
    whose = long_ones(0, "sums")
    refused = finish("refused", cell, instead(whose, times(factor)))
    assert_equal_runs(refused, finish("without", cell, missing(whose)))
    assert faults(refused) == [(0, 2, "rejected")]


def test_the_comparison_can_be_turned_off(finish: Finish):
    off = {"federation.max_update_norm": "none"}
    long = instead(long_ones(1), times(1e3))
    off_run, default = finish("off", "fedit", long, **off), finish("on", "fedit", long)
    assert (faults(off_run), len(faults(default))) == ([], 1)
    assert max(float(t.abs().max()) for t in state(off_run).tensors.values()) > 10 * max(
        float(t.abs().max()) for t in state(default).tensors.values()
    )
    assert all("update_norm" not in row for row in rows(off_run))


def test_a_round_of_two_is_compared_with_the_rounds_before_and_so_after_a_resume(finish: Finish, tmp_path: Path):
    two = {"federation.clients_per_round": 2, "federation.rounds": 3}
    third = choose_cohort(5, 2, 3, 3)[0]

    def longer(plan: ClientPlan) -> bool:
        return (plan.round, plan.client_id) == (3, third)

    def dies(plan: ClientPlan, message: bytes) -> bytes:
        if plan.round == 3:
            raise RunError("the machine is turned off")
        return message

    long = instead(longer, times(1e4))
    refused = finish("refused", "fedit", long, **two)
    assert_equal_runs(refused, finish("without", "fedit", missing(longer), **two))
    assert faults(refused) == [(3, third, "rejected")]
    with pytest.raises(RunError, match="turned off"):
        finish("resumed", "fedit", dies, **two)
    resumed = finish("resumed", "fedit", long)
    assert_equal_runs(refused, resumed)
    assert [row.get("update_norm") for row in rows(resumed)] == [row.get("update_norm") for row in rows(refused)]


@pytest.mark.parametrize(
    "section",
    [{"robustness": {"aggregator": "trimmed-mean"}}, {"privacy": {"min_contributors": 2}}],
    ids=["robust", "sums"],
)
def test_runs_that_bound_changes_otherwise_compare_nothing(finish: Finish, section: dict[str, Any]):
    own = {**section, "adapter.residents": "balanced"} if "privacy" in section else section
    folder = finish("run", "fft-moe", instead(long_ones(1), times(1e3)), **own)
    assert summary(folder).get("faults", {}) == {}
