"""Random Fourier features: their kernel, their seed, and saved heads that read linear or random features."""

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from closed_form_heads import (
    KINDS,
    LARGE,
    LIFTED,
    NUM_LABELS,
    C,
    examples,
    exchanged,
    fft_moe,
    moe_model,
    partitioned,
    runtime,
    seeds,
)
from fftmoe.adapter.fourier import KERNEL_WIDTH, FourierHead
from fftmoe.backbones import features, head_inputs, head_parameters, load_adapter, load_backbone, logits
from fftmoe.errors import InputError
from fftmoe.rng import generator
from fftmoe.server.solve import solve_head
from fftmoe.store import SavedWith, save_adapter
from models import FAMILIES, HIDDEN


def test_inner_products_of_lifted_features_are_a_gaussian_kernel():
    # Of length 1 and at all distances: opposite ones, and ones that are nearly equal.
    z = torch.randn(11, 5, generator=generator(1))
    z = torch.cat([z, -z[:3], z[:3] + 0.1 * torch.randn(3, 5, generator=generator(2))])
    head = FourierHead(5, 20_011, C, seed=7)
    lifted = head.lift(z)
    unit = z / z.norm(dim=1, keepdim=True)
    kernel = (-torch.cdist(unit, unit).square() / (2 * KERNEL_WIDTH**2)).exp()
    # The mean of 20,011 independent terms of variance 1 - k^2 + k^4 / 2, at most 0.71 for the kernel's values here:
    # standard deviation 0.006. The seed is fixed; five of them are room for 17 x 17 pairs.
    torch.testing.assert_close(lifted @ lifted.T, kernel, rtol=0, atol=0.03)
    assert float(kernel.min()) < 0.61


@given(seed=seeds, factor=st.floats(1e-2, 1e3))
@settings(max_examples=25)
def test_the_length_of_features_does_not_matter(seed: int, factor: float):
    head, z = FourierHead(5, 13, C, seed=3), torch.randn(11, 5, generator=generator(seed))
    # Scaling rounds each coordinate; the cosine of a sum of five products passes the error on.
    torch.testing.assert_close(head.lift(z * factor), head.lift(z), rtol=0, atol=1e-5)


def test_directions_follow_from_the_seed_and_do_not_travel():
    one, two, other = (FourierHead(5, 13, C, seed) for seed in (4, 4, 5))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.directions, other.directions)
    assert not torch.equal(one.phases, other.phases)
    # Only W and b are parameters; both start at zero.
    assert {name: int(p.count_nonzero()) for name, p in one.named_parameters()} == {"weight": 0, "bias": 0}


def test_a_backbone_with_random_features_does_not_touch_global_randomness(backbone_folder: Path):
    before = torch.get_rng_state()
    load_backbone(str(backbone_folder), num_labels=NUM_LABELS, fourier_features=LIFTED)
    assert torch.equal(torch.get_rng_state(), before)


def test_logits_are_linear_in_the_lifted_features():
    head, z = FourierHead(5, 13, C, seed=3), torch.randn(11, 5, generator=generator(1))
    torch.nn.init.normal_(head.weight, generator=generator(2))
    torch.nn.init.normal_(head.bias, generator=generator(3))
    unit = z / z.norm(dim=1, keepdim=True)
    phi = (2 / 13) ** 0.5 * (unit @ head.directions + head.phases).cos()
    torch.testing.assert_close(head(z), phi @ head.weight.T + head.bias)


def test_a_lifted_head_reads_the_models_features_lifted(backbone_folder: Path):
    model, batch = moe_model(backbone_folder, LIFTED), examples().batch(range(11))
    (head,) = [m for m in model.modules() if isinstance(m, FourierHead) and m.weight.requires_grad]
    z = features(model, batch)
    assert z.shape == (11, HIDDEN)
    assert torch.equal(head_inputs(model, batch), head.lift(z))
    torch.testing.assert_close(logits(model, batch), head(z))
    assert {name: p.shape for name, p in head_parameters(model).items()} == {
        "weight": (NUM_LABELS, LIFTED),
        "bias": (NUM_LABELS,),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_solved_head_is_saved_and_reloaded(kind: str, backbone_folder: Path, tmp_path: Path):
    model, partition = moe_model(backbone_folder, KINDS[kind]), partitioned("one client")
    method = fft_moe(1)
    state = method.init(model)
    state = solve_head(state, exchanged(runtime(model, method, partition), method, state, 1))
    method.install(model, state.tensors, LARGE)
    model.peft_config["default"].top_k = LARGE.top_k
    save_adapter(model, tmp_path / "adapter", SavedWith(("a", "b", "c")))
    # Another seed, so that neither the head nor its directions can be right by chance.
    load = partial(load_backbone, str(backbone_folder), num_labels=NUM_LABELS, fourier_features=KINDS[kind], seed=7)
    loaded = load_adapter(load(), tmp_path / "adapter")
    batch = examples().batch(range(23))
    with torch.inference_mode():
        assert torch.equal(logits(loaded, batch), logits(model, batch))
        assert torch.equal(head_inputs(loaded, batch), head_inputs(model, batch))
        assert float(logits(model, batch).std()) > 0.01


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_random_features_need_a_head_of_one_linear_layer(family: str, tmp_path: Path):
    FAMILIES[family].make().save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=r"head\.features=fourier needs .* set backbone\.pooling to mean"):
        load_backbone(str(tmp_path), num_labels=NUM_LABELS, pooling="native", fourier_features=LIFTED)
