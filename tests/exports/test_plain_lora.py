"""A LoRA of a classifier is opened by the lines of its card, in a process that has no fftmoe."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fftmoe
from fftmoe.backbones import BUILTIN_MINILM, load_tokenizer, logits
from fftmoe.backbones.builtin import BUILTIN_MODELS
from fftmoe.config import parse_recipe
from fftmoe.setup.finished import load_run
from fftmoe.setup.run import run
from five_clients import CLOSED, FOURIER, changed

TEXTS = ["red ash bay", "blue"]
WITHOUT_FFTMOE = "import sys\nsys.modules['fftmoe'] = None\n"  # an import of it fails
HEADS = {
    "linear": {"head": CLOSED},
    "random features": {"head": FOURIER},
    "native": {"backbone__pooling": "native"},
    "averaged": {"head": {"kind": "averaged", "learning_rate": 0.5}},
}
EXPERTS = [("fft-moe", head) for head in HEADS]
CASES = [*EXPERTS, ("fedit", "linear"), ("fedit", "random features"), ("fedit", "native")]


def exported(method: str, head: str, recipe_values: dict[str, Any], folder: Path) -> tuple[Path, dict[str, Any]]:
    """A run, and what its export records; the export is the folder that its card speaks of."""
    values = changed(recipe_values, method=method, trackers=[], federation__rounds=1, **HEADS[head])
    made = run(parse_recipe(values | {"evaluation": {}}, "here"), folder / "run").folder
    options = {"rank": 3, "steps": 2} if method == "fft-moe" else {}
    return made, fftmoe.export(made, "lora", folder / "this folder", **options)


def card_codes(folder: Path) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", (folder / "this folder" / "README.md").read_text(), flags=re.DOTALL)
    return [code.replace('["a text"]', repr(TEXTS)) for code in found]


AFTER = """
import json, torch
if "logits" not in dir():
    with torch.no_grad():
        logits = model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
print(json.dumps({"logits": logits.tolist(), "plain": "fftmoe" not in __import__("sys").modules}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "head"), CASES)
def test_the_lines_of_the_card_give_the_logits_of_the_lora_without_this_package(
    method: str, head: str, recipe_values: dict[str, Any], tmp_path: Path
):
    made, about = exported(method, head, recipe_values, tmp_path)
    code = WITHOUT_FFTMOE + card_codes(tmp_path)[0] + AFTER.replace("TEXTS", repr(TEXTS))
    code = code.replace('"fftmoe" not in __import__("sys").modules', '__import__("sys").modules["fftmoe"] is None')
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["plain"]
    trained = load_run(made, exact=True)
    batch = load_tokenizer(trained.run.backbone.model)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = logits(trained.model, dict(batch))
    if method == "fedit":  # it is the run's own LoRA
        torch.testing.assert_close(torch.tensor(found["logits"]), ours, rtol=1e-4, atol=1e-5)
    assert torch.tensor(found["logits"]).shape == ours.shape
    assert about["max_difference"] <= 1e-4


@pytest.mark.parametrize("head", ["linear", "random features"])
def test_the_folder_holds_a_lora_of_the_encoder_and_the_head_beside_it(
    head: str, recipe_values: dict[str, Any], backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, about = exported("fedit", head, recipe_values, tmp_path)
    folder = tmp_path / "this folder"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "FEATURE_EXTRACTION")
    assert (config["modules_to_save"], config["auto_mapping"]) == (None, None)
    assert all(name.startswith("encoder.") for name in config["target_modules"])
    assert (folder / "tokenizer.json").is_file()
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    here, elsewhere = (compile(code, "README.md", "exec") for code in card_codes(tmp_path))
    exec(here, found)
    trained = load_run(made, exact=True)
    with torch.no_grad():
        ours = logits(trained.model, dict(found["batch"]))
    torch.testing.assert_close(found["logits"], ours, rtol=1e-4, atol=1e-5)
    assert found["labels"] == list(trained.run.label_names)
    states = found["states"]
    (tmp_path / backbone_folder.name).symlink_to(backbone_folder)  # a card names no private place
    exec(elsewhere, found)
    with torch.no_grad():
        assert torch.equal(found["encoder"](**found["batch"]).last_hidden_state, states)
    assert about["max_difference"] <= 1e-4
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()}
    shutil.copyfile(folder / "labels.json", tmp_path / "usual")
    assert modes == {(tmp_path / "usual").stat().st_mode & 0o777}


def test_a_head_of_transformers_is_opened_from_another_place_too(
    recipe_values: dict[str, Any], backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, _ = exported("fedit", "native", recipe_values, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / backbone_folder.name).symlink_to(backbone_folder)
    trained, codes = load_run(made, exact=True), card_codes(tmp_path)
    assert not any("fftmoe" in code for code in codes)
    exec(compile("\n".join(codes), "README.md", "exec"), found := dict[str, Any]())
    batch = dict(found["tokenizer"](TEXTS, padding=True, return_tensors="pt"))
    with torch.no_grad():
        theirs = found["model"].eval()(**batch).logits
        torch.testing.assert_close(theirs, logits(trained.model, batch), rtol=1e-4, atol=1e-5)


def test_of_a_built_in_backbone_the_card_asks_no_hub(
    recipe_values: dict[str, Any], backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its name on a hub is in the card, for others."""
    monkeypatch.setitem(BUILTIN_MODELS, BUILTIN_MINILM, lambda: backbone_folder)  # pyright: ignore[reportArgumentType]
    exported("fedit", "linear", changed(recipe_values, backbone__model=BUILTIN_MINILM), tmp_path)
    monkeypatch.chdir(tmp_path)
    here, elsewhere = card_codes(tmp_path)
    exec(compile(here, "README.md", "exec"), found := dict[str, Any]())
    assert found["logits"].shape == (len(TEXTS), len(found["labels"]))
    assert "sentence-transformers/all-MiniLM-L6-v2" in elsewhere
