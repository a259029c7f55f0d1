"""Attacks of a malicious server on a site, and of a malicious site on a server: what each learns, ends and costs.

The command of docs/security.md writes what is measured here, and over a network in `test_flood.py` and `test_gate.py`.
"""

import copy
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fftmoe.config import parse_recipe
from fftmoe.deploy.folder import read_server
from fftmoe.deploy.gather import Gathered
from fftmoe.deploy.job import make_job
from fftmoe.deploy.ledger import ledger_in
from fftmoe.deploy.link.link import open_grid
from fftmoe.deploy.link.superlink import Endpoint
from fftmoe.deploy.site import SiteSettings, open_site
from fftmoe.engines.base import Fault
from fftmoe.engines.failures import CodedError
from fftmoe.errors import InputError
from fftmoe.records import ClientPlan, Tensors, pack_plan
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from fftmoe.store import pack_state
from flower_link import free_address
from policies import allow
from profiles import CONTRADICTIONS, GOOD, KNOWN, WRONG, gathered
from shared_fixtures import COLOURS
from sites import NAMES, divide, natural, over_sites
from spoiling import of, say
from tampering import CELLS, Recorded, recipe_of, record

pytestmark = pytest.mark.slow

TIMES = 20  # that each attack is tried, as the file says
Rows = list[dict[str, Any]]
EXAMPLES = {"clip_norm": 1.0, "noise_multiplier": 2.0, "epsilon": 3.0, "delta": 1e-3}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# A server against a site


class Victim(NamedTuple):
    """A site, its honest job, and a plan of the first round that it would carry out."""

    settings: SiteSettings
    job: dict[str, Any]
    plan: ClientPlan
    tensors: Tensors


@pytest.fixture
def victim(recipe_values: dict[str, Any], data_folder: Path, tmp_path: Path) -> Victim:
    divide(data_folder, tmp_path / "divided")
    values = over_sites(natural(recipe_values), tmp_path / "divided")
    recipe, folder = parse_recipe(values, "test"), tmp_path / "site"
    allow(folder, recipe, labels=list(COLOURS), most_rounds=100)
    here = compose(parse_recipe(natural(recipe_values), "here"))
    state = here.method.init(here.model)
    plan = plan_round(here.method, state, 1, range(4), here.budgets, here.training, recipe.seed).clients[0]
    settings = SiteSettings(NAMES[0], 0, tmp_path / "divided" / NAMES[0], plan.budget.name, folder)
    job = make_job(recipe.model_dump(mode="json"), COLOURS, "abc1")
    return Victim(settings, job, plan, here.method.download(state, plan))


def changed(job: dict[str, Any], section: str, **values: Any) -> dict[str, Any]:
    made = copy.deepcopy(job)
    made["recipe"][section] = {**(made["recipe"][section] or {}), **values}
    return made


