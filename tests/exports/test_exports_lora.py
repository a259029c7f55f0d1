"""A plain LoRA that imitates a mixture of experts: the fit is optimal, and the reported errors are right."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import fftmoe
from fftmoe import adapter
from fftmoe.adapter.pooling import MeanPoolClassifier
from fftmoe.adapter.shared_update import SHARED_SCALE, LowRank
from fftmoe.backbones import head_parameters, logits
from fftmoe.backbones.encoder_lora import HEAD_FILE
from fftmoe.cli.export import describe_export
from fftmoe.evaluate import tally
from fftmoe.exports import distil as distillation
from fftmoe.exports import fit
from fftmoe.exports.check import probes
from fftmoe.exports.load import fresh_backbone
from fftmoe.exports.lora import LoraSettings
from fftmoe.setup.export import lora_examples
from fftmoe.setup.finished import load_run, recipe_of
from fftmoe.setup.load import load_split
from fftmoe.tasks import make_task
from language import language_recipe, save_language_model, save_prompts
from shared_fixtures import Cli, assert_refused

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
TOKENS, INPUTS, DIM = 97, 11, 5


def finished(cli: Cli, folder: Path, values: dict[str, Any]) -> Path:
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**values, "trackers": [], "evaluation": {"baselines": "off"}}))
    assert cli("run", folder / "tiny.yaml", "--output", folder / "run").status == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(cli: Cli, recipe_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose experts changed, and whose attention has a shared update of rank 3."""
    changed = {
        "adapter": {**recipe_values["adapter"], "shared_rank": 3},
        "federation": {**recipe_values["federation"], "learning_rate": 0.1},
    }
    return finished(cli, tmp_path_factory.mktemp("lora"), {**recipe_values, **changed})


def pairs(seed: int) -> tuple[Tensor, Tensor]:
    """Random h and D of tokens; D is not linear in h."""
    source = torch.Generator().manual_seed(seed)
    h_TF = torch.randn(TOKENS, INPUTS, generator=source) + 0.3
    return h_TF, torch.tanh(h_TF @ torch.randn(INPUTS, DIM, generator=torch.Generator().manual_seed(1))) + 0.1


def sums_of(h_TF: Tensor, d_TD: Tensor) -> fit.TokenSums:
    sums = fit.TokenSums(
        torch.zeros(INPUTS, INPUTS, dtype=torch.float64), torch.zeros(INPUTS, DIM, dtype=torch.float64)
    )
    sums.add(h_TF[:40], d_TD[:40])
    sums.add(h_TF[40:], d_TD[40:])
    return sums


