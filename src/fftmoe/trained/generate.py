"""Compare the text that a language model generates after held-out prompts with the true completions."""

from typing import Any

import numpy as np

from fftmoe.backbones import continue_greedily, end_ids_of, load_tokenizer, text_of
from fftmoe.data import Completions, Examples, WithPrefix
from fftmoe.evaluate import holdout
from fftmoe.tasks import exact_match, rouge_l
from fftmoe.trained.run import GenerationSample


def generation_metrics(model: Any, backbone: str, examples: Examples, settings: GenerationSample) -> dict[str, Any]:
    """Score greedy completions of a fixed sample of held-out examples.

    Args:
        backbone: the name of the backbone, whose tokenizer is used.
        examples: prompts with completions, from which the sample is drawn.

    Returns:
        `exact_match` and `rouge_l`, means over the sample, and `generated`, the size of the sample.
    """
    plain = examples.examples if isinstance(examples, WithPrefix) else examples
    sample = holdout(plain, settings.num_examples, settings.seed)
    assert isinstance(sample, Completions)
    tokenizer = load_tokenizer(backbone)
    pairs = [sample.text(row) for row in range(len(sample))]
    generated = continue_greedily(
        model,
        [prompt for prompt, _ in pairs],
        settings.max_new_tokens,
        end_ids=end_ids_of(model, tokenizer, settings.chat_template),
        pad_id=sample.texts.pad_id,
    )
    texts = [text_of(tokenizer, ids) for ids in generated]
    references = [text_of(tokenizer, ids) for _, ids in pairs]
    scores = {"exact_match": exact_match, "rouge_l": rouge_l}
    means = {
        name: float(np.mean([score(*pair) for pair in zip(texts, references, strict=True)]))
        for name, score in scores.items()
    }
    return {**means, "generated": len(sample)}
