"""What a run that goes on is compared with, and what is said and written of it."""

from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.setup.bindings import UNBOUND, bound_recipe, check_unchanged, inputs_of
from fftmoe.store.bindings import Bindings
from five_clients import changed
from private_runs import LABELS, NOISY, SUMS

NOW = {"arithmetic": {"precision": "float32"}, "labels": ["no", "yes"], "versions": {"torch": "2"}}


@pytest.fixture
def said() -> list[str]:
    return []


def continued(folder: Path, said: list[str], accept: bool = False) -> Bindings:
    return check_unchanged(folder, NOW, accept, said.append, after_round=3)


def test_a_run_that_is_what_it_was_goes_on_without_a_word(tmp_path: Path, said: list[str]):
    began = Bindings(NOW, ("an older change",))
    began.write(tmp_path)
    assert continued(tmp_path, said) == began
    assert said == []


def test_a_run_of_an_older_version_is_bound_from_now_on(tmp_path: Path, said: list[str]):
    assert continued(tmp_path, said) == Bindings(NOW)
    (line,) = said
    assert line.startswith(f"warning: {tmp_path} does not record what this run began with")


def test_another_arithmetic_needs_no_consent_and_is_written_down(tmp_path: Path, said: list[str]):
    Bindings({**NOW, "arithmetic": {"precision": "bfloat16"}}, ("an older change",)).write(tmp_path)
    words = 'the numbers are computed in another way (precision was "bfloat16" and is now "float32")'
    assert continued(tmp_path, said) == Bindings(NOW, ("an older change", f"after round 3: {words}"))
    assert said == [f"accepted: {words}"]


def test_other_versions_need_consent_and_other_labels_end_the_run(tmp_path: Path, said: list[str]):
    Bindings({**NOW, "versions": {"torch": "1"}}).write(tmp_path)
    with pytest.raises(InputError, match=r"the run in .* cannot continue: the versions .*torch 1 then, 2 now.*restore"):
        continued(tmp_path, said)
    assert said == []
    (accepted,) = continued(tmp_path, said, accept=True).accepted
    assert accepted.startswith("after round 3: the versions of the software have changed")
    Bindings({**NOW, "labels": ["yes", "no"]}).write(tmp_path)
    with pytest.raises(InputError, match="the labels are in another order"):
        continued(tmp_path, said, accept=True)


def test_a_recipe_is_bound_without_the_places_of_what_it_reads(recipe_values: dict[str, Any]):
    recipe = parse_recipe(recipe_values, "test")
    bound, whole = bound_recipe(recipe), recipe.model_dump(mode="json")
    assert bound.keys() == whole.keys() - set(UNBOUND)
    for section, key in (("data", "source"), ("backbone", "model")):
        assert bound[section].keys() == whole[section].keys() - {key}
        assert bound[section].items() <= whole[section].items()
    assert bound["federation"] == whole["federation"]


@pytest.mark.parametrize(
    ("privacy", "are_told"), [(None, True), (SUMS, True), (NOISY, False)], ids=["none", "sums", "noise"]
)
def test_digests_of_clients_rows_stay_out_of_a_run_with_noise(
    recipe_values: dict[str, Any], privacy: Any, are_told: bool
):
    values = changed(
        recipe_values, **{"adapter.residents": "balanced", "data.labels": LABELS, "evaluation.local_only": False}
    )
    found = inputs_of(parse_recipe({**values, "privacy": privacy} if privacy else values, "test"))
    assert ("training rows" in found) is are_told
    assert {"test rows", "backbone", "tokenizer", "versions"} <= found.keys()