# The fit


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_no_map_of_the_same_rank_has_a_smaller_error(rank: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "RIDGE", 0.0)
    h_TF, d_TD = pairs(0)
    a, b = fit.low_rank(sums_of(h_TF, d_TD), rank)
    assert (a.shape, b.shape) == ((rank, INPUTS), (DIM, rank))
    found = float((d_TD - h_TF @ a.mT @ b.mT).double().square().sum())
    # In an orthonormal basis of h's columns this is the best approximation of a matrix (Eckart and Young).
    basis_TF, _ = torch.linalg.qr(h_TF.double())
    inside = torch.linalg.svdvals(basis_TF.mT @ d_TD.double())
    outside = d_TD.double().square().sum() - inside.square().sum()
    assert found == pytest.approx(float(outside + inside[rank:].square().sum()), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_reported_error_is_that_of_the_tokens(rank: int):
    a, b = fit.low_rank(sums_of(*pairs(0)), rank)
    h_TF, d_TD = pairs(7)
    direct = (d_TD - h_TF @ a.mT @ b.mT).square().sum() / d_TD.square().sum()
    assert fit.relative_error(sums_of(h_TF, d_TD), a, b) == pytest.approx(float(direct), rel=1e-4)
    assert fit.relative_error(sums_of(h_TF, d_TD), 0 * a, b) == 1


def test_the_sums_are_over_what_the_experts_add_to_tokens_that_are_not_padding(run: Path):
    trained = load_run(run, exact=True)
    model, batch = trained.model, probes(trained)[1]
    sums = fit.collect(model, [batch])
    assert {own.tokens for own in sums.values()} == {int(batch["attention_mask"].sum())}
    for block, moe in adapter.blocks(model).items():
        seen: list[Tensor] = []
        handle = moe.register_forward_hook(lambda _, inputs, output, seen=seen: seen.append(output))
        with torch.no_grad():
            logits(model, batch)
        handle.remove()
        real = seen[0][batch["attention_mask"].bool()]
        assert sums[block].energy == pytest.approx(float(real.double().square().sum()))


# The export


@pytest.fixture(scope="module")
def exported(cli: Cli, run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("out") / "lora"
    outcome = cli("export", run, "--to", "lora", "--output", folder, "--rank", 4, "--steps", 5)
    assert (outcome.status, outcome.err) == (0, "")
    assert "this LoRA is an imitation" in outcome.out
    return folder, json.loads((folder / "export.json").read_text())


class Shell(nn.Module):
    """Gives the modules of a model the names that they have in a model of PEFT."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model

    def forward(self, **batch: Tensor) -> Any:
        return self.base_model.get_submodule("model")(**batch)


def opened(run: Path, folder: Path) -> Any:
    """The run's classifier with the LoRA on its encoder and the saved head; PEFT changes the encoder in its place."""
    backbone = fresh_backbone(load_run(run, exact=True).run)
    if not isinstance(backbone, MeanPoolClassifier):
        return PeftModel.from_pretrained(backbone, str(folder)).eval()
    PeftModel.from_pretrained(backbone.backbone, str(folder))
    backbone.classifier.load_state_dict(load_file(folder / HEAD_FILE))
    return Shell(backbone).eval()


def test_the_export_is_a_lora_of_one_rank_that_peft_opens(run: Path, exported: tuple[Path, dict[str, Any]]):
    folder, about = exported
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 4)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    ends = {name.rpartition("encoder.layer.")[2] for name in config["target_modules"]}
    ours = {f"{block}.{name}" for block in (1, 2) for name in ("output.dense", "attention.self.query")}
    assert ours < ends
    assert len(ends) == 6
    assert about["max_difference"] == 0.0


def test_the_shared_update_of_attention_and_the_head_are_exact(run: Path, exported: tuple[Path, dict[str, Any]]):
    original, lora = load_run(run, exact=True).model, opened(run, exported[0])
    heads = head_parameters(original)
    own = dict(lora.base_model.model.classifier.named_parameters())
    assert own.keys() == heads.keys()
    assert all(parameter.equal(heads[name]) for name, parameter in own.items())
    shared = {n: m for n, m in original.named_modules() if isinstance(m, LowRank)}
    assert len(shared) == 4
    for name, module in shared.items():
        layer = lora.get_submodule(name.partition(".moe_shared")[0])
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
        torch.testing.assert_close(product, SHARED_SCALE * module.low_b @ module.low_a)


def test_the_reported_metrics_of_the_imitation_are_right(run: Path, exported: tuple[Path, dict[str, Any]]):
    folder, about = exported
    trained = load_run(run, exact=True)
    test, task = load_split(recipe_of(run), "test", trained.run.label_names), make_task("sequence-classification")
    for name, model in (("lora", opened(run, folder)), ("mixture_of_experts", trained.model)):
        assert about["metric"][name] == tally(model, task, test, 3).metrics()
    # Without experts and shared updates, the model is the backbone with the run's head.
    backbone = load_run(run, exact=True).model
    with torch.no_grad():
        for moe in adapter.blocks(backbone).values():
            moe.down.zero_()
        for module in backbone.modules():
            if isinstance(module, LowRank):
                module.low_b.zero_()
    assert about["metric"]["backbone_alone"] == tally(backbone, task, test, 3).metrics()
    assert about["relative_error"].keys() == about["relative_error_closed_form"].keys() == {"1", "2"}
    assert all(0 < error < 1 for error in about["relative_error_closed_form"].values())
    assert "imitates a mixture-of-experts adapter" in (folder / "README.md").read_text()


def test_training_after_the_fit_brings_the_outputs_closer(run: Path, tmp_path: Path):
    trained = load_run(run, exact=True)
    batches = lora_examples(trained.run, None).fitted
    sites = distillation.expert_sites(trained.model)
    losses = []
    for steps in (0, 40):
        fftmoe.export(run, "lora", tmp_path / str(steps), rank=1, steps=steps)
        model = opened(run, tmp_path / str(steps))
        with torch.no_grad():
            found = [
                distillation.distillation_loss(
                    *(distillation.outputs_at(m, b, sites) for m in (model, trained.model)), exclusive=True
                )
                for b in batches
            ]
        losses.append(float(torch.stack(found).mean()))
    assert losses[1] < losses[0]


@pytest.mark.parametrize(("kind", "options"), [("lora", {"rank": 1, "steps": 1}), ("peft", {})])
def test_an_export_warns_of_nothing_that_a_person_cannot_change(
    run: Path, tmp_path: Path, kind: str, options: dict[str, int]
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fftmoe.export(run, kind, tmp_path / kind, **options)
    assert [str(warning.message) for warning in caught if issubclass(warning.category, FutureWarning)] == []


@pytest.mark.parametrize(("rate", "kept"), [(1e-3, "trained"), (1.0, "closed_form")])
def test_training_that_leads_away_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, kept: str
):
    monkeypatch.setattr(distillation, "LEARNING_RATE", rate)
    written = {steps: fftmoe.export(run, "lora", tmp_path / str(steps), rank=1, steps=steps) for steps in (0, 31)}
    assert (written[0]["kept"], written[31]["kept"], written[31]["steps"]) == ("closed_form", kept, 31)
    assert (written[31]["weights"] == written[0]["weights"]) is (kept == "closed_form")
    said = describe_export(written[31], tmp_path)
    assert ("the fit was kept" in said) is (kept == "closed_form")


@pytest.mark.parametrize(("missing", "steps"), [([0.009, 0.0], 0), ([0.009, 0.011], 100)])
def test_by_default_a_fit_that_misses_little_is_not_trained(missing: list[float], steps: int):
    assert LoraSettings().steps_after({str(block): error for block, error in enumerate(missing)}) == steps
    assert LoraSettings(steps=7).steps_after({"0": missing[0]}) == 7


def test_the_lora_can_be_fitted_to_a_file_of_texts_without_labels(run: Path, tmp_path: Path):
    lines = ["red ash bay", "blue cod", "green elm fig gum", "ivy hay dew red"] * 10
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    about = fftmoe.export(run, "lora", tmp_path / "out", rank=2, steps=0, data=str(tmp_path / "texts.txt"))
    assert about["tokens"] == pytest.approx(
        36 * 5.25, rel=0.1
    )  # nine tenths of the texts, each with two special tokens
    assert about["rank"] == 3  # the rank of the shared update


def test_a_language_model_is_imitated_in_the_same_way(cli: Cli, tmp_path: Path):
    values = language_recipe(save_language_model(tmp_path / "model"), save_prompts(tmp_path / "data"))
    run = finished(cli, tmp_path, values)
    about = fftmoe.export(run, "lora", tmp_path / "out", rank=7, steps=3)
    assert about["metric"].keys() == {"mixture_of_experts", "backbone_alone", "lora_closed_form", "lora"}
    assert "perplexity" in about["metric"]["lora"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert all(name.endswith("mlp.down_proj") for name in config["target_modules"])
    assert (config["r"], config["bias"], config["modules_to_save"], config["rank_pattern"]) == (7, "none", None, {})


@pytest.mark.slow
def test_a_language_model_and_its_lora_are_merged_without_this_package(cli: Cli, tmp_path: Path):
    """The lines of docs/export.md are run unchanged; the merged model computes what the two computed."""
    values = language_recipe(save_language_model(tmp_path / "model"), save_prompts(tmp_path / "data"))
    run = finished(cli, tmp_path, values)
    fftmoe.export(run, "lora", tmp_path / "as-lora", rank=7, steps=3)
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    lines += "import sys\nassert 'fftmoe' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, check=True, capture_output=True)
    ids = torch.randint(4, 10, (3, 11), generator=torch.Generator().manual_seed(5))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        ours = logits(opened(run, tmp_path / "as-lora"), {"input_ids": ids})
        of_backbone = logits(fresh_backbone(load_run(run, exact=True).run).eval(), {"input_ids": ids})
        # B A is added to the weight before the multiplication instead of after it.
        torch.testing.assert_close(merged(input_ids=ids).logits, ours, rtol=1e-5, atol=1e-5)
    assert (ours - of_backbone).abs().max() > 1e-3
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def test_a_run_that_cannot_be_imitated_is_refused(cli: Cli, run: Path, recipe_values: dict[str, Any], tmp_path: Path):
    (tmp_path / "few.txt").write_text("red\nblue\n")
    few = cli("export", run, "--to", "lora", "--output", tmp_path / "out", "--data", tmp_path / "few.txt")
    assert_refused(few, "few.txt holds 2 examples", "at least 20")
    plain = finished(cli, tmp_path, {**recipe_values, "method": "fedit"})
    refused = cli("export", plain, "--to", "personal", "--output", tmp_path / "out", "--experts", "0")
    assert_refused(refused, "method fedit has no experts", "--to peft")
    refused = cli("export", plain, "--to", "lora", "--output", tmp_path / "out", "--rank", "3")
    assert_refused(refused, "method fedit trains a LoRA, which is exported as it is", "--rank")
    assert cli("export", plain, "--to", "peft", "--output", tmp_path / "out").status == 0


@pytest.mark.parametrize(("error", "worse"), [(0.07, False), (1.0, False), (5.43, True)])
def test_an_imitation_that_is_worse_than_none_is_reported_as_such(error: float, worse: bool):
    about = {
        "format": "lora",
        "bytes": 2**20,
        "max_difference": 0.0,
        "tolerance": 1e-6,
        "relative_error": {"4": 0.05, "5": error},
        "steps": 100,
        "kept": "trained",
        "metric": {"lora": {"accuracy": 0.5}},
    }
    assert ("no LoRA at all would be nearer" in describe_export(about, Path("lora"))) is worse
