"""A whole site behind its door: it answers only what its policy allows, and its ledger knows every answer."""

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fftmoe.config import parse_recipe
from fftmoe.deploy.job import make_job
from fftmoe.deploy.ledger import ledger_in
from fftmoe.deploy.ledger_account import Account
from fftmoe.deploy.site import SiteSettings, open_site
from fftmoe.engines.flower_messages import failure_of, make_client_app, pack_query, pack_request, unpack_reply
from fftmoe.errors import OutputError, RunError
from fftmoe.records import pack_plan
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from fftmoe.setup.site_request import TRAINING
from policies import allow
from shared_fixtures import COLOURS
from site_recipes import changed
from sites import NAMES, divide, natural, over_sites

pytestmark = pytest.mark.usefixtures("in_a_flower_run")
PRIVATE = {
    "data": {"labels": list(COLOURS)},
    "federation": {"batch_size": 20},
    "privacy": {"examples": {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3, "epsilon": 6.0}},
    "adapter": {"residents": "balanced", "balance": "switch"},
    "head": {"kind": "averaged", "learning_rate": 0.1},
}
CONTEXT = Context(run_id=1, node_id=3, node_config={}, state=RecordDict(), run_config={})


class Hospital:
    """A site with 29 rows, and the messages of a server that keeps to the recipe."""

    def __init__(self, folder: Path, divided: Path, values: dict[str, Any]) -> None:
        whole = changed(natural(values), {"partition": {"num_clients": len(NAMES)}})
        self._experiment = compose(parse_recipe(whole, "one machine"))
        self._state = self._experiment.method.init(self._experiment.model)
        self.served = parse_recipe(over_sites(whole, divided), "test")
        self.job = make_job(self.served.model_dump(mode="json"), COLOURS, "abc1")
        tier = self._experiment.budgets[0].name
        self.settings = SiteSettings(NAMES[0], 0, divided / NAMES[0], tier, folder, server="fl.example:9092")
        self.app = make_client_app(
            lambda job, _: open_site(self.settings, job), lambda job, _: open_site(self.settings, job).describe()
        )

    def plan(self, round: int = 1, task: str = "train") -> bytes:
        e = self._experiment
        [plan] = plan_round(e.method, self._state, round, (0,), e.budgets, e.training, 3, task).clients
        return pack_plan(plan, e.method.download(self._state, plan))

    def ask(self, *messages: bytes, job: dict[str, Any] | None = None) -> Message:
        """What leaves the site after a request with these messages, or after a query if there are none."""
        job = self.job if job is None else job
        content = pack_request(job, enumerate(messages)) if messages else pack_query(job)
        return self.app(Message(content, dst_node_id=3, message_type="train" if messages else "query"), CONTEXT)

    @property
    def entries(self) -> list[dict[str, Any]]:
        return ledger_in(self.settings.folder, self.settings.folder).read()