def spoilt(tensors: Tensors, change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    return {name: change(tensor) if n == 0 else tensor for n, (name, tensor) in enumerate(sorted(tensors.items()))}


def asks(v: Victim, number: int) -> dict[str, tuple[dict[str, Any], ClientPlan, Tensors]]:
    """What a malicious server sends in its nth try, by the name of the attack."""
    job, plan, tensors = v.job, v.plan, v.tensors
    return {
        "feature sums of a recipe without": (job, replace(plan, task="sums"), tensors),
        "evaluation": (job, replace(plan, task="alone"), tensors),
        "other columns": (changed(job, "data", text="label", label="text"), plan, tensors),
        "labels as an oracle": ({**job, "labels": [*COLOURS[:2], f"word {number}"]}, plan, tensors),
        "another learning rate under the same run": (
            changed(job, "federation", learning_rate=0.5 + number),
            plan,
            tensors,
        ),
        "a run that is a path": ({**job, "run": "../" * (number + 1) + "etc"}, plan, tensors),
        "NaN in the model": (job, plan, spoilt(tensors, lambda t: torch.full_like(t, torch.nan))),
        "a tensor of another shape": (job, plan, spoilt(tensors, lambda t: torch.zeros(3, 5))),
        "a tensor too few": (job, plan, dict(sorted(tensors.items())[1:])),
        "another client's plan": (job, replace(plan, client_id=2), tensors),
        "a round beyond the recipe": (job, replace(plan, round=10**6 + number), tensors),
    }


def tried(v: Victim, name: str) -> list[str | bytes]:
    """The codes or the answers to each try."""
    found: list[str | bytes] = []
    for number in range(TIMES):
        job, plan, tensors = asks(v, number)[name]
        try:
            [answer] = open_site(v.settings, job)([pack_plan(plan, tensors)])
            found.append(answer)
        except CodedError as error:
            found.append(str(error.code))
    return found


ON_A_SITE = [
    "feature sums of a recipe without",
    "evaluation",
    "other columns",
    "labels as an oracle",
    "another learning rate under the same run",
    "a run that is a path",
    "NaN in the model",
    "a tensor of another shape",
    "a tensor too few",
    "another client's plan",
    "a round beyond the recipe",
]


@pytest.mark.parametrize("name", ON_A_SITE)
def test_a_server_learns_a_code(victim: Victim, attacks: Rows, name: str):
    """The same for each try, and the site goes on to serve its honest job.

    A request that fails in training counts against the rounds that the policy grants, like one that does not.
    """
    assert set(asks(victim, 0)) == set(ON_A_SITE)
    before, start = peak_mib(), time.perf_counter()
    found = tried(victim, name)
    seconds, grown = time.perf_counter() - start, peak_mib() - before
    honest = open_site(victim.settings, victim.job)([pack_plan(victim.plan, victim.tensors)])
    assert len(honest) == 1
    assert len(set(found)) == 1
    assert isinstance(found[0], str)
    attacks.append(
        {
            "attacker": "server",
            "attack": name,
            "learns": f"code {found[0]}, {len(found[0])} bytes, the same in {TIMES} tries",
            "victim": "site goes on",
            "MiB": round(grown),
            "milliseconds each": round(1000 * seconds / TIMES),
        }
    )


def test_a_server_that_asks_for_more_rounds_than_the_policy_gets_what_the_policy_grants(victim: Victim, attacks: Rows):
    """By replays of the same plan, too: each counts."""
    recipe = parse_recipe(victim.job["recipe"], "test")
    allow(victim.settings.folder, recipe, labels=list(COLOURS), most_rounds=3)
    answers, codes = 0, set[str]()
    for _ in range(TIMES):
        try:
            answers += len(open_site(victim.settings, victim.job)([pack_plan(victim.plan, victim.tensors)]))
        except CodedError as error:
            codes.add(str(error.code))
    assert (answers, codes) == (3, {"policy"})
    attacks.append(
        {
            "attacker": "server",
            "attack": "replay of a plan, beyond the rounds of the policy",
            "learns": f"{answers} updates, as granted; then code policy",
            "victim": "site goes on, and refuses further rounds",
        }
    )


LESS_PRIVATE: dict[str, dict[str, Any]] = {
    "no privacy": {},
    "sums without noise": {"privacy": {"min_contributors": 2}},
    "noise of the server in place of the site's": {
        "privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0, "epsilon": 3.0, "delta": 1e-3}
    },
    "a larger epsilon": {"privacy": {"examples": {**EXAMPLES, "epsilon": 50.0}}},
    "a larger delta": {"privacy": {"examples": {**EXAMPLES, "delta": 0.1}}},
}
"""What a server asks of a site whose policy grants an epsilon of 3 with noise of the site, in the place of that."""


@pytest.mark.parametrize("name", LESS_PRIVATE)
def test_a_server_that_asks_for_less_privacy_than_the_policy_gets_a_code(victim: Victim, attacks: Rows, name: str):
    """Although the operator has approved the very recipe: what the rows may lose is a limit of its own."""
    before, start = peak_mib(), time.perf_counter()
    private = {"residents": "balanced", "balance": "switch"}
    found: list[str] = []
    for number in range(TIMES):
        job = changed(victim.job, "adapter", **private)
        job = {**job, "run": f"run{number}", "recipe": {**job["recipe"], **LESS_PRIVATE[name]}}
        job["recipe"]["data"] = {**job["recipe"]["data"], "labels": list(COLOURS)}
        asked = parse_recipe(job["recipe"], "asked")
        rights = {"modes": ["examples"], "epsilon": 3.0, "delta": 1e-3}
        allow(victim.settings.folder, asked, labels=list(COLOURS), privacy=rights)
        with pytest.raises(CodedError) as refused:
            open_site(victim.settings, job)([pack_plan(victim.plan, victim.tensors)])
        found.append(str(refused.value.code))
        assert "privacy" in str(refused.value.__cause__) or "epsilon" in str(refused.value.__cause__)
    assert set(found) == {"policy"}
    attacks.append(
        {
            "attacker": "server",
            "attack": f"less privacy than the policy's: {name}",
            "learns": f"code policy, 6 bytes, the same in {TIMES} tries",
            "victim": "site goes on; its ledger counts nothing",
            "MiB": round(peak_mib() - before),
            "milliseconds each": round(1000 * (time.perf_counter() - start) / TIMES),
        }
    )
    entries = ledger_in(victim.settings.folder, victim.settings.folder).read()
    assert not [entry for entry in entries if entry["event"] in ("asked", "answered")]


# A site against a server


@pytest.mark.parametrize("known", [False, True], ids=["in a new run", "in a run that goes on"])
def test_a_site_that_lies_about_itself_harms_itself(monkeypatch: pytest.MonkeyPatch, attacks: Rows, known: bool):
    """Profiles that cannot be true, and in a run that goes on also those that contradict what the site said before."""
    lies = {**WRONG, **({name: {**GOOD["b"], **change} for name, change in CONTRADICTIONS.items()} if known else {})}
    before, start, most = peak_mib(), time.perf_counter(), 0
    for lie in lies.values():
        found, shown = gathered(monkeypatch, {**GOOD, "b": lie}, KNOWN if known else None)
        assert isinstance(found, Gathered)
        assert set(found.profiles) - {"b"} == {"a", "c"}
        assert found.profiles.get("b") == (KNOWN["b"] if known else None)
        most = max(most, len(shown))
    attacks.append(
        {
            "attacker": "site",
            "attack": f"{len(lies)} lies about itself, {'in a run that goes on' if known else 'in a new run'}",
            "learns": "nothing",
            "victim": f"the run goes on {'with what the site said first' if known else 'without the site'}; at most "
            f"{most} characters on the terminal",
            "MiB": round(peak_mib() - before),
            "milliseconds each": round(1000 * (time.perf_counter() - start) / len(lies)),
        }
    )


@pytest.mark.parametrize("where", ["the server's folder", "Flower's list of nodes"])
def test_one_key_under_two_names_is_refused_before_the_server_listens(server: Path, attacks: Rows, where: str):
    """Two identities with one key would be two votes of one site."""
    before = peak_mib()
    same = (server / "sites" / "3.pub").read_text()
    if where == "the server's folder":
        (server / "sites" / "hospital-b.pub").write_text(same)
        with pytest.raises(InputError, match="have the same key, so the server could not distinguish them"):
            read_server(server)
    else:
        endpoint = Endpoint(free_address(), server / "ca.crt", server / "server.crt", server / "server.key")
        with (
            pytest.raises(InputError, match="two sites have the same key"),
            open_grid(endpoint, {"a": same.encode(), "b": same.encode()}),
        ):
            pass
    attacks.append(
        {
            "attacker": "site",
            "attack": f"one key under two names, in {where}",
            "learns": "nothing",
            "victim": "the server does not start, and names the sites",
            "MiB": round(peak_mib() - before),
            "connections": 0,
        }
    )


def scaled(factor: float) -> Callable[[bytes], bytes | None]:
    return of(lambda header, tensors: [tensor.mul_(factor) for tensor in tensors.values()] and None)


ON_A_SERVER: dict[str, Callable[[bytes], bytes | None]] = {
    "update times 1e3": scaled(1e3),
    "update times 1e6": scaled(1e6),
    "NaN": scaled(float("nan")),
    "a tensor of another shape": of(lambda header, tensors: tensors.update({min(tensors): torch.zeros(3, 5)})),
    "a tensor of another name": of(lambda header, tensors: tensors.update({"x": torch.zeros(3)})),
    "10^9 examples": say(num_examples=10**9),
    "another client's id": say(client_id=2),
    "the answer of an older round": say(round=1),
    "10 MB of nothing": lambda message: bytes(10**7),
    "10^5 brackets": lambda message: (10**5).to_bytes(8, "little") + b"[" * 10**5,
}


@pytest.fixture(scope="module")
def recorded(recipe_values: dict[str, Any]) -> Recorded:
    return record(recipe_of("fft-moe", recipe_values), CELLS["fft-moe"][2])


@pytest.mark.parametrize("name", ON_A_SERVER)
def test_a_site_changes_nothing(recorded: Recorded, attacks: Rows, name: str):
    """The state after the round is that of the round in which the site did not answer."""
    victim = recorded.victim
    sent = ON_A_SERVER[name](recorded.replies[victim])
    assert sent is not None
    before, start = peak_mib(), time.perf_counter()
    state, ledger = recorded.play({victim: sent})
    seconds, grown = time.perf_counter() - start, peak_mib() - before
    without, _ = recorded.play({victim: Fault(victim, "absent", "left out for a test")})
    assert pack_state(state) == pack_state(without)
    assert [(fault.client_id, fault.kind) for fault in ledger.new_faults] == [(victim, "rejected")]
    attacks.append(
        {
            "attacker": "site",
            "attack": name,
            "learns": "nothing",
            "victim": "model as without the site, to the bit; the run goes on",
            "MiB": round(grown),
            "milliseconds each": round(1000 * seconds),
        }
    )
