"""`fftmoe deploy site`: a person sees what a recipe asks of a site, approves it, and reads what was asked."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.deploy.door import Door, read_policy
from fftmoe.deploy.ledger import ledger_in
from fftmoe.deploy.review import approve, describe_request, first_policy
from fftmoe.errors import InputError
from fftmoe.setup.consent import objections
from fftmoe.setup.policy import parse_policy
from fftmoe.setup.site_request import recipe_digest, request_in
from shared_fixtures import Cli
from site_recipes import BASE, MODES, changed, job_of, recipe
from sites import fails_as

TASKS: dict[str, dict[str, Any]] = {
    "texts": {},
    "a closed-form head": {"head": {"kind": "closed-form"}},
    "two labels": {"backbone": {"task": "multi-label-classification"}},
    "numbers": {
        "backbone": {"task": "regression"},
        "data": {"targets": ["age: x", "#dose"], "target_scales": [[0, 100], [3, 7]], "labels": None},
    },
    "prompts": {
        "backbone": {"task": "causal-lm", "model": "./model"},
        "data": {"prompt": "question", "completion": "answer", "labels": None},
        "head": None,
    },
    "odd names": {"name": "- a, 'b' [c] & *d #", "data": {"text": "müde\u2028\x07'\"", "label": "- yes"}},
}


VALID = [(task, mode) for task in TASKS for mode in MODES if task != "a closed-form head" or mode in ("none", "sums")]


@pytest.mark.parametrize(("task", "mode"), VALID)
def test_a_first_policy_allows_the_recipe_and_nothing_else(tmp_path: Path, task: str, mode: str):
    request = request_in(recipe(changed(TASKS[task], MODES[mode])))
    approve(tmp_path, request, None)
    policy = read_policy(tmp_path)
    assert objections(policy, request, own_model=False) == []
    assert policy.recipes == [request.digest]
    assert (tmp_path / "policy.yaml").stat().st_mode & 0o777 == 0o600
    assert ledger_in(tmp_path, tmp_path).read() == []
    assert policy.privacy.modes == [mode]
    assert not policy.fields
    for other in (*MODES, "texts", "numbers"):
        asked = request_in(recipe(MODES[other] if other in MODES else TASKS[other]))
        if asked.digest != request.digest:
            assert objections(policy, asked, own_model=False), other


def test_a_review_names_the_columns_that_stand_for_others():
    """A table of conversations has no column `prompt`, and would be read for one."""
    asked = {"backbone": {"task": "causal-lm", "model": "./model"}, "head": None}
    produced = {**asked, "data": {"prompt": "prompt", "completion": "completion", "labels": None}}
    [reads] = [line for line in describe_request(request_in(recipe(produced))) if line.startswith("  reads")]
    assert reads.endswith(
        "; in a table without completion or prompt the conversations in its column messages, conversations, "
        "conversation, or its column instruction, input, context, output, response"
    )
    assert not any("conversation" in line for line in describe_request(request_in(recipe(TASKS["prompts"]))))


def test_a_second_approval_adds_a_line_and_changes_nothing_else(tmp_path: Path):
    approve(tmp_path, request_in(recipe()), None)
    before = (tmp_path / "policy.yaml").read_text()
    assert "before" in approve(tmp_path, request_in(recipe({"name": "renamed"})), None)
    assert (tmp_path / "policy.yaml").read_text() == before
    approve(tmp_path, request_in(recipe({"seed": 1})), None)
    after = (tmp_path / "policy.yaml").read_text()
    assert after.startswith(before)
    assert after[len(before) :].startswith(f"  - {recipe_digest(recipe({'seed': 1}))}  # ")
    assert after.count("\n") == before.count("\n") + 1
    for seed in (0, 1):
        Door(tmp_path, own_model=False).admit(job_of(recipe({"seed": seed}), run=f"run{seed}"))
    with fails_as("policy", "is not approved"):
        Door(tmp_path, own_model=False).admit(job_of(recipe({"seed": 2}), run="run2"))


def test_an_approval_never_widens_a_limit(tmp_path: Path):
    approve(tmp_path, request_in(recipe(MODES["examples"])), None)
    before = (tmp_path / "policy.yaml").read_bytes()
    for change, words in (
        ({}, "its privacy is 'none'"),
        (changed(MODES["examples"], {"federation": {"rounds": 11}}), "11 rounds, and `most_rounds` is 10"),
        (changed(MODES["examples"], {"data": {"text": "diary"}}), "reads column 'diary' as text"),
    ):
        with pytest.raises(InputError, match=f"does not allow this recipe: .*{words}.*change the policy first"):
            approve(tmp_path, request_in(recipe(change)), None)
    assert (tmp_path / "policy.yaml").read_bytes() == before


@pytest.mark.parametrize("end", ["recipes: []\n", "recipes:\n  - {digest}\nname_counts: true\n"])
def test_a_policy_of_another_form_is_left_to_its_operator(tmp_path: Path, end: str):
    digest = recipe_digest(recipe())
    values = yaml.safe_load(first_policy(request_in(recipe()), None))
    del values["recipes"], values["name_counts"]
    text = yaml.safe_dump({**values, "name_counts": True}) if "name_counts" not in end else yaml.safe_dump(values)
    path = tmp_path / "policy.yaml"
    path.write_text(text + end.format(digest=digest))
    path.chmod(0o600)
    parse_policy(path.read_bytes(), "here")
    with pytest.raises(InputError, match="add this under `recipes` yourself: - sha256:"):
        approve(tmp_path, request_in(recipe({"seed": 1})), None)
    assert path.read_text() == text + end.format(digest=digest)


def test_noise_needs_an_epsilon_that_somebody_states(tmp_path: Path):
    noise = {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3}
    request = request_in(recipe({**MODES["examples"], "privacy": {"examples": noise}}))
    with pytest.raises(InputError, match=r"states no epsilon .*--epsilon"):
        approve(tmp_path, request, None)
    assert list(tmp_path.iterdir()) == []
    approve(tmp_path, request, 5.5)
    assert read_policy(tmp_path).privacy.epsilon == 5.5


def test_a_recipe_without_labels_is_not_approved(tmp_path: Path):
    request = request_in(recipe({"data": {"labels": None}}))
    with pytest.raises(InputError, match=r"states no data.labels"):
        approve(tmp_path, request, None)
    assert list(tmp_path.iterdir()) == []
    approve(tmp_path, request_in(recipe()), None)
    with pytest.raises(InputError, match=r"states no data.labels"):
        approve(tmp_path, request, None)
    path = tmp_path / "policy.yaml"
    path.write_text("labels: [bone, heart]\n" + path.read_text())
    approve(tmp_path, request, None)


def test_a_site_that_has_answered_before_gets_no_new_ledger(tmp_path: Path):
    (tmp_path / "state" / "abc1").mkdir(parents=True)
    with pytest.raises(InputError, match="has answered before"):
        approve(tmp_path, request_in(recipe()), None)
    assert not (tmp_path / "policy.yaml").exists()


def test_a_site_that_has_lost_its_policy_keeps_its_ledger(tmp_path: Path):
    approve(tmp_path, request_in(recipe()), None)
    door = Door(tmp_path, own_model=False)
    door.admit(job_of(recipe()))
    (tmp_path / "policy.yaml").unlink()
    assert "kept the site's ledger" in approve(tmp_path, request_in(recipe()), None)
    assert len(ledger_in(tmp_path, tmp_path).read()) == 1
    (tmp_path / "policy.yaml").unlink()
    (tmp_path / "ledger.head").unlink()
    with pytest.raises(InputError, match="damaged"):
        approve(tmp_path, request_in(recipe()), None)
    assert not (tmp_path / "policy.yaml").exists()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A recipe file, and the folder of a site."""
    (tmp_path / "own").mkdir()
    path = tmp_path / "notes.yaml"
    path.write_text(yaml.safe_dump(changed(BASE, {"data": {"source": "data/server"}})))
    return path, tmp_path / "own"


