"""What `fftmoe plan` shows to a person."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from rich.console import Console

from fftmoe.cli.held_experts import counted_experts, coverage, ranges
from fftmoe.cli.plan_output import in_millions, print_forecast
from fftmoe.config import load_whole
from fftmoe.setup.forecast import forecast
from models import tiny_tokenizer
from run_fixtures import PlanTiny
from shared_fixtures import Cli


def test_a_plan_writes_nothing_and_reads_well(
    cli: Cli, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    many = ("--set", "partition={kind: iid, num_clients: 23}")
    outcome = cli("plan", recipe_file, *many)
    assert (outcome.status, outcome.err) == (0, "")
    for word in ("small", "large", "2 rounds of 5 clients", "and 3 more clients"):
        assert word in outcome.out
    client = re.compile(r"^client\s+\d+ .*\b[45] examples .*block 1: ", re.MULTILINE)
    assert len(client.findall(outcome.out)) == 20
    assert len(client.findall(cli("plan", recipe_file, *many, "--clients").out)) == 23
    assert list(tmp_path.iterdir()) == []


def test_a_plan_says_when_statistics_are_sent(plan_tiny: PlanTiny):
    known, shown = plan_tiny("head={kind: closed-form, every: 1}")
    size = f"{known['sums']['bytes_up'] / 1024:.1f} KiB"
    assert "computes the head from feature statistics: for them, every client also gets " in shown
    assert f"and sends at most {size}, 3 times: before the first round, then after every round.\n" in shown
    shown = plan_tiny("head={kind: closed-form, every: 2}").shown
    assert "2 times: before the first round, then after every 2 rounds and after the last.\n" in shown
    shown = plan_tiny("head={kind: closed-form, update: frozen}").shown
    assert ", once, before the first round.\n" in shown
    known, shown = plan_tiny()
    assert known["sums"] is None
    assert "statistics" not in shown


@pytest.mark.parametrize("method", ["hetlora", "fedit"])
def test_a_plan_of_lora_shows_ranks_and_no_experts(plan_tiny: PlanTiny, method: str):
    known, shown = plan_tiny(f"method={method}")
    budgets = [tier["budget"]["rank"] for tier in known["tiers"]]
    ranks = [tier["rank"] for tier in known["tiers"]]
    assert budgets[0] < budgets[1]
    # FedIT knows one rank, the smallest.
    assert ranks == (budgets if method == "hetlora" else [budgets[0]] * 2)
    for name, rank in zip(("small", "large"), ranks, strict=True):
        assert re.search(rf"^ *{name} +\d+ +rank {rank} ", shown, re.MULTILINE)
    assert "uses: LoRA's rank.\n" in shown
    assert "expert" not in shown
    assert len(re.findall(r"^client +\d+  (?:small|large) +\d+ examples$", shown, re.MULTILINE)) == 7


def test_a_plan_of_head_only_shows_no_experts(plan_tiny: PlanTiny):
    known, shown = plan_tiny("method=head-only")
    assert [tier["rank"] for tier in known["tiers"]] == [None, None]
    assert len(re.findall(r"^ *(?:small|large) +\d+ +head ", shown, re.MULTILINE)) == 2
    assert "expert" not in shown
    assert "uses:" not in shown


def test_a_plan_of_experts_shows_how_many_are_used(plan_tiny: PlanTiny):
    known, shown = plan_tiny()
    assert [tier["rank"] for tier in known["tiers"]] == [None, None]
    assert re.search(r"^ *small +\d+ +1 of 2 ", shown, re.MULTILINE)
    assert "uses: experts a token activates" in shown


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((4,), "4"), ((0, 1, 2), "0-2"), ((0, 1, 3, 7, 8), "0-1 3 7-8")]
)
def test_ranges_are_for_people(numbers: tuple[int, ...], text: str):
    assert ranges(numbers) == text


BLOCKS = 31


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of 31 blocks, as many as a small language model has."""
    folder = tmp_path_factory.mktemp("deep")
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = transformers.BertConfig(num_hidden_layers=BLOCKS, max_position_embeddings=37, vocab_size=31, **shape)
    transformers.BertModel(config).save_pretrained(folder)
    tiny_tokenizer(("ash", "bay", "blue", "green", "red")).save_pretrained(folder)
    return folder


