"""No sum for each label shows a label's few rows: a site leaves them out, and the server solves the rest."""

import csv
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.client.screening import CheckedRequest
from fftmoe.client.sums import in_frequent_groups
from fftmoe.client.validation import rows_with_labels, validation_sums
from fftmoe.config import parse_recipe
from fftmoe.deploy.door import Door
from fftmoe.deploy.job import make_job
from fftmoe.deploy.review import approve, describe_request
from fftmoe.deploy.site import OpenSite, SiteSettings, open_site
from fftmoe.head import HeadSums, OneLabel, solved_head
from fftmoe.records import Budget, ClientPlan, names, pack_plan, unpack_update
from fftmoe.server.screening import Rejected, screen
from fftmoe.setup.site_request import SiteRows, request_in
from fftmoe.tasks import SeveralLabels, make_task
from policies import allow, policy_of, write_policy
from shared_fixtures import COLOURS
from site_recipes import job_of, recipe
from sites import fails_as, natural, over_sites
from spoiling import say
from tampering import CELLS, recipe_of, record

CLOSED = {"head": {"kind": "closed-form", "num_features": 37}}
NUMBERS = {"blue": 11, "green": 7, "red": 1}
SECRETS = ("elm ivy red cod", "red red bay fig")  # two texts of the only row of a label
Site = Callable[[str, int], OpenSite]


@pytest.fixture
def site(recipe_values: dict[str, Any], tmp_path: Path) -> Site:
    """Opens a site whose only red row has this text, and whose policy states this number of rows of a label."""

    def make(secret: str, fewest: int) -> OpenSite:
        folder = tmp_path / f"{fewest} {secret}"
        (folder / "data").mkdir(parents=True)
        with (folder / "data" / "train.csv").open("w", newline="") as file:
            rows = [
                (f"ash {label} dew" + " hay" * (n % 3), label) for label, most in NUMBERS.items() for n in range(most)
            ]
            csv.writer(file).writerows([("text", "label"), *rows[:-1], (secret, "red")])
        values = over_sites(natural(recipe_values), folder) | CLOSED
        values["data"] = {**values["data"], "labels": list(COLOURS)}
        written = parse_recipe(values, "test")
        allow(folder, written, fewest_rows_of_label=fewest)
        job = make_job(written.model_dump(mode="json"), COLOURS, "abc1")
        return open_site(SiteSettings("author-0", 0, folder / "data", "small", folder), job)

    return make


def asked(opened: OpenSite) -> bytes:
    """The message of an honest server that asks for feature statistics before the first round."""
    runtime, budget = opened.client.runtime, Budget("small", 1, 2, ())
    plan = ClientPlan(0, 0, 5, budget, {}, opened.client.agreed.training, "sums")
    return pack_plan(plan, runtime.method.download(runtime.method.init(runtime.model), plan))


def sums_of(opened: OpenSite) -> bytes:
    [answer] = opened([asked(opened)])
    return answer


def test_the_answer_does_not_depend_on_the_only_row_of_a_label(site: Site):
    """The same bytes, whatever that row says; without the limit it shows."""
    assert len({sums_of(site(secret, 1)) for secret in SECRETS}) == 2
    assert len({sums_of(site(secret, 2)) for secret in SECRETS}) == 1
    assert len({sums_of(site(secret, 8)) for secret in SECRETS}) == 1


@pytest.mark.parametrize(("fewest", "kept"), [(1, (11, 7, 1)), (2, (11, 7, 0)), (8, (11, 0, 0))])
def test_the_server_solves_what_it_gets(site: Site, fewest: int, kept: tuple[int, ...]):
    """Sums, number of examples and head are those of a site that has only the other rows."""
    opened = site(SECRETS[0], fewest)
    found, runtime = unpack_update(sums_of(opened)), opened.client.runtime
    assert found.num_examples == sum(kept)
    assert tuple(HeadSums.from_tensors(found.tensors).moment[-1].tolist()) == kept
    rows = np.flatnonzero(np.isin(runtime.examples.labels.numpy(), np.flatnonzero(kept)))
    alone = dataclasses.replace(runtime, partition={0: rows})
    [answer] = alone([asked(opened)])
    other = unpack_update(answer)
    assert other.num_examples == found.num_examples
    for name, tensor in other.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name
    own, whole = (solved_head(HeadSums.from_tensors(update.tensors)) for update in (found, other))
    assert all(torch.equal(own[name], whole[name]) for name in own)


def test_a_site_is_told_how_many_rows_its_policy_leaves_out(site: Site, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "fftmoe"):
        site(SECRETS[0], 1).describe()
        assert not caplog.messages
        site(SECRETS[0], 8).describe()
    assert caplog.messages == [
        "no feature statistics hold 8 of 19 rows: the policy has fewest_rows_of_label=8, and 2 labels have fewer rows"
    ]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=29), st.integers(1, 7))
def test_whatever_the_labels_each_that_is_kept_has_enough_rows(labels: list[int], fewest: int):
    kept = in_frequent_groups(OneLabel().groups(torch.tensor(labels), 6).numpy(), fewest)
    assert kept.tolist() == [labels.count(label) >= fewest for label in labels]


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=29), st.integers(1, 7))
def test_whatever_several_labels_rows_have_no_sum_is_over_few(rows: list[list[bool]], fewest: int):
    """Neither over those with a label, nor over those without it; and no more rows are left out than must be."""
    has = torch.tensor(rows)
    groups = SeveralLabels().groups(has.float(), 5).numpy()
    kept = in_frequent_groups(groups, fewest)
    assert all(not number or number >= fewest for number in groups[kept].sum(0))
    for row in np.flatnonzero(~kept):  # with any row that was left out, and none of the others, some sum is over few
        again = groups[kept | (np.arange(len(rows)) == row)].sum(0)
        assert ((again > 0) & (again < fewest)).any()


