"""What `fftmoe plan` shows to a person."""

import re
from pathlib import Path

import pytest

from fftmoe.cli.plan_output import ranges
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
