"""A site's door: whatever a server sends, nothing happens that the site's policy does not allow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.client.screening import CheckedRequest
from fftmoe.deploy.door import Admitted, Door
from fftmoe.deploy.ledger import ledger_in
from fftmoe.engines.failures import CodedError
from fftmoe.setup.site_request import SiteRows, canonical_values, recipe_digest
from fftmoe.shown import count_of
from policies import allow, policy_of, write_policy
from site_recipes import MODES, job_of, recipe
from sites import fails_as

ROWS = 29
TRAIN = CheckedRequest("train", 1)


@pytest.fixture
def door(tmp_path: Path) -> Door:
    """The door of a site whose operator has approved the base recipe."""
    allow(tmp_path, recipe())
    return Door(tmp_path, own_model=False)


def events(door: Door, *names: str) -> list[Mapping[str, Any]]:
    entries = ledger_in(door.folder, door.folder).read()
    return [entry for entry in entries if entry["event"] in names]


def outcome(door: Door, job: dict[str, Any]) -> str:
    """The digest of the recipe that was let in, or the code of the refusal."""
    try:
        return door.admit(job).request.digest
    except CodedError as error:
        return str(error.code)


def train(door: Door, admitted: Admitted, times: int = 1, rows: int = ROWS) -> None:
    for _ in range(times):
        door.count(admitted, TRAIN, SiteRows(rows), 100)
        door.answered(admitted, TRAIN, 50)


def test_an_approved_recipe_is_let_in_and_counted(door: Door):
    admitted = door.admit(job_of(recipe()))
    assert door.count_profile(admitted, SiteRows(ROWS)) == ROWS
    train(door, admitted)
    found = [(entry["event"], entry.get("task")) for entry in events(door, "opened", "asked", "answered")]
    assert found == [("opened", None), ("answered", "profile"), ("asked", "training"), ("answered", "training")]


# What a malicious server may send in place of the approved recipe, and the words in the site's own ledger.
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "labels in the place of texts": ({"data": {"text": "label", "label": "text"}}, "reads column 'label' as text"),
    "another column": ({"data": {"text": "diary"}}, "reads column 'diary' as text"),
    "another label": ({"data": {"label": "hiv"}}, "reads column 'hiv' as label"),
    "another natural client": ({"partition": {"by": "patient"}}, "reads column 'patient' as client"),
    "strata": (
        {
            "backbone": {"task": "multi-label-classification"},
            "data": {"labels": ["bone", "heart"]},
            "partition": {"by": "patient"},
        },
        "reads column 'patient' as strata",
    ),
    "targets": (
        {"backbone": {"task": "regression"}, "data": {"targets": ["age"], "labels": None}},
        "reads column 'age' as label",
    ),
    "prompts": (
        {
            "backbone": {"task": "causal-lm"},
            "data": {"prompt": "diary", "completion": "text", "labels": None},
            "head": None,
        },
        "reads column 'diary' as text",
    ),
    "pairs of answers": (
        {
            "backbone": {"task": "preference"},
            "data": {"prompt": "text", "chosen": "label", "rejected": "diary", "labels": None},
            "head": None,
        },
        "reads column 'diary' as text",
    ),
    "more rounds": ({"federation": {"rounds": 1001}}, "1,001 rounds, and `most_rounds` is 1000"),
    "another backbone": ({"backbone": {"model": "org/other"}}, "backbone is 'org/other'"),
    "a folder of the site as backbone": ({"backbone": {"model": "/home/anna/model"}}, "backbone is '/home/anna/model'"),
    "another seed": ({"seed": 1}, "is not approved"),
    "more steps": ({"federation": {"local_steps": 400}}, "is not approved"),
    "a smaller pool": ({"adapter": {"num_experts": 3}}, "is not approved"),
    "a method": ({"method": "fedit"}, "is not approved"),
    "a closed-form head": ({"head": {"kind": "closed-form"}}, "is not approved"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_recipe_that_nobody_approved_is_refused(door: Door, kind: str):
    """Also in the middle of a run with the approved one; the words stay in the ledger, and the run goes on."""
    change, words = HOSTILE[kind]
    admitted = door.admit(job_of(recipe()))
    labels = ("age",) if kind == "targets" else () if kind in ("prompts", "pairs of answers") else ("bone", "heart")
    with fails_as("policy", words):
        door.admit(job_of(recipe(change), labels=labels))
    assert words in events(door, "refused")[-1]["why"]
    train(door, door.admit(job_of(recipe())))
    assert admitted.request.digest == recipe_digest(recipe())


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_approval_widens_no_limit(tmp_path: Path, kind: str):
    """A person may approve what the policy does not allow; the policy still holds."""
    change, words = HOSTILE[kind]
    labels = ("age",) if kind == "targets" else () if kind in ("prompts", "pairs of answers") else ("bone", "heart")
    hostile = recipe(change)
    both = policy_of(recipe(), recipes=[recipe_digest(recipe()), recipe_digest(hostile)])
    write_policy(tmp_path, both)
    door = Door(tmp_path, own_model=False)
    if words == "is not approved":
        door.admit(job_of(hostile, labels=labels))
    else:
        with fails_as("policy", words):
            door.admit(job_of(hostile, labels=labels))


@given(
    key=st.sampled_from(sorted(canonical_values(recipe()))), value=st.none() | st.booleans() | st.integers() | st.text()
)
@settings(max_examples=100)
def test_a_changed_value_is_refused_or_changes_nothing(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any):
    """Any value of any key of the recipe that a server sends."""
    folder = tmp_path_factory.getbasetemp() / "changed"
    if not folder.exists():
        allow(folder, recipe())
    sent = job_of(recipe())
    section, *rest = key.split(".")
    if rest:
        sent["recipe"][section] = {**sent["recipe"][section], rest[0]: value}
    else:
        sent["recipe"][section] = value
    assert outcome(Door(folder, own_model=False), sent) in ("policy", "recipe", recipe_digest(recipe()))


@pytest.mark.parametrize("labels", [("bone",), ("heart", "bone"), ("bone", "heart", "lung"), ("bone", "hiv"), ()])
def test_labels_that_nobody_agreed_to_are_refused(door: Door, labels: tuple[str, ...]):
    """A server could find out which labels the site has, one question after another."""
    with fails_as("policy", f"lists {count_of(len(labels), 'label')}"):
        door.admit(job_of(recipe(), labels=labels))


def test_labels_that_a_recipe_leaves_open_are_those_of_the_policy(tmp_path: Path):
    open_labels = recipe({"data": {"labels": None}})
    allow(tmp_path, open_labels)
    door = Door(tmp_path, own_model=False)
    with fails_as("policy", "lists 2 labels"):
        door.admit(job_of(open_labels))
    allow(tmp_path, open_labels, labels=["bone", "heart"])
    door.admit(job_of(open_labels))
    with fails_as("policy", "lists 2 labels"):
        door.admit(job_of(open_labels, labels=("heart", "bone")))


def test_a_run_keeps_its_recipe(tmp_path: Path):
    """A server must not begin a run with noise and go on without, even if both recipes are approved."""
    plain, private = recipe(), recipe(MODES["examples"])
    allow(tmp_path, plain, private)
    door = Door(tmp_path, own_model=False)
    door.admit(job_of(private))
    with fails_as("policy", "a run keeps its recipe"):
        door.admit(job_of(plain))
    door.admit(job_of(plain, run="abc2"))
    with fails_as("policy", "a run keeps its recipe"):
        door.admit(job_of(private, run="abc2"))


MODES_ALLOWED = [("examples",), ("clients",), ("clients", "examples"), ("sums",), ("none",), ()]


@pytest.mark.parametrize("allowed", MODES_ALLOWED, ids=lambda modes: "+".join(modes) or "nothing")
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_privacy_is_refused_unless_it_is_listed(tmp_path: Path, mode: str, allowed: tuple[str, ...]):
    noisy = bool(allowed) and not {"none", "sums"} & set(allowed)
    budget = {"epsilon": 8.0, "delta": 1e-3} if noisy else {}
    allow(tmp_path, recipe(MODES[mode]), privacy={"modes": list(allowed), **budget})
    door, job = Door(tmp_path, own_model=False), job_of(recipe(MODES[mode]))
    if mode in allowed:
        door.admit(job)
    else:
        with fails_as("policy", f"its privacy is '{mode}'"):
            door.admit(job)


@pytest.mark.parametrize(
    ("mode", "rights", "words"),
    [
        ("clients", {"epsilon": 2.9, "delta": 1e-3}, "its epsilon is 3, and `privacy.epsilon` is 2.9"),
        ("clients", {"epsilon": 3.0, "delta": 9e-4}, "its delta is 0.001, and `privacy.delta` is 0.0009"),
        ("examples", {"epsilon": 6.9, "delta": 1e-3}, "its epsilon is 7, and `privacy.epsilon` is 6.9"),
        ("examples", {"epsilon": 7.0, "delta": 9e-4}, "its delta is 0.001"),
    ],
)
def test_less_privacy_than_the_policy_asks_for_is_refused(
    tmp_path: Path, mode: str, rights: dict[str, float], words: str
):
    allow(tmp_path, recipe(MODES[mode]), privacy={"modes": [mode], **rights})
    with fails_as("policy", words):
        Door(tmp_path, own_model=False).admit(job_of(recipe(MODES[mode])))


def test_a_server_that_states_no_epsilon_for_its_own_noise_is_refused(tmp_path: Path):
    private = {**MODES["clients"], "privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}}
    allow(tmp_path, recipe(private), privacy={"modes": ["clients"], "epsilon": 8.0, "delta": 1e-3})
    with fails_as("policy", "states no privacy.epsilon"):
        Door(tmp_path, own_model=False).admit(job_of(recipe(private)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", ["train", "sums", "alone"])
def test_every_task_in_every_mode_needs_the_recipe_and_the_policy(tmp_path: Path, mode: str, task: str):
    """Even a policy that lists every task gets no exact sums under noise, and no evaluation."""
    written = recipe(MODES[mode])
    everything = ["profile", "training", "feature-sums", "evaluation"]
    allow(tmp_path, written, tasks=everything)
    door = Door(tmp_path, own_model=False)
    admitted = door.admit(job_of(written))
    if task == "train":
        door.count(admitted, CheckedRequest(task, 1), SiteRows(ROWS), 10)
    else:
        with fails_as("policy", "does not allow the task"):
            door.count(admitted, CheckedRequest(task, 1), SiteRows(ROWS), 10)
    for missing in ("profile", "training"):
        allow(tmp_path, written, tasks=[name for name in everything if name != missing])
        with fails_as("policy", f"asks for the task {missing}, and `tasks` has"):
            door.admit(job_of(written))


@pytest.mark.parametrize(
    ("changes", "task", "name"),
    [
        ({"head": {"kind": "closed-form"}}, "sums", "feature-sums"),
        ({"data": {"validation": 0.2}}, "validate", "evaluation"),
    ],
)
def test_exact_sums_need_the_policy_too(tmp_path: Path, changes: dict[str, Any], task: str, name: str):
    written = recipe(changes)
    allow(tmp_path, written, tasks=["profile", "training"])
    door = Door(tmp_path, own_model=False)
    with fails_as("policy", f"asks for the task {name}"):
        door.admit(job_of(written))
    allow(tmp_path, written, most_rounds=5)
    admitted = door.admit(job_of(written))
    for _ in range(6):  # before the first round, and after each
        door.count(admitted, CheckedRequest(task, 1), SiteRows(ROWS, 0, (ROWS,)), 10)
    with fails_as("policy", f"asked for {name} 6 times, and `most_rounds` is 5"):
        door.count(admitted, CheckedRequest(task, 1), SiteRows(ROWS, 0, (ROWS,)), 10)
    with fails_as("policy", "does not allow the task local-training"):
        door.count(admitted, CheckedRequest("alone", 1), SiteRows(ROWS, 0, (ROWS,)), 10)


def test_a_site_whose_rows_are_validated_says_how_many_it_has(tmp_path: Path):
    """Also where the server keeps only sums: the rows that are set aside are a known fraction."""
    written = recipe({**MODES["sums"], "data": {"validation": 0.2}})
    allow(tmp_path, written, name_counts=False)
    with fails_as("policy", "its answers say how many rows the site has"):
        Door(tmp_path, own_model=False).admit(job_of(written))


def test_a_recipe_within_the_fields_of_a_policy_needs_no_approval(tmp_path: Path):
    fields = {
        "partition.kind": "natural",
        "adapter.num_experts": {"least": 5, "most": 7},
        "adapter.expert_dim": [3, 5],
        "head.kind": "averaged",
        "head.learning_rate": "any",
        "budgets": "any",
        "federation.clients_per_round": {"most": 9},
        "federation.local_steps": {"most": 4},
        "federation.batch_size": 8,
        "federation.learning_rate": {"most": 0.01},
    }
    policy = policy_of(recipe(), recipes=[], fields=fields, labels=["bone", "heart"], most_rounds=5)
    write_policy(tmp_path, policy)
    door = Door(tmp_path, own_model=False)
    for number, change in enumerate([{}, {"adapter": {"num_experts": 5}}, {"federation": {"rounds": 2}}]):
        door.admit(job_of(recipe(change), run=f"within{number}"))
    refused = {
        "adapter.num_experts": {"adapter": {"num_experts": 8}},
        "adapter.expert_dim": {"adapter": {"expert_dim": 4}},
        "federation.local_steps": {"federation": {"local_steps": 5}},
        "federation.weight_decay": {"federation": {"weight_decay": 0.5}},  # not listed
        "method": {"method": "fedit"},
        "seed": {"seed": 1},
        "head.kind": {"head": {"kind": "one-vs-all"}},
    }
    for key, change in refused.items():
        with fails_as("policy", f"`fields` does not allow its {key}$"):
            door.admit(job_of(recipe(change), run="abc9"))
    with fails_as("policy", "rounds, and `most_rounds` is 5"):
        door.admit(job_of(recipe({"federation": {"rounds": 6}}), run="abc9"))
    with fails_as("policy", "lists 2 labels"):  # those of a recipe that nobody has seen do not count
        door.admit(job_of(recipe({"data": {"labels": ["bone", "hiv"]}}), run="abc9", labels=("bone", "hiv")))
    write_policy(tmp_path, {**policy, "fields": {**fields, "federation.clients_per_round": True}})
    with fails_as("policy", r"`fields` does not allow its federation.clients_per_round$"):  # true is not 1
        door.admit(job_of(recipe({"federation": {"clients_per_round": 1}}), run="abc9"))


def test_a_folder_that_the_recipe_names_is_not_read_by_a_site_with_its_own_model(tmp_path: Path):
    written = recipe({"backbone": {"model": "/srv/model"}})
    allow(tmp_path, written, backbones=[])
    Door(tmp_path, own_model=True).admit(job_of(written))
    with fails_as("policy", "backbone is '/srv/model'"):
        Door(tmp_path, own_model=False).admit(job_of(written))
    named = recipe()
    allow(tmp_path, named, backbones=[])
    with fails_as("policy", "backbone is 'builtin:minilm'"):
        Door(tmp_path, own_model=True).admit(job_of(named))


def test_a_site_with_too_few_rows_takes_no_part(tmp_path: Path):
    allow(tmp_path, recipe(), fewest_rows=30)
    door = Door(tmp_path, own_model=False)
    admitted = door.admit(job_of(recipe()))
    with fails_as("policy", "the site has 29 rows, and `fewest_rows` is 30"):
        door.count_profile(admitted, SiteRows(29))
    with fails_as("policy", "the site has 29 rows"):
        door.count(admitted, TRAIN, SiteRows(29), 10)
    assert door.count_profile(admitted, SiteRows(30)) == 30


@pytest.mark.parametrize(
    ("changes", "task", "name", "few", "enough"),
    [
        ({"data": {"validation": 0.1}}, "validate", "evaluation", SiteRows(9973, 10), SiteRows(11, 11)),
        ({"data": {"validation": 0.9}}, "train", "training", SiteRows(10, 9973), SiteRows(11, 11)),
        ({"head": {"kind": "closed-form"}}, "sums", "feature-sums", SiteRows(10, 1, (7, 3)), SiteRows(11, 0, (7, 4))),
        ({"federation": {"local_steps": 1}}, "train", "training", SiteRows(9973), None),
    ],
)
def test_no_answer_depends_on_fewer_rows_than_the_policy_states(
    tmp_path: Path, changes: dict[str, Any], task: str, name: str, few: SiteRows, enough: SiteRows | None
):
    """Also where the site has many: one row set aside would show how a model of the server's choice answers it."""
    written = recipe(changes)
    allow(tmp_path, written, fewest_rows=11)
    door, asked = Door(tmp_path, own_model=False), CheckedRequest(task, 1)
    admitted = door.admit(job_of(written))
    for refused in (lambda: door.count_profile(admitted, few), lambda: door.count(admitted, asked, few, 10)):
        with fails_as("policy", rf"the task {name if name != 'feature-sums' else '[a-z-]+'} would depend on"):
            refused()
    assert not events(door, "asked", "answered")
    if enough is not None:
        assert door.count_profile(admitted, enough) == enough.total
        door.count(admitted, asked, enough, 10)