# The door


@pytest.mark.parametrize(
    ("changes", "task"),
    [
        ({"head": {"kind": "closed-form"}}, "feature-sums"),
        ({"backbone": {"task": "multi-label-classification"}, "data": {"validation": 0.2}}, "evaluation"),
        ({"backbone": {"task": "token-classification"}, "data": {"validation": 0.2}}, "evaluation"),
    ],
)
def test_a_policy_that_does_not_say_how_many_rows_refuses_sums_by_label(
    tmp_path: Path, changes: dict[str, Any], task: str
):
    written = recipe(changes)
    policy = policy_of(written)
    write_policy(tmp_path, {key: value for key, value in policy.items() if key != "fewest_rows_of_label"})
    door = Door(tmp_path, own_model=False)
    with fails_as("policy", rf"sums for each label \({task}\), and `fewest_rows_of_label` is not stated"):
        door.admit(job_of(written))
    assert list(request_in(written).sums_by_label) == [task]
    write_policy(tmp_path, policy)
    door.admit(job_of(written))


def test_a_recipe_without_sums_by_label_needs_no_such_limit(tmp_path: Path):
    for written in (recipe(), recipe({"data": {"validation": 0.2}})):
        policy = policy_of(written)
        write_policy(tmp_path, {key: value for key, value in policy.items() if key != "fewest_rows_of_label"})
        Door(tmp_path, own_model=False).admit(job_of(written, run=f"run{len(request_in(written).tasks)}"))


@pytest.mark.parametrize(
    ("rows", "behind"), [(SiteRows(29, 0, (10, 10, 9)), 0), (SiteRows(29, 0, (11, 9, 9)), 11), (SiteRows(29), 0)]
)
def test_a_site_with_too_few_rows_of_frequent_labels_gives_no_sums(tmp_path: Path, rows: SiteRows, behind: int):
    written = recipe({"head": {"kind": "closed-form"}})
    allow(tmp_path, written, fewest_rows=12, fewest_rows_of_label=11)
    door = Door(tmp_path, own_model=False)
    admitted = door.admit(job_of(written))
    for refused in (
        lambda: door.count_profile(admitted, rows),
        lambda: door.count(admitted, CheckedRequest("sums", 0), rows, 10),
    ):
        with fails_as("policy", f"task feature-sums would depend on {behind} of the site's 29 rows"):
            refused()
    door.count(admitted, CheckedRequest("sums", 0), SiteRows(29, 0, (12, 9, 8)), 10)


def test_a_review_says_what_is_left_out(tmp_path: Path):
    asked = request_in(recipe({"head": {"kind": "closed-form"}}))
    words = "\n".join(describe_request(asked))
    assert "feature statistics summed over its rows and over those of each label, exact (but for labels" in words
    approve(tmp_path, asked, None)
    assert "\nfewest_rows_of_label: 5\n" in (tmp_path / "policy.yaml").read_text()


# The server


def test_a_client_may_leave_rows_out_of_sums_and_not_add_any(recipe_values: dict[str, Any]):
    known = record(recipe_of("fft-moe-sums", recipe_values), CELLS["fft-moe-sums"][2], rounds=1)
    expected, message = known.expectation(known.victim), known.replies[known.victim]
    number = expected.num_examples
    assert number is not None
    assert screen(message, dataclasses.replace(expected, num_examples=number + 3)).num_examples == number
    with pytest.raises(Rejected, match=f"num_examples {number}; expected a whole number from 1 to {number - 1}"):
        screen(message, dataclasses.replace(expected, num_examples=number - 1))
    with pytest.raises(Rejected, match=f"examples in its feature statistics is {number}; expected {number - 1}"):
        screen(say(num_examples=number - 1)(message) or b"", expected)
    with pytest.raises(Rejected, match="num_examples 0; expected a whole number from 1"):
        screen(say(num_examples=0)(message) or b"", expected)


# Validation of tasks that count by label


def multi_label(rows: Sequence[Sequence[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.tensor(rows)
    return torch.where(labels > 0, 1.0, -1.0), labels


@pytest.mark.parametrize(("fewest", "kept"), [(1, (5, 2, 1, 0)), (2, (5, 2, 0, 0)), (3, (5, 0, 0, 0))])
def test_counts_of_a_rare_label_are_left_out_of_validation(
    monkeypatch: pytest.MonkeyPatch, fewest: int, kept: tuple[int, ...]
):
    """And the metrics are those over the other labels."""
    task = make_task("multi-label-classification")
    logits, labels = multi_label([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    every = task.statistics(logits, {"labels": labels}).sum(0, keepdim=True).numpy()

    class Held:
        labels = torch.zeros(5, dtype=torch.long)

        def select(self, rows: torch.Tensor) -> "Held":
            return self

        def __len__(self) -> int:
            return 5

        def batch(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"labels": labels[rows]}

    monkeypatch.setattr("fftmoe.client.validation.evaluation_batches", lambda *_: [torch.arange(3), torch.arange(3, 5)])
    monkeypatch.setattr("fftmoe.client.validation.tally", lambda *_: type("Tally", (), {"sums": every.copy()}))
    held: Any = Held()
    assert rows_with_labels(task, held, 4).tolist() == [5, 2, 1, 0]
    found = validation_sums(None, 0, task, 4, held, {0: np.arange(5)}, fewest)[names.VALIDATION]
    assert found.tolist() == [*kept, *kept, *kept, 5.0, 5.0, 5.0]
    assert float(task.metrics(found[:-1].double().numpy())["f1"]) == 1.0
