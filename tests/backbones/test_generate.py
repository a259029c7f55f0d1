"""Continuations: which token is next, where a text ends, and what comes before a batch is done."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fftmoe.backbones import Decoding, TextInPieces, continuations, continue_greedily, load_backbone, logits
from fftmoe.backbones.decoding import TokenDraw
from fftmoe.errors import InputError
from fftmoe.rng import generator
from language import BEGIN, END, PAD, save_language_model, tiny_language_tokenizer

PROMPTS = [torch.tensor([BEGIN, *range(4, 4 + n)]) for n in (3, 1, 7, 5, 2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_backbone(str(save_language_model(tmp_path_factory.mktemp("llama"))), task="causal-lm")


def drawn(model: Any, batches: list[list[int]], decoding: Decoding, ends: tuple[int, ...] = (END,)) -> list[list[int]]:
    found = dict(continuations(model, PROMPTS, batches, decoding, end_ids=ends, pad_id=PAD))
    return [ids.tolist() for row in range(len(PROMPTS)) if (ids := found[row]) is not None]


def test_draws_have_the_probabilities_of_the_model():
    """Of 4,001 draws from five tokens, each count is within five of its standard deviations."""
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0, -float("inf")]])
    rows = range(4001)
    for temperature, top_p, left in ((1.0, 1.0, 4), (0.5, 1.0, 4), (2.0, 1.0, 4), (1.0, 0.8, 2)):
        draw = TokenDraw(Decoding(1, temperature, top_p, seed=7), rows)
        picked = draw(None, scores.expand(len(rows), -1)).argmax(1)
        probs = (scores[0] / temperature).softmax(0)
        kept = probs.sort(descending=True).indices[:left]
        expected = torch.zeros(5).index_copy(0, kept, probs[kept] / probs[kept].sum())
        counts = torch.bincount(picked, minlength=5)
        spread = (len(rows) * expected * (1 - expected)).sqrt()
        assert ((counts - len(rows) * expected).abs() <= 5 * spread).all(), (temperature, top_p, counts)


def test_a_draw_depends_on_its_seed_and_not_on_its_batch(model: Any):
    warm = Decoding(6, temperature=1.0, seed=3)
    whole = drawn(model, [[0, 1, 2, 3, 4]], warm)
    assert whole == drawn(model, [[2, 4], [0], [3, 1]], warm)
    assert whole == drawn(model, [[0], [1], [2], [3], [4]], warm)
    assert whole != drawn(model, [[0, 1, 2, 3, 4]], Decoding(6, temperature=1.0, seed=5))
    assert whole != drawn(model, [[0, 1, 2, 3, 4]], Decoding(6))


def test_drawing_leaves_no_trace_in_the_state_of_torch(model: Any):
    before = torch.random.get_rng_state()
    drawn(model, [[0, 1, 2, 3, 4]], Decoding(3, temperature=1.0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_draw_of_one_token_is_the_most_likely_one(model: Any):
    assert drawn(model, [[0, 1, 2, 3, 4]], Decoding(6, 1.0, top_p=1e-6)) == drawn(model, [[*range(5)]], Decoding(6))


def most_likely(model: Any, prompt: Tensor, number: int) -> list[int]:
    ids = prompt.tolist()
    with torch.inference_mode():
        for _ in range(number):
            ids.append(int(logits(model, {"input_ids": torch.tensor([ids])})[0, -1].argmax()))
    return ids[len(prompt) :]


def test_each_of_several_end_tokens_ends_a_text(model: Any):
    never = (99,)  # beyond the vocabulary
    whole = drawn(model, [[*range(5)]], Decoding(6), never)
    for ends in ((END, whole[0][2]), (whole[0][2], whole[1][1], END)):
        cut = [ids[: next((n for n, token in enumerate(ids) if token in ends), 6)] for ids in whole]
        assert drawn(model, [[*range(5)]], Decoding(6), ends) == cut
        assert cut != whole


def test_habits_of_a_model_do_not_change_what_is_most_likely(model: Any):
    """Such as a penalty for repetition in its `generation_config.json`, which transformers adds by itself."""
    expected = [most_likely(model, prompt, 6) for prompt in PROMPTS]
    own = model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.min_new_tokens, own.top_k = 5.0, 1, 6, 1
    own.do_sample = True
    try:
        found = continue_greedily(model, PROMPTS, 6, end_ids=[99], pad_id=PAD)
        assert [ids.tolist() for ids in found] == expected
        assert model.generation_config is own
    finally:
        model.generation_config = type(own)()


def test_tokens_come_one_by_one_and_are_those_of_the_text(model: Any):
    for decoding in (Decoding(6), Decoding(6, temperature=1.0)):
        seen: list[int] = []
        ((_, whole),) = continuations(
            model, PROMPTS[:1], [[0]], decoding, end_ids=[END], pad_id=PAD, on_token=seen.append
        )
        assert whole is not None
        assert seen == whole.tolist()


def test_batches_come_as_they_are_done(model: Any):
    done = continuations(model, PROMPTS, [[3, 1], [0], [2, 4]], Decoding(2), end_ids=[END], pad_id=PAD)
    assert [row for row, _ in done] == [3, 1, 0, 2, 4]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 1e-9}, "from 0.01"),
        ({"temperature": float("inf")}, "to 100"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5"),
        ({"top_p": 0.9}, "no effect at temperature 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(values: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        Decoding(**{"max_new_tokens": 3, **values})


class Bytes:
    """A tokenizer of bytes, whose text changes while a character is incomplete."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace").replace(" .", ".")


@pytest.mark.parametrize("text", ["a café, 石 and 😀 .", "", "x", "  two  blanks ", "😀😀", "a .b . c"])
def test_pieces_are_whole_characters_and_together_the_text(text: str):
    pieces: list[str] = []
    tokenizer: Any = Bytes()
    taken = TextInPieces(tokenizer, pieces.append)
    for token in text.encode():
        taken.add(token)
    whole = tokenizer.decode(list(text.encode()), True)
    assert whole.startswith("".join(pieces))
    assert "\ufffd" not in "".join(pieces)
    assert len(whole) - len("".join(pieces)) <= 3  # the last character, and a blank that may yet go


def test_pieces_of_words_are_those_of_the_text():
    tokenizer, pieces = tiny_language_tokenizer(), []
    taken = TextInPieces(tokenizer, pieces.append)
    for token in torch.randint(4, 14, (17,), generator=generator(1, "words")).tolist():
        taken.add(token)
    assert len(pieces) >= 15