def test_a_site_too_small_to_set_rows_aside_answers_zeros(tmp_path: Path):
    written = recipe({"data": {"validation": 0.1}})
    allow(tmp_path, written, fewest_rows=3)
    door = Door(tmp_path, own_model=False)
    admitted = door.admit(job_of(written))
    assert door.count_profile(admitted, SiteRows(3)) == 3
    door.count(admitted, CheckedRequest("validate", 1), SiteRows(3), 10)


def test_a_site_that_does_not_name_its_rows_reports_the_fewest(tmp_path: Path):
    private = recipe(MODES["sums"])
    allow(tmp_path, private, fewest_rows=11, name_counts=False)
    door = Door(tmp_path, own_model=False)
    assert door.count_profile(door.admit(job_of(private)), SiteRows(ROWS)) == 11
    plain = recipe()
    allow(tmp_path, plain, fewest_rows=11, name_counts=False)
    with fails_as("policy", "answers say how many rows"):
        door.admit(job_of(plain, run="abc2"))


def test_no_more_rounds_than_the_policy_grants_over_all_runs(tmp_path: Path):
    """A server may repeat a round, and begin as many runs as it likes."""
    allow(tmp_path, recipe(), most_rounds=7)
    door = Door(tmp_path, own_model=False)
    for run in ("abc1", "abc2", "abc3"):
        train(door, door.admit(job_of(recipe(), run=run)), 2)
    admitted = door.admit(job_of(recipe(), run="abc4"))
    train(door, admitted)
    with fails_as("policy", "asked for training 7 times, and `most_rounds` is 7"):
        train(door, admitted)
    with fails_as("policy", "asked for training 7 times"):  # it also tells a server that asks before a run
        door.count_profile(door.admit(job_of(recipe(), run="abc5")), SiteRows(ROWS))
    assert len(events(door, "asked")) == 7
    allow(tmp_path, recipe(), most_rounds=8)
    train(door, door.admit(job_of(recipe(), run="abc4")))
