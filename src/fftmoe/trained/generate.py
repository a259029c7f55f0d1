"""What a language model writes after the prompts of held-out examples, against their completions."""

from typing import Any

import numpy as np

from fftmoe.backbones import continue_greedily, load_tokenizer
from fftmoe.config import GenerationSection, Recipe
from fftmoe.data import Completions, Examples, WithPrefix
from fftmoe.setup.load import holdout
from fftmoe.tasks import exact_match, rouge_l


def generation_metrics(recipe: Recipe, model: Any, examples: Examples, wanted: GenerationSection) -> dict[str, Any]:
    """`exact_match` and `rouge_l`, means over a fixed sample of examples, and `generated`, how many these are."""
    plain = examples.examples if isinstance(examples, WithPrefix) else examples
    sample = holdout(plain, wanted.examples, recipe.seed)
    assert isinstance(sample, Completions)
    tokenizer = load_tokenizer(recipe.backbone.model)
    pairs = [sample.text(row) for row in range(len(sample))]
    written = continue_greedily(
        model,
        [prompt for prompt, _ in pairs],
        wanted.max_new_tokens,
        end_id=int(tokenizer.eos_token_id),  # type: ignore[arg-type]
        pad_id=sample.texts.pad_id,
    )
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]
    right = [str(tokenizer.decode(ids, skip_special_tokens=True)) for _, ids in pairs]
    scores = {"exact_match": exact_match, "rouge_l": rouge_l}
    means = {
        name: float(np.mean([score(*each) for each in zip(texts, right, strict=True)]))
        for name, score in scores.items()
    }
    return {**means, "generated": len(sample)}