def test_a_plan_of_31_blocks_fits_a_screen_and_names_all_experts_if_asked(cli: Cli, recipe_file: Path, deep: Path):
    settings = {"backbone.model": deep, "partition": "{kind: iid, num_clients: 23}"}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    few = cli("plan", recipe_file, *options, "--set", "adapter.blocks=last-2").out.splitlines()
    all_blocks = (*options, "--set", "adapter.blocks=all")
    many = cli("plan", recipe_file, *all_blocks).out.splitlines()
    assert len(many) <= len(few) + 1
    clients = [line for line in many if line.startswith("client ")]
    assert len(clients) == 20
    assert all(len(line) <= 80 for line in clients)
    assert any(re.search(rf"small +[45] examples  2 experts in each of {BLOCKS} blocks$", line) for line in clients)
    assert not any("block 1:" in line for line in many)
    (said,) = (line for line in many if line.startswith("an expert is held by "))
    assert said.endswith("`fftmoe plan --verbose` names all.")

    whole = cli("plan", recipe_file, *all_blocks, "--verbose").out
    assert len(re.findall(r"^client +\d+ ", whole, re.MULTILINE)) == 23
    assert len(re.findall(r"^  block \d+: [\d -]+$", whole, re.MULTILINE)) == 23 * BLOCKS
    assert "more clients" not in whole


def test_the_costs_of_many_blocks_fit_80_columns(recipe_file: Path, deep: Path):
    """As large as those of all blocks of a model of 135 million parameters."""
    settings = [f"backbone.model={deep}", "adapter.blocks=all"]
    found = forecast(load_whole(str(recipe_file), settings)[0])
    size = 24 * 2**20 + 2**18
    costs = {"bytes_down": size, "bytes_up": size, "training_bytes": 4 * size, "flops_per_token": 22.4e6}
    tiers = tuple(
        replace(tier, budget=replace(tier.budget, name=name), trainable_parameters=number, **costs)
        for tier, name, number in zip(found.tiers, ("medium", "large"), (6_330_240, 123_456_789), strict=True)
    )
    printed = io.StringIO()
    print_forecast(Console(file=printed, width=80), replace(found, tiers=tiers), all_clients=False)
    table = printed.getvalue().partition("uses:")[0]
    assert all(words in table for words in ("6.33 M", "123.5 M", "24.2 MiB", "97.0 MiB", "22.40", "MFLOP", "trained"))
    assert "…" not in table
    assert "trained: parameters, M: millions." in printed.getvalue()


@pytest.mark.parametrize(
    ("number", "text"), [(999_999, "999,999"), (10**6, "1.00 M"), (9_994_999, "9.99 M"), (10**7, "10.0 M")]
)
def test_millions_of_parameters_are_short(number: int, text: str):
    assert in_millions(number) == text


def test_experts_are_counted_over_clients_and_blocks():
    held = {0: {3: (0, 1), 4: (2,)}, 7: {3: (1,), 4: (2, 0)}, 9: {}}
    assert [counted_experts(held[client]) for client in held] == [
        "1 to 2 experts in each of 2 blocks",
        "1 to 2 experts in each of 2 blocks",
        "no experts",
    ]
    assert counted_experts({4: (2,)}) == "1 expert in block 4"
    # Experts 0, 1 and 2 of block 3 have 1, 2 and 0 clients, and those of block 4 have 1, 0 and 2.
    assert coverage(held) == (
        "an expert is held by 0 to 2 of 3 clients, 1.0 on average; no client holds 2 of 6 experts."
    )