@pytest.fixture(scope="module")
def divided(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sites")
    divide(data_folder, folder)
    return folder


@pytest.fixture
def hospital(recipe_values: dict[str, Any], divided: Path, tmp_path: Path) -> Callable[..., Hospital]:
    """`hospital(changes, most_rounds=3)`: a site whose operator has approved the recipe with these changes."""

    def make(changes: Mapping[str, Any] | None = None, **policy: Any) -> Hospital:
        made = Hospital(tmp_path / "site", divided, changed(recipe_values, changes or {}))
        allow(made.settings.folder, made.served, labels=COLOURS, **policy)
        return made

    return make


def code_of(answer: Message) -> str:
    """The code of a refusal, after a check that nothing else leaves."""
    sent = b"".join(part.deflate() for part in get_all_nested_objects(answer).values())
    assert failure_of(answer.content, own=False) is not None
    assert not answer.content.array_records
    for word in (b"policy.yaml", b"most_rounds", b"privacy.epsilon", b"approved", b"ledger"):
        assert word not in sent
    return str(answer.content.config_records["failure"]["code"])


def test_every_answer_is_in_the_ledger_with_its_bytes(hospital: Callable[..., Hospital]):
    site = hospital()
    profile = json.loads(str(site.ask().content.config_records["profile"]["json"]))
    assert profile["num_examples"] == 29
    message = site.plan()
    [(_, reply)], _ = unpack_reply(site.ask(message).content)
    opened, described, asked, answered = site.entries
    assert (opened["event"], opened["server"], opened["run"]) == ("opened", "fl.example:9092", "abc1")
    assert (described["event"], described["task"]) == ("answered", "profile")
    assert (asked["event"], asked["round"], asked["bytes"], asked["mode"]) == ("asked", 1, len(message), "none")
    assert (answered["event"], answered["round"], answered["bytes"]) == ("answered", 1, len(reply))


def test_a_server_that_asks_for_more_gets_a_code_and_nothing_else(hospital: Callable[..., Hospital]):
    site = hospital(most_rounds=3)
    for round in (1, 2):
        assert unpack_reply(site.ask(site.plan(round)).content)[0]
    hostile = copy.deepcopy(site.job)
    hostile["recipe"]["data"] |= {"text": "label", "label": "text"}
    assert code_of(site.ask(job=hostile)) == "policy"
    assert code_of(site.ask(site.plan(), job=hostile)) == "policy"
    assert code_of(site.ask(job={**site.job, "labels": ["blue", "green", "hiv"]})) == "policy"
    assert code_of(site.ask(site.plan(4))) == "refused"  # the recipe has three rounds
    assert code_of(site.ask(site.plan(task="sums"))) == "refused"
    assert code_of(site.ask(site.plan(task="alone"))) == "refused"
    assert code_of(site.ask(site.plan(), site.plan())) == "refused"
    assert unpack_reply(site.ask(site.plan(3)).content)[0]
    assert code_of(site.ask(site.plan(3))) == "policy"  # the fourth of three rounds
    assert code_of(site.ask()) == "policy"
    assert Account.of(site.entries).times[TRAINING] == 3
    why = [entry["why"] for entry in site.entries if entry["event"] == "refused"]
    assert len(why) >= 8
    assert "reads column 'label' as text" in why[0]


def test_a_site_answers_within_its_epsilon_and_no_further(hospital: Callable[..., Hospital]):
    """The site counts its own noise; the server's recipe would go on."""
    site = hospital(PRIVATE, privacy={"modes": ["examples"], "epsilon": 6.0, "delta": 1e-3})
    answers = [site.ask(site.plan(round)) for round in (1, 2, 3, 1, 2, 3, 1, 2, 3)]
    left = [failure_of(answer.content, own=False) is None for answer in answers]
    granted = sum(left)
    assert 1 <= granted < len(answers)
    assert left == [True] * granted + [False] * (len(answers) - granted)
    assert {code_of(answer) for answer in answers[granted:]} == {"policy"}
    account = Account.of(site.entries)
    assert len(account.releases) == granted
    assert account.epsilon(1e-3) <= 6.0
    [release, *_] = account.releases
    assert release.sampling_rate == site.served.federation.batch_size / 29
    assert release.times == site.served.federation.local_steps
    for task in ("sums", "alone"):
        assert code_of(site.ask(site.plan(task=task))) == "refused"


def test_an_answer_that_the_ledger_cannot_hold_does_not_leave(
    hospital: Callable[..., Hospital], monkeypatch: pytest.MonkeyPatch
):
    site = hospital()
    site.ask()

    def refuse(*_: Any) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("fftmoe.deploy.ledger.Pages.answer", refuse)
        assert code_of(site.ask(site.plan())) == "disk"
        assert code_of(site.ask()) == "disk"
    (site.settings.folder / "ledger.head").unlink()
    assert code_of(site.ask(site.plan())) == "policy"


def test_a_failure_in_training_is_in_the_ledger_and_counts(
    hospital: Callable[..., Hospital], monkeypatch: pytest.MonkeyPatch
):
    site = hospital()

    def fail(*_: Any) -> None:
        raise RunError("the loss is not a number in the row 'pain'")

    monkeypatch.setattr("fftmoe.client.runtime.update_client", fail)
    assert code_of(site.ask(site.plan())) == "training"
    assert [entry["event"] for entry in site.entries] == ["opened", "asked", "failed"]
    assert "'pain'" in site.entries[-1]["why"]
    assert Account.of(site.entries).times[TRAINING] == 1


def test_a_change_of_the_policy_holds_for_the_next_request(hospital: Callable[..., Hospital]):
    site = hospital()
    assert unpack_reply(site.ask(site.plan()).content)[0]
    allow(site.settings.folder, labels=COLOURS)  # nothing is approved any more
    assert code_of(site.ask(site.plan(2))) == "policy"
    (site.settings.folder / "policy.yaml").unlink()
    assert code_of(site.ask(site.plan(2))) == "policy"
    allow(site.settings.folder, site.served, labels=COLOURS)
    assert unpack_reply(site.ask(site.plan(2)).content)[0]


@pytest.mark.parametrize("gone", ["state", "state/abc1"])
def test_a_site_whose_state_is_removed_while_it_serves_goes_on(
    hospital: Callable[..., Hospital], caplog: pytest.LogCaptureFixture, gone: str
):
    """As it would after a restart; the ledger still knows what was answered."""
    site = hospital(most_rounds=3)
    site.ask(site.plan())
    shutil.rmtree(site.settings.folder / gone)
    for round in (2, 3):
        unpack_reply(site.ask(site.plan(round)).content)
    assert "was removed, so this site goes on in the run without what it kept there" in caplog.text
    assert (site.settings.folder / "state" / "abc1" / "bindings.json").exists()
    assert code_of(site.ask(site.plan(3))) == "policy"