def test_review_shows_the_recipe_and_writes_only_after_a_yes(cli: Cli, files: tuple[Path, Path]):
    path, site = files
    shown = cli("deploy", "site", "review", path, "--site", site)  # nobody answers
    assert shown.status == 0
    for words in (
        "recipe 'notes', sha256:",
        "asks for  profile, training; 5 rounds",
        "reads     column 'text' as text, 'label' as label, 'ward' as client",
        "labels    'bone', 'heart'",
        "backbone  'builtin:minilm'",
        "trains    'fft-moe', 4 steps in batches of 8 in each round",
        "privacy   none: the server sees each update",
        "the number of its rows",
        "not approved; nothing has been written",
    ):
        assert words in shown.out
    assert list(site.iterdir()) == []
    assert "wrote" in cli("deploy", "site", "review", path, "--site", site, "--yes").out
    assert {name.name for name in site.iterdir()} == {"policy.yaml", "ledger.jsonl", "ledger.head"}
    listed = cli("deploy", "site", "ledger", "--site", site)
    assert "0 runs; 0 answers, 0 bytes; 0 refusals; 0 failures" in listed.out
    assert "trained 0 times of 10 that the policy grants" in listed.out


def test_what_the_server_overrides_is_part_of_the_review(cli: Cli, files: tuple[Path, Path]):
    path, site = files
    outcome = cli("deploy", "site", "review", path, "--site", site, "--yes", "--set", "federation.rounds=7")
    assert "7 rounds" in outcome.out
    assert read_policy(site).recipes == [recipe_digest(recipe({"federation": {"rounds": 7}}))]


