"""Continues prompts with a language model, by the `generate` of transformers with its key-value cache."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from fftmoe.backbones.finite import FiniteRows, check_finite_outputs
from fftmoe.backbones.placement import computing, device_of


def continue_greedily(
    model: Any, prompts: Sequence[Tensor], max_new_tokens: int, *, end_id: int, pad_id: int, batch_size: int = 16
) -> list[Tensor]:
    """The same as `greedy_continuations`, where each prompt must have one.

    Raises:
        RunError: a logit is not finite.
    """
    found = greedy_continuations(model, prompts, max_new_tokens, end_id=end_id, pad_id=pad_id, batch_size=batch_size)
    check_finite_outputs(torch.tensor([new is not None for new in found]))
    return [new for new in found if new is not None]


@torch.inference_mode()
def greedy_continuations(
    model: Any, prompts: Sequence[Tensor], max_new_tokens: int, *, end_id: int, pad_id: int, batch_size: int = 16
) -> list[Tensor | None]:
    """The continuation of each prompt by the most likely next token, one token after another.

    Prompts of similar length share a batch. They are padded on the left, so that all continue at the same place.

    Args:
        model: a causal language model, perhaps with an adapter.
        prompts: token ids, int64 [S] each, at least one prompt.
        max_new_tokens: the most tokens of a continuation that no end-of-text token has ended.
        end_id: the end-of-text token.
        pad_id: any token.
        batch_size: prompts in a batch.

    Returns:
        the new tokens for each prompt in the order of `prompts`, int64 on the CPU, without the end-of-text token; None
        for a prompt that has a logit which is not finite.
    """
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end_id, pad_token_id=pad_id, use_cache=True
    )
    found: dict[int, Tensor | None] = {}
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        new_BS, sound_B = _continued(model, [prompts[row] for row in rows], settings)
        for row, new, sound in zip(rows, new_BS, sound_B.tolist(), strict=True):
            found[row] = _up_to(new, end_id) if sound else None
    return [found[row] for row in range(len(prompts))]


def _continued(model: Any, prompts: Sequence[Tensor], settings: GenerationConfig) -> tuple[Tensor, Tensor]:
    """The new tokens of each prompt of a batch, padded, int64 [B, S], and whether they are sound, bool [B]."""
    ids_BS, mask_BS = _padded_left(prompts, cast(int, settings.pad_token_id))
    device = device_of(model)
    noted = FiniteRows(len(prompts), device)
    with computing(model):
        whole_BS = model.generate(
            input_ids=ids_BS.to(device),
            attention_mask=mask_BS.to(device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([noted]),
        )
    return cast(Tensor, whole_BS)[:, ids_BS.shape[1] :].cpu(), noted.sound_B.cpu()


def _padded_left(prompts: Sequence[Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and 0/1 mask, int64 [B, S]."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def _up_to(ids: Tensor, end_id: int) -> Tensor:
    ends = (ids == end_id).nonzero()
    return ids[: int(ends[0])] if len(ends) else ids
