"""Private runs over rows whose label is not declared: nothing shows that there are any."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fftmoe.client.update import NO_EXAMPLE, local_batches
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.records import unpack_update
from fftmoe.setup.run import run
from fftmoe.setup.site import make_site_client
from private_runs import LABELS, NOISY, PrivateRecipe
from sites import fails_as
from tampering import Kept, record

EXAMPLES = {"min_contributors": 1, "examples": {"clip_norm": 0.7, "noise_multiplier": 1.3, "delta": 0.001}}
SWITCH = {"adapter.balance": "switch", "partition": {"kind": "natural", "by": "author", "num_clients": 4}}
WithLabel = Callable[[str, int], Path]


@pytest.fixture
def with_label(data_folder: Path, tmp_path: Path) -> WithLabel:
    """`with_label("violet", 3)` is a copy of the data in which the first three training rows have that label."""

    def make(label: str, number: int) -> Path:
        folder = tmp_path / f"{label}-{number}"
        folder.mkdir()
        for split in ("train", "test"):
            with (data_folder / f"{split}.csv").open() as file:
                rows = list(csv.reader(file))
            for row in rows[1 : number + 1] if split == "train" else ():
                row[1] = label
            with (folder / f"{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(rows)
        return folder

    return make


@pytest.mark.parametrize("privacy", [NOISY, EXAMPLES], ids=["clients", "examples"])
def test_a_run_shows_the_declared_labels_and_the_same_account(
    private_recipe: PrivateRecipe, with_label: WithLabel, tmp_path: Path, privacy: Any
):
    found = []
    for label in ("red", "violet"):
        folder, output = with_label(label, 5), tmp_path / f"run-{label}"
        recipe = private_recipe("head-only", privacy, **SWITCH, **{"data.source": str(folder)})
        run(parse_recipe(recipe, "tiny"), output)
        summary = json.loads((output / "summary.json").read_text())
        assert json.loads((output / "adapter" / "labels.json").read_text())["labels"] == LABELS
        account = summary["privacy"].get("examples", summary["privacy"])
        found.append({name: account[name] for name in ("sampling_rate", "noise_multiplier", "delta")})
        text = "".join(path.read_text() for path in (output / "summary.json", output / "metrics.jsonl"))
        assert "violet" not in text
    assert found[0] == found[1]


def test_a_client_draws_such_rows_and_learns_nothing_from_them(private_recipe: PrivateRecipe, with_label: WithLabel):
    recipe = private_recipe("head-only", EXAMPLES, **SWITCH, **{"data.source": str(with_label("violet", 113))})
    known = record(recipe, "train", rounds=1)
    for message in known.replies.values():
        update = unpack_update(message)
        assert (update.num_examples, update.metrics) == (1, {})
        assert all(bool((tensor != 0).all()) for tensor in update.tensors.values())  # of noise alone
    indices = np.array([5, NO_EXAMPLE, 7, NO_EXAMPLE])
    plan = known.plan.clients[0]
    assert plan.training.local_steps == 2
    everyone = plan.training.batch_size  # of four rows, so that each is drawn
    assert everyone > 4
    assert [rows.tolist() for rows in local_batches(plan, indices, known.experiment.train)] == [[5, 7]] * 2


@pytest.mark.parametrize("at_once", [1, 3])
def test_clients_without_an_example_send_zeros(
    private_recipe: PrivateRecipe, with_label: WithLabel, tmp_path: Path, at_once: int
):
    """Their change is nothing, whether they train one by one or in one batch; the noise is added by the server."""
    source = {"data.source": str(with_label("violet", 113))}
    known = record(private_recipe("fft-moe", NOISY, **SWITCH, **source), "train", rounds=1)
    for message in known.replies.values():
        assert not any(bool(tensor.any()) for tensor in unpack_update(message).tensors.values())
    engine = {"engine": {"workers": 1, "clients_per_batch": at_once}}
    run(parse_recipe(private_recipe("fft-moe", NOISY, **SWITCH, **source, **engine), "tiny"), tmp_path / "run")


def test_a_site_reports_all_of_its_rows(private_recipe: PrivateRecipe, with_label: WithLabel, backbone_folder: Path):
    """A server that names other labels learns nothing about how many rows have them."""
    reported = []
    for labels in (LABELS, ["x", "y", "z"]):
        recipe = private_recipe("head-only", EXAMPLES, **SWITCH, **{"data.labels": labels})
        site = make_site_client(
            parse_recipe(recipe, "tiny").model_dump(mode="json"),
            labels,
            client_id=0,
            data=with_label("blue", len(labels[0])),
            budget="small",
            model=str(backbone_folder),
            states=Kept(),
        )
        reported.append((site.rows.total, len(site.runtime.partition[0])))
    assert reported == [(113, 113)] * 2
    assert (site.runtime.partition[0] == NO_EXAMPLE).all()


def test_the_lengths_of_texts_do_not_show_in_the_tier_of_a_site(
    private_recipe: PrivateRecipe, data_folder: Path, tmp_path: Path, backbone_folder: Path
):
    """Limits on compute choose a tier, which a site reports; without privacy the same limits choose by the texts."""
    tiers: dict[str, list[str]] = {}
    for words in (1, 40):
        folder = tmp_path / f"{words}"
        folder.mkdir()
        (folder / "train.csv").write_text("text,label\n" + f"{'red ' * words},red\n" * 113)
        for name, privacy in (("private", EXAMPLES), ("plain", {"min_contributors": 1})):
            values = private_recipe("fft-moe", privacy, **SWITCH, **{"data.max_length": 16})
            tiers.setdefault(name, []).append(tier_of_site(values, folder, backbone_folder, "gflops=0.0004"))
    assert tiers["plain"] == ["large", "small"]
    assert tiers["private"] == ["small", "small"]


def tier_of_site(values: dict[str, Any], data: Path, backbone: Path, budget: str) -> str:
    values = parse_recipe(values, "tiny").model_dump(mode="json")
    places = {"client_id": 0, "data": data, "model": str(backbone), "states": Kept()}
    return make_site_client(values, LABELS, budget=budget, **places).agreed.tier


def test_a_site_refuses_texts_that_are_too_long_before_it_has_one(
    private_recipe: PrivateRecipe, data_folder: Path, backbone_folder: Path
):
    """Otherwise training fails as soon as a client draws a long text, which tells the server that there is one."""
    values = private_recipe("head-only", EXAMPLES, **SWITCH, **{"data.max_length": 10_000})
    with fails_as("backbone", "data.max_length=10000 is above the"):
        tier_of_site(values, data_folder, backbone_folder, "small")


def test_without_a_promise_an_unknown_label_is_an_error(private_recipe: PrivateRecipe, with_label: WithLabel):
    recipe = private_recipe("head-only", {"min_contributors": 2}, **{"data.source": str(with_label("violet", 5))})
    with pytest.raises(InputError, match="label 'violet' occurs in 5 rows"):
        record(recipe, "train", rounds=1)