def test_mistakes_of_an_operator_end_with_status_2(cli: Cli, files: tuple[Path, Path]):
    path, site = files
    for arguments, words in (
        (("review", path, "--site", site / "no"), "is not the folder of a site"),
        (("review", site / "no.yaml", "--site", site), "no recipe file"),
        (("ledger", "--site", site), "has no policy"),
        (("ledger", "--site", site, "--begin"), "has no policy"),
    ):
        outcome = cli("deploy", "site", *arguments)
        assert (outcome.status, outcome.err.count("\n")) == (2, 1), outcome
        assert words in outcome.err
    cli("deploy", "site", "review", path, "--site", site, "--yes")
    for lost in ("ledger.jsonl", "ledger.head"):
        (site / lost).unlink()
    assert "never answered: fftmoe deploy site ledger --begin" in cli("deploy", "site", "ledger", "--site", site).err
    assert "began" in cli("deploy", "site", "ledger", "--site", site, "--begin").out
    assert "exists" in cli("deploy", "site", "ledger", "--site", site, "--begin").err


def test_a_site_without_a_policy_or_a_ledger_does_not_start(cli: Cli, site: Path, files: tuple[Path, Path]):
    """A folder as `fftmoe deploy init` made it; the message is the operator's next command."""
    rows = site.parent / "rows"
    rows.mkdir()
    (rows / "train.csv").write_text("text,label\nsore knee,bone\n")
    start = ("deploy", "client", site, "--data", rows)
    outcome = cli(*start)
    assert outcome.status == 2
    assert f"has no policy, so it would refuse everything: {site}/policy.yaml is missing" in outcome.err
    assert f"fftmoe deploy site review RECIPE --site {site}" in outcome.err
    assert not {"policy.yaml", "ledger.jsonl", "state"} & {path.name for path in site.iterdir()}
    assert cli("deploy", "site", "review", files[0], "--site", site, "--yes").status == 0
    (site / "ledger.head").unlink()
    outcome = cli(*start)
    assert outcome.status == 2
    assert "this site's ledger is damaged" in outcome.err
    (site / "policy.yaml").write_text("tasks: profile\n")
    outcome = cli(*start)
    assert outcome.status == 2
    assert "tasks: Input should be a valid list" in outcome.err


def test_words_of_a_recipe_do_not_act_on_a_terminal():
    request = request_in(recipe({"data": {"text": "\x1b[31mtext"}}))
    assert "\x1b" not in "".join(describe_request(request)) + first_policy(request, None)
