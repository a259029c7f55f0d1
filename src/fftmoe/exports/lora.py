"""A plain LoRA that imitates the mixture of experts, for servers that know LoRA and nothing else.

A low-rank change of the last projection of each feed-forward network adds B A h where the experts added D(x). It is
fitted in closed form (`fit.py`), and then trained a little on what counts: what the blocks and the model give. It is
an imitation; `export.json` says how good. What is exact: the shared low-rank updates of other projections, and the
head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fftmoe import adapter
from fftmoe.adapter.shared_update import SCALE, LowRank
from fftmoe.backbones import attach_adapter, copy_head
from fftmoe.backbones.lora import load_factors, lora_config
from fftmoe.errors import InputError
from fftmoe.exports.card import Measured, model_card
from fftmoe.exports.check import SAME, answers, difference, probes, require
from fftmoe.exports.distil import distil
from fftmoe.exports.examples import measured, unlabelled
from fftmoe.exports.fit import Sums, collect, last_projections, low_rank, owner, relative_error
from fftmoe.exports.folder import digest_of, write_text
from fftmoe.exports.load import WEIGHTS, Source, fresh_backbone, open_run, reload
from fftmoe.store import save_adapter

RANK, STEPS = 16, 100
BATCH_SIZE = 16

Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Fitted:
    """The LoRA model, and its factors' names by block."""

    model: Any
    names: Mapping[int, str]


def export_lora(
    run: Path,
    folder: Path,
    *,
    rank: int | None = None,
    data: str | None = None,
    steps: int | None = None,
    top_k: int | None = None,
) -> dict[str, Any]:
    """A PEFT LoRA folder, and what `export.json` says of it: the error by block, and the run's metric before and after.

    Args:
        rank: of all factors; at least that of the shared updates. data: a file of texts or images without labels, or a
            source whose training split is read; the run's own when None. steps: of training after the fit.
    """
    rank, steps = RANK if rank is None else rank, STEPS if steps is None else steps
    if rank < 1 or steps < 0:
        raise InputError(f"--rank {rank} and --steps {steps}: the rank is at least 1, and steps are at least 0")
    source = open_run(run, top_k)
    teacher = source.trained.model
    if not adapter.blocks(teacher):
        raise InputError(
            f"a run of method {source.trained.recipe.method} has no experts to imitate; --to peft exports it as it is"
        )
    batches, held_out = unlabelled(source.trained, data, BATCH_SIZE)
    sums, held_sums = collect(teacher, batches), collect(teacher, held_out)
    shared = _shared(teacher)
    rank = max([rank, *(a.shape[0] for a, _ in shared.values())])
    fitted = _attach(source, sums, shared, rank)
    metric = {"mixture_of_experts": measured(source.trained, teacher)}
    metric["backbone_alone"] = measured(source.trained, fitted.model)
    _load(fitted, sums, shared, rank)
    metric["lora_closed_form"] = measured(source.trained, fitted.model)
    closed_form = _errors(fitted, held_sums)
    recipe = source.trained.recipe
    # A solved head's logits are probabilities already; their softmax is flat, and says little of the label.
    exclusive = recipe.backbone.task not in ("multi-label-classification", "regression") and not recipe.closed_form
    distil(fitted.model, own_factors(fitted), teacher, batches, steps, exclusive)
    metric["lora"] = measured(source.trained, fitted.model)
    inputs = probes(source.trained)
    expected = answers(fitted.model, inputs)
    save_adapter(fitted.model, folder, source.trained.label_names)
    found = difference(answers(reload(source.trained, folder), inputs), expected)
    errors = _errors(fitted, held_sums)
    write_text(folder / "README.md", _card(source, metric["lora"], metric["mixture_of_experts"], errors))
    return {
        **require(found, SAME, "LoRA"),
        "weights": digest_of(folder / WEIGHTS),
        "rank": rank,
        "steps": steps,
        "tokens": next(iter(sums.values())).tokens,
        "relative_error_closed_form": closed_form,
        "relative_error": errors,
        "metric": metric,
    }


def _card(source: Source, own: Mapping[str, float], experts: Mapping[str, float], errors: Mapping[str, float]) -> str:
    recipe, kind = source.trained.recipe, next(iter(own))
    what = (
        "A plain LoRA that imitates a mixture-of-experts adapter; "
        + ", ".join(f"block {block} lacks {error:.1%} of what the experts add" for block, error in errors.items())
        + " (squared, on held-out tokens)."
    )
    values = {f"{name} on the test split": value for name, value in own.items()}
    values |= {f"{name} of the imitated adapter": value for name, value in experts.items()}
    measured = Measured(f"When this was made, on {Path(recipe.data.source).name}.", kind, values)
    return model_card(recipe, source.summary, len(source.trained.label_names), what, measured)


def _shared(model: Any) -> Factors:
    """The shared updates as LoRA's factors, by the name of their module, but of those that the fit takes in."""
    fitted = last_projections(model).values()
    return {
        path: (module.low_a.detach(), SCALE * module.low_b.detach())
        for name, module in model.named_modules()
        if isinstance(module, LowRank) and (path := owner(name)) not in fitted
    }


def _attach(source: Source, sums: Mapping[int, Sums], shared: Factors, rank: int) -> Fitted:
    """The run's backbone and head with a LoRA that adds nothing yet."""
    teacher = source.trained.model
    names = {block: name for block, name in last_projections(teacher).items() if block in sums}
    student = attach_adapter(fresh_backbone(source.trained), lora_config(rank, 1.0, [*names.values(), *shared]))
    copy_head(teacher, student)
    return Fitted(student, names)


def _load(fitted: Fitted, sums: Mapping[int, Sums], shared: Factors, rank: int) -> None:
    """The fit of every block, and what is shared; all of one rank, as some servers want it, filled up with zeros."""
    factors = {name: low_rank(sums[block], rank) for block, name in fitted.names.items()} | shared
    padded = {
        name: (F.pad(a, (0, 0, 0, rank - a.shape[0])), F.pad(b, (0, rank - b.shape[1])))
        for name, (a, b) in factors.items()
    }
    load_factors(fitted.model, padded)


def _errors(fitted: Fitted, sums: Mapping[int, Sums]) -> dict[str, float]:
    """On these tokens, by block."""
    factors = own_factors(fitted)
    return {str(block): relative_error(own, *factors[block]) for block, own in sums.items()}


def own_factors(fitted: Fitted) -> dict[int, tuple[Tensor, Tensor]]:
    """The parameters A and B of every block's imitation."""
    layers = {block: fitted.model.get_submodule(f"base_model.model.{name}") for block, name in fitted.names.items()}
    return {block: (layer.lora_A["default"].weight, layer.lora_B["default"].weight) for block, layer in layers.items()}
