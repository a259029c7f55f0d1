"""The benchmark of uploads: its shares, on messages that are made up and on real ones, and its differences."""

import importlib
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fftmoe.config import load_recipe
from fftmoe.records import ServerState, pack
from fftmoe.setup.compose import compose

DIM, CLASSES = 11, 3


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("bytes")


def message(experts: int, dtype: torch.dtype = torch.float32) -> bytes:
    tensors = {"blocks.1.up": torch.zeros(experts, 4, DIM), "head.weight": torch.zeros(CLASSES, DIM)}
    return pack({"client_id": experts}, {name: t.to(dtype) for name, t in tensors.items()})


def cells(table: str) -> list[list[str]]:
    """The rows of a Markdown table, without its header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_adapter_is_counted_without_the_head(bench: Any):
    tensors = {"blocks.1.router": torch.zeros(7, DIM), "shared.1.up": torch.zeros(2, DIM)}
    state = ServerState(0, tensors | {"head.weight": torch.zeros(CLASSES, DIM)})
    assert bench.adapter_bytes(state) == 4 * (7 + 2) * DIM


def test_the_head_in_a_message_is_counted_with_its_scales(bench: Any):
    assert bench.head_bytes(message(5)) == 4 * CLASSES * DIM
    assert bench.head_bytes(message(5, torch.bfloat16)) == 2 * CLASSES * DIM
    tensors = {"head.weight": torch.zeros(CLASSES, DIM, dtype=torch.int8), "head.weight:scale": torch.zeros(CLASSES, 1)}
    assert bench.head_bytes(pack({}, tensors)) == CLASSES * DIM + 4 * CLASSES


def test_sizes_are_means_over_the_clients_of_a_tier_and_over_all(bench: Any):
    sent = {0: message(9), 1: message(2), 2: message(4), 3: message(2)}
    found = bench.sizes(sent, {0: "large", 1: "small", 2: "small", 3: "small"})
    assert list(found) == ["small", "large", bench.MEAN]
    assert [own["clients"] for own in found.values()] == [3, 1, 4]
    assert found["small"]["bytes"] == pytest.approx((len(sent[1]) + len(sent[2]) + len(sent[3])) / 3)
    assert found["large"]["bytes"] == len(sent[0])
    assert found[bench.MEAN]["bytes"] == pytest.approx(sum(map(len, sent.values())) / 4)


def test_shares_are_of_the_whole_message_and_of_it_without_the_head(bench: Any):
    own = {"clients": 5, "bytes": 3 * 1024, "head": 1024.0}
    entry = {"adapter_bytes": 16 * 1024, "uploads": {"small": own}}
    (row,) = cells(bench.fraction_table({"int8": entry}))
    assert row == ["int8", "small", "5", "3.0", "1.0", "0.1875", "0.1250", "no, 1.0 KiB too many"]
    (row,) = cells(bench.fraction_table({"int8": {**entry, "adapter_bytes": 24 * 1024}}))
    assert row[-1] == "yes"


@pytest.mark.parametrize("upload", ["float32", "int8"])
def test_the_printed_share_is_the_length_of_real_messages_over_the_adapter(bench: Any, recipe_file: Path, upload: str):
    settings = [f"federation.upload={upload}", "federation.local_steps=1"]
    entry = bench.measured(str(recipe_file), settings)
    experiment = compose(load_recipe(str(recipe_file), settings))
    model = experiment.model
    dim = model.config.hidden_size
    # Two blocks of five experts with four hidden units each, and a router's row of each expert.
    whole = 4 * 2 * 5 * (2 * 4 + 1) * dim
    assert entry["adapter_bytes"] == whole
    sent = bench.uploads(experiment, experiment.method.init(model))
    assert sorted(sent) == list(range(7))
    printed = {row[1]: float(row[5]) for row in cells(bench.fraction_table({upload: entry}))}
    for tier in ("small", "large"):
        own = [len(reply) for client_id, reply in sent.items() if experiment.budgets[client_id].name == tier]
        assert printed[tier] == pytest.approx(sum(own) / len(own) / whole, abs=5e-5)
    assert printed[bench.MEAN] == pytest.approx(sum(map(len, sent.values())) / 7 / whole, abs=5e-5)
    assert printed["small"] < printed["large"]


def test_lora_messages_do_not_grow_with_local_steps(bench: Any, recipe_file: Path):
    settings = ["method=fedit", "adapter.expert_dim=40"]  # large enough for rank 1

    def found(steps: int) -> dict[str, Any]:
        return bench.measured(str(recipe_file), [*settings, f"federation.local_steps={steps}"])

    one, three = found(1), found(3)
    assert one["ranks"] == three["ranks"]
    assert all(one["ranks"].values())
    for tier, own in one["uploads"].items():
        assert three["uploads"][tier]["head"] == own["head"]
        # The header holds the loss, whose digits vary; so may the padding behind it.
        assert abs(three["uploads"][tier]["bytes"] - own["bytes"]) < 32


def summary(seed: int, accuracy: float) -> dict[str, Any]:
    tiers = {"small": {"client_rounds": 3, "bytes_up": 2048.0}, "large": {"client_rounds": 1, "bytes_up": 6144.0}}
    return {"seed": seed, "accuracy": accuracy, "per_client_round_by_tier": tiers}


def test_differences_pair_the_seeds(bench: Any):
    found = {
        "float32": [summary(0, 0.50), summary(1, 0.60), summary(2, 0.70)],
        "bfloat16": [summary(0, 0.501), summary(1, 0.602), summary(2, 0.703)],
        "int8": [summary(1, 0.59), summary(2, 0.69)],
        bench.CONTROL: [],
    }
    rows = {row[1]: row for row in bench.accuracy_rows("made up", found)}
    assert rows["float32"][3:] == ["3.0", "0.600 ± 0.100", "–", "–"]
    # Three differences with mean 0.002 and deviation 0.001: 4.303 * 0.001 / sqrt(3) on either side.
    assert rows["bfloat16"][2:] == ["3", "3.0", "0.602 ± 0.101", "+0.0020 ± 0.002", "yes"]
    assert rows["int8"][2] == "2"
    assert rows["int8"][5] == "-0.0100 ± 0.000"
    assert rows["int8"][6] == "no"
    assert bench.CONTROL not in rows


@pytest.mark.parametrize(
    ("mean", "half", "expected"),
    [
        (-0.002, 0.003, "yes"),
        (-0.002, 0.004, "open"),
        (-0.009, 0.005, "open"),
        (-0.009, 0.003, "no"),
        (0.01, None, "open"),
    ],
)
def test_a_loss_is_judged_by_its_interval(bench: Any, mean: float, half: float | None, expected: str):
    assert bench.verdict(bench.Estimate(mean, half, 3)) == expected


def test_runs_in_the_file_are_not_run_again_and_no_more_than_asked_for(bench: Any, monkeypatch: pytest.MonkeyPatch):
    ran: list[str] = []

    class Made:
        def __init__(self) -> None:
            self.runs = {"data, float32, seed 0": {}, "data, bfloat16, seed 0": {}}

        def run(self, name: str, recipe: str, overrides: list[str]) -> dict[str, Any]:
            if name not in self.runs:
                ran.append(name)
            return summary(0, 0.5)

    found = bench.accuracies(Made(), "data", "recipe", [], seeds=2, limit=2)
    assert ran == ["data, int8, seed 0", "data, float32, seed 1"]
    assert [len(runs) for runs in found.values()] == [2, 1, 1, 0]


def test_uploads_are_compared_seed_by_seed_before_the_control(bench: Any):
    asked: list[list[str]] = []

    class Made:
        runs: ClassVar[dict[str, Any]] = {}

        def run(self, name: str, recipe: str, overrides: list[str]) -> dict[str, Any]:
            asked.append(overrides)
            return summary(0, 0.5)

    bench.accuracies(Made(), "data", "recipe", ["x=1"], seeds=2, limit=100)
    uploads = [f"federation.upload={upload}" for upload in ("float32", "bfloat16", "int8")]
    assert asked[:6] == [["x=1", upload, f"seed={seed}"] for seed in (0, 1) for upload in uploads]
    assert asked[6:] == [["x=1", "adapter.compute=wide", f"seed={seed}"] for seed in (0, 1)]
