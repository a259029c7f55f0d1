"""What leaves a private run when it is exported: its promise as it is, and nothing that is fitted to clients' data."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import fftmoe
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.setup.run import run
from private_runs import LABELS, NOISY
from tampering import recipe_of

EXAMPLES = {"min_contributors": 1, "examples": {"clip_norm": 0.7, "noise_multiplier": 1.3, "delta": 0.001}}
OWN = {"adapter.residents": "balanced", "adapter.balance": "switch", "adapter.router": "shared+personal"}
PROMISES = {
    "sums": ({"min_contributors": 2}, "kept only sums over clients, without noise and so without differential privacy"),
    "clients": (NOISY, "differential privacy of clients: epsilon"),
    "examples": (EXAMPLES, "differential privacy of single examples: epsilon"),
}


@pytest.fixture(scope="module", params=[*PROMISES])
def private(request: pytest.FixtureRequest, recipe_values: dict[str, Any], tmp_path_factory: Any) -> tuple[str, Path]:
    """The name of a promise, and a run with it."""
    folder = tmp_path_factory.mktemp("private") / "run"
    recipe = recipe_of("fft-moe", recipe_values, **OWN, **{"data.labels": LABELS})
    run(parse_recipe({**recipe, "privacy": PROMISES[request.param][0]}, "tiny"), folder)
    return request.param, folder


def card(folder: Path, output: Path, to: str, **options: Any) -> str:
    fftmoe.export(folder, to, output, **options)
    return (output / "README.md").read_text()


def test_the_card_states_the_promise_of_the_run(private: tuple[str, Path], tmp_path: Path):
    name, folder = private
    found = card(folder, tmp_path / "out", "peft")
    assert PROMISES[name][1] in found
    assert "this one was trained without differential privacy" not in found
    spent = json.loads((folder / "summary.json").read_text())["privacy"]
    account = spent.get("examples", spent)
    assert (name == "sums") == ("epsilon" not in account)
    if name != "sums":
        assert f"epsilon {account['epsilon']:.3g} at delta 0.001. Compared are" in found
        assert account["adjacency"] in found
        assert "not private by themselves" not in found


def test_the_card_of_a_private_run_names_nothing(private: tuple[str, Path], tmp_path: Path):
    name, folder = private
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    own = (folder / "adapter" / "README.md").read_text()
    for text in (own, card(folder, tmp_path / "out", "peft")):
        assert PROMISES[name][1] in text
        assert "data that a private run does not name" in text
        for place in (recipe["data"]["source"], recipe["backbone"]["model"]):
            assert Path(place).name not in text
        assert recipe["name"] not in text.replace("fft-moe", "")
        assert not any(f" {label}" in text or f"({label}" in text for label in LABELS)


def test_the_model_of_one_client_is_not_covered(private: tuple[str, Path], tmp_path: Path):
    name, folder = private
    warning = "parts that one client trained for itself"
    assert (warning in card(folder, tmp_path / "own", "personal", client=0)) == (name != "sums")
    assert warning not in card(folder, tmp_path / "tier", "personal", tier="small")


def test_an_imitation_is_not_fitted_to_the_clients_examples(
    private: tuple[str, Path], tmp_path: Path, data_folder: Path
):
    name, folder = private
    if name == "sums":
        fftmoe.export(folder, "lora", tmp_path / "out", steps=2)
        return
    with pytest.raises(InputError, match="without the noise of differential privacy; name others with --data"):
        fftmoe.export(folder, "lora", tmp_path / "out", steps=2)
    assert not (tmp_path / "out").exists()
    shutil.copy(data_folder / "test.csv", tmp_path / "public.csv")
    fftmoe.export(folder, "lora", tmp_path / "out", steps=2, data=str(tmp_path / "public.csv"))


def test_the_page_states_the_promise_of_the_run(private: tuple[str, Path]):
    name, folder = private
    page = (folder / "report.html").read_text()
    assert ("epsilon of" in page) == (name != "sums")
    if name != "sums":
        spent = json.loads((folder / "summary.json").read_text())["privacy"]
        account = spent.get("examples", spent)
        assert f"{account['epsilon']:.3f} at delta 0.001" in page
        assert account["adjacency"] in page
        assert f"privacy of {name} spent, at delta 0.001" in page
