"""An export is whole or absent, and computes what the run's model computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

import fftmoe
from fftmoe import adapter
from fftmoe.adapter.fourier import FourierHead
from fftmoe.backbones import head_parameters, load_adapter, logits
from fftmoe.exports import peft as peft_export
from fftmoe.exports.check import Batch, probes
from fftmoe.exports.load import fresh_backbone
from fftmoe.exports.personal import with_own_answers
from fftmoe.head import prior_shift
from fftmoe.setup.finished import load_client, load_federation, load_run
from fftmoe.trained.run import FinishedRun
from five_clients import FOURIER
from pictures import vision_values
from run_fixtures import RunLanguage, RunValues
from shared_fixtures import Cli, assert_refused


@pytest.fixture(scope="module")
def language(run_language: RunLanguage) -> Path:
    return run_language().folder


def answers(model: Any, batches: list[Batch]) -> list[Tensor]:
    with torch.inference_mode():
        return [logits(model, batch) for batch in batches]


def opened(run: Path, folder: Path) -> Any:
    """The exported folder as a user opens it."""
    return PeftModel.from_pretrained(fresh_backbone(load_run(run, exact=True).run), str(folder)).eval()


def assert_equal(found: list[Tensor], expected: list[Tensor]):
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


# PEFT


def test_a_peft_export_is_the_adapter_of_the_run_with_a_model_card(cli: Cli, texts: Path, out: Path):
    outcome = cli("export", texts, "--to", "peft", "--output", out)
    assert (outcome.status, outcome.err) == (0, "")
    assert "logits differ by 0 at most" in outcome.out
    for name in ("adapter_config.json", "adapter_model.safetensors", "labels.json"):
        assert (out / name).read_bytes() == (texts / "adapter" / name).read_bytes()
    trained = load_run(texts, exact=True)
    assert_equal(answers(opened(texts, out), probes(trained)), answers(trained.model, probes(trained)))
    about = json.loads((out / "export.json").read_text())
    assert (about["format"], about["max_difference"]) == ("peft", 0.0)
    assert about["run"]["adapter"] == about["weights"]


def test_a_peft_export_with_another_top_k_opens_with_it(texts: Path, out: Path):
    fftmoe.export(texts, "peft", out, top_k=1)
    trained = load_run(texts, 1, exact=True)
    assert_equal(answers(opened(texts, out), probes(trained)), answers(trained.model, probes(trained)))
    usual = load_run(texts, exact=True)
    assert not answers(usual.model, probes(usual))[2].equal(answers(opened(texts, out), probes(usual))[2])


# Personal


@pytest.mark.parametrize("client_id", [0, 1, 2, 3])
def test_the_adapter_of_a_client_gives_what_its_personal_model_gives(texts: Path, tmp_path: Path, client_id: int):
    about = fftmoe.export(texts, "personal", tmp_path / "out", client=client_id)
    client = with_own_answers(load_client(texts, client_id, exact=True))
    batches = probes(client.trained)
    expected = answers(client.trained.model, batches)
    own = opened(texts, tmp_path / "out")
    assert_equal(answers(own, batches), expected)
    config = own.peft_config["default"]
    assert (config.num_experts, config.top_k) == (client.budget.experts, client.budget.top_k)
    assert config.blocks == list(client.budget.blocks)
    assert about["experts"] == {str(block): list(ids) for block, ids in client.experts.items()}
    if client.kept:  # its router differs from the global one
        moved = load_federation(texts, exact=True)
        moved.method.install(moved.trained.model, moved.state.tensors, client.budget)
        assert not answers(moved.trained.model, batches)[2].equal(expected[2])


def test_its_answers_are_corrected_for_the_labels_of_the_client(texts: Path, out: Path):
    about = fftmoe.export(texts, "personal", out, client=2)
    plain, client = load_client(texts, 2, exact=True), load_client(texts, 2, exact=True)
    assert client.prior is not None
    assert client.prior.shares is not None
    batches = probes(plain.trained)
    shift = prior_shift(client.prior.shares, client.prior.whole, client.prior.answers)
    assert shift.abs().max() > 0.1
    for own, common in zip(answers(opened(texts, out), batches), answers(plain.trained.model, batches), strict=True):
        torch.testing.assert_close(own, common + shift.to(common), rtol=1e-5, atol=1e-5)  # added to the bias, or last
    assert about["prior"] == "client 2"
    assert json.loads((out / "labels.json").read_text())["label_shares"] == client.prior.shares.tolist()
    assert "how often each label occurs" in (out / "README.md").read_text()


def test_those_clients_include_both_tiers_and_kept_states(texts: Path):
    clients = [load_client(texts, client_id) for client_id in range(4)]
    assert {client.budget.name for client in clients} == {"small", "large"}
    assert any(client.kept for client in clients)


def test_the_adapter_of_a_tier_has_the_experts_that_are_used_most(texts: Path, out: Path):
    about = fftmoe.export(texts, "personal", out, tier="small")
    federation = load_federation(texts, exact=True)
    block = max(max(tier.blocks) for tier in federation.tiers)
    busiest = federation.state.load[f"blocks.{block}"].topk(2).indices.tolist()
    assert about["experts"] == {str(block): sorted(busiest)}
    pool = adapter.blocks(load_run(texts, exact=True).model)[block]
    (held,) = adapter.blocks(opened(texts, out)).values()
    assert held.router.weight.equal(pool.router.weight[sorted(busiest)])


def test_listed_experts_compute_what_the_pool_computes_without_the_others(texts: Path, out: Path):
    fftmoe.export(texts, "personal", out, experts=[4, 1], top_k=2)
    trained = load_run(texts, exact=True)
    for moe in adapter.blocks(trained.model).values():
        moe.view(2, torch.tensor([False, True, False, False, True]))
    batches = probes(trained)
    for one, other in zip(answers(opened(texts, out), batches), answers(trained.model, batches), strict=True):
        torch.testing.assert_close(one, other)  # another number of experts may be computed in another order


@pytest.fixture(scope="module")
def solved(run_values: RunValues, recipe_values: dict[str, Any]) -> Path:
    """A run whose closed-form head uses random features."""
    return run_values({**recipe_values, "head": FOURIER}).folder


@pytest.mark.parametrize(
    ("form", "choice"),
    [
        ("peft", {}),
        ("personal", {"tier": "small"}),
        ("personal", {"experts": [0, 3]}),
        ("personal", {"client": 1}),
        ("lora", {}),
    ],
)
def test_the_random_features_of_a_closed_form_head_are_exported(
    solved: Path, out: Path, form: str, choice: dict[str, Any]
):
    """They are in the file, so a backbone with other features gives the same once the adapter is loaded."""
    fftmoe.export(solved, form, out, **choice)  # which compares most forms with the model of the run
    expected = head_of(load_run(solved, exact=True).model)
    assert expected.keys() == {"weight", "bias", "directions", "phases"}
    if form == "lora":  # PEFT opens it without this package, and the head lies beside it
        found = load_file(out / "classifier.safetensors")
        assert found.keys() == expected.keys()
        assert all(found[name].equal(tensor) for name, tensor in expected.items())
        return
    trained = load_run(solved, exact=True)
    other = fresh_backbone(trained.run)
    with torch.no_grad():
        for tensor in head_of(other).values():
            tensor.add_(1)
    found = head_of(PeftModel.from_pretrained(other, str(out)))
    changed = {"bias"} if "client" in choice else set()  # corrected for the client's labels
    assert all(found[name].equal(tensor) != (name in changed) for name, tensor in expected.items())


def head_of(model: Any) -> dict[str, Tensor]:
    """The state of the head that computes the logits."""
    return [module for module in model.modules() if isinstance(module, FourierHead)][-1].state_dict()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ("exactly one of --client", "--tier", "--experts")),
        (("--client", 3, "--tier", "small"), ("exactly one of",)),
        (("--client", 7), ("client 7", "0 to 6")),
        (("--tier", "smal"), ("'smal'", "did you mean 'small'")),
        (("--experts", "1,5"), ("--experts 1,5", "0 to 4")),
        (("--experts", "1,x"), ("--experts 1,x",)),
        (("--experts", "1,2", "--top-k", 3), ("top_k=3", "2 resident")),
    ],
)
def test_the_choice_of_experts_must_be_unambiguous(
    cli: Cli, texts: Path, out: Path, flags: tuple[object, ...], words: tuple[str]
):
    assert_refused(cli("export", texts, "--to", "personal", "--output", out, *flags), *words)
    assert not out.exists()


# Graphs


@pytest.mark.one_rounding("a graph that is traced")
@pytest.mark.parametrize("top_k", [pytest.param(None, marks=pytest.mark.slow), 1])
def test_a_graph_needs_only_torch_and_takes_any_batch(texts: Path, out: Path, top_k: int | None):
    about = fftmoe.export(texts, "torch-export", out, top_k=top_k)
    graph = torch.export.load(out / "model.pt2").module()
    trained = load_run(texts, top_k, exact=True)
    ids = torch.randint(2, 31, (7, 11), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(11) < torch.arange(3, 10)[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    torch.testing.assert_close(graph(**batch), answers(trained.model, [batch])[0])
    assert json.loads((out / "labels.json").read_text())["labels"] == list(trained.run.label_names)
    assert about["top_k"] == (top_k or 2)


@pytest.mark.slow
def test_an_onnx_file_gives_what_the_model_gives(texts: Path, out: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    fftmoe.export(texts, "onnx", out)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    trained = load_run(texts, exact=True)
    batches = probes(trained)
    for batch, expected in zip(batches, answers(trained.model, batches), strict=True):
        (found,) = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)  # another runtime


def test_an_onnx_export_without_its_packages_says_what_to_install(
    cli: Cli, texts: Path, out: Path, monkeypatch: pytest.MonkeyPatch
):
    from fftmoe.exports import graphs

    monkeypatch.setattr(graphs, "ONNX_PACKAGES", ("onnx_that_is_not_there",))
    refused = cli("export", texts, "--to", "onnx", "--output", out)
    assert_refused(refused, "onnx_that_is_not_there", "pip install 'fftmoe[export]'")


# Language models


@pytest.mark.one_rounding("a graph that is traced")
def test_a_language_model_is_exported_in_every_form(language: Path, tmp_path: Path):
    trained = load_run(language, exact=True)
    batches = probes(trained)
    expected = answers(trained.model, batches)
    fftmoe.export(language, "peft", tmp_path / "peft")
    assert_equal(answers(opened(language, tmp_path / "peft"), batches), expected)
    fftmoe.export(language, "personal", tmp_path / "own", client=1)
    own = load_client(language, 1, exact=True).trained.model
    assert_equal(answers(opened(language, tmp_path / "own"), batches), answers(own, batches))
    fftmoe.export(language, "torch-export", tmp_path / "graph")
    graph = torch.export.load(tmp_path / "graph" / "model.pt2").module()
    torch.testing.assert_close(graph(**batches[1]), expected[1])


@pytest.mark.one_rounding("a graph that is traced")
def test_an_image_model_is_exported_as_a_graph_and_as_lora(
    run_values: RunValues, recipe_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
):
    run = run_values({**recipe_values, **vision_values(tmp_path_factory.mktemp("vision"))}).folder
    trained = load_run(run, exact=True)
    (batch,) = probes(trained)[1:2]
    fftmoe.export(run, "torch-export", tmp_path / "graph")
    graph = torch.export.load(tmp_path / "graph" / "model.pt2").module()
    torch.testing.assert_close(graph(**batch), answers(trained.model, [batch])[0])
    about = fftmoe.export(run, "lora", tmp_path / "lora", rank=3, steps=2)
    assert about["relative_error"].keys() == {"1", "2"}


# Whole or not at all


def test_an_export_with_other_logits_fails_and_leaves_nothing(
    cli: Cli, texts: Path, out: Path, monkeypatch: pytest.MonkeyPatch
):
    def wrong(run: FinishedRun, folder: Path) -> Any:
        model = load_adapter(fresh_backbone(run), folder)
        with torch.no_grad():
            next(iter(head_parameters(model).values())).mul_(1.001)
        return model

    monkeypatch.setattr(peft_export, "reload", wrong)
    outcome = cli("export", texts, "--to", "peft", "--output", out)
    assert (outcome.status, outcome.out) == (1, "")
    assert "other logits than the run's model" in outcome.err
    assert not out.exists()


def test_a_folder_with_files_and_unknown_options_are_refused(cli: Cli, texts: Path, out: Path):
    out.mkdir()
    assert cli("export", texts, "--to", "peft", "--output", out).status == 0  # an empty folder is accepted
    before = sorted(path.name for path in out.iterdir())
    assert_refused(cli("export", texts, "--to", "peft", "--output", out), str(out), "holds other files")
    assert sorted(path.name for path in out.iterdir()) == before
    other = out.parent / "other"
    assert_refused(cli("export", texts, "--to", "pef", "--output", other), "did you mean 'peft'")
    strange = cli("export", texts, "--to", "peft", "--output", other, "--rank", 3)
    assert_refused(strange, "--rank is not an option of --to peft, but of lora")
    assert_refused(cli("export", texts.parent, "--to", "peft", "--output", other), "is not a run folder")
    assert not other.exists()
