"""Continues prompts with a language model, by the `generate` of transformers with its key-value cache."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from fftmoe.backbones.decoding import Decoding, TokenDraw
from fftmoe.backbones.finite import FiniteRows, check_finite_outputs
from fftmoe.backbones.placement import computing, device_of

PROMPTS_AT_ONCE = 16


def continue_greedily(
    model: Any,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    batch_size: int = PROMPTS_AT_ONCE,
) -> list[Tensor]:
    """Return the continuation of each prompt by the most likely next token, one token after another.

    Prompts of similar length share a batch.

    Returns:
        the new tokens of each prompt in the order of `prompts`; see `continuations`.

    Raises:
        RunError: a logit is not finite.
    """
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    found = dict(continuations(model, prompts, batches, Decoding(max_new_tokens), end_ids=end_ids, pad_id=pad_id))
    check_finite_outputs(torch.tensor([new is not None for new in found.values()]))
    return [cast(Tensor, found[row]) for row in range(len(prompts))]


def continuations(
    model: Any,
    prompts: Sequence[Tensor],
    batches: Iterable[Sequence[int]],
    decoding: Decoding,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    on_token: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Tensor | None]]:
    """Continue prompts batch by batch; they are padded on the left, so that all continue at the same place.

    Args:
        model: a causal language model, perhaps with an adapter. What its own `generation_config` says of choosing
            tokens is not used.
        prompts: token ids, int64 [S] each.
        batches: the numbers of the prompts that share a batch.
        end_ids: the tokens of which each ends a text, at least one.
        pad_id: any token.
        on_token: is given each new token as soon as it is there, end tokens left out; for batches of one prompt.

    Yields:
        after each batch the number of each of its prompts, and the new tokens, int64 on the CPU, without the end token;
        None for a prompt that has a logit which is not finite.
    """
    settings = GenerationConfig(
        do_sample=False,  # a draw is made by a processor of logits
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=list(end_ids),
        pad_token_id=pad_id,
        use_cache=True,
    )
    for rows in batches:
        draw = [TokenDraw(decoding, rows)] if decoding.temperature else []
        streamer = None if on_token is None else _Tokens(on_token, frozenset(end_ids))
        new_BS, sound_B = continue_batch(model, [prompts[row] for row in rows], settings, draw, streamer)
        for row, new, sound in zip(rows, new_BS, sound_B.tolist(), strict=True):
            yield row, _up_to(new, end_ids) if sound else None


class _Tokens(BaseStreamer):
    """Hands on the new tokens of one prompt, one by one."""

    def __init__(self, on_token: Callable[[int], None], end_ids: frozenset[int]) -> None:
        self._on_token, self._end_ids, self._is_prompt = on_token, end_ids, True

    def put(self, value: Tensor) -> None:
        """Take the prompt the first time, afterwards a token, int64 [1]."""
        if self._is_prompt:
            self._is_prompt = False
        elif (token := int(value)) not in self._end_ids:
            self._on_token(token)

    def end(self) -> None:
        """See transformers."""


@torch.inference_mode()
def continue_batch(
    model: Any,
    prompts: Sequence[Tensor],
    settings: GenerationConfig,
    draw: Sequence[TokenDraw],
    streamer: BaseStreamer | None,
) -> tuple[Tensor, Tensor]:
    """Return the new tokens of each prompt of a batch, padded, int64 [B, S], and whether they are sound, bool [B]."""
    ids_BS, mask_BS = _padded_left(prompts, cast(int, settings.pad_token_id))
    device = device_of(model)
    noted = FiniteRows(len(prompts), device)
    with computing(model), plain_generation(model, cast(list[int], settings.eos_token_id)):
        whole_BS = model.generate(
            input_ids=ids_BS.to(device),
            attention_mask=mask_BS.to(device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([noted, *draw]),
            streamer=streamer,
        )
    return cast(Tensor, whole_BS)[:, ids_BS.shape[1] :].cpu(), noted.sound_B.cpu()


@contextmanager
def plain_generation(model: Any, end_ids: Sequence[int]) -> Iterator[None]:
    """Take from the model, within the context, all habits of its own, such as a penalty for repetition.

    transformers takes from them what the settings of a call leave open.

    Args:
        end_ids: the tokens of which each ends a text.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = inner.generation_config
    inner.generation_config = GenerationConfig(eos_token_id=list(end_ids))
    try:
        yield
    finally:
        inner.generation_config = own


def _padded_left(prompts: Sequence[Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and 0/1 mask, int64 [B, S]."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def _up_to(ids: Tensor, end_ids: Sequence[int]) -> Tensor:
    ends = torch.isin(ids, torch.tensor(end_ids)).nonzero()
    return ids[: int(ends[0])] if len(ends) else ids
