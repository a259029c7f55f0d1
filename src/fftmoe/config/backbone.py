"""The recipe's `backbone` section."""

from typing import Literal

from fftmoe.config.fields import Section


class BackboneSection(Section):
    """The frozen foundation model: a hub id, a local folder, or `builtin:minilm`.

    `quantization` stores the weights of its linear layers in 8 or 4 bits; this needs bitsandbytes.
    """

    model: str
    task: Literal[
        "sequence-classification",
        "image-classification",
        "causal-lm",
        "token-classification",
        "multi-label-classification",
        "regression",
    ] = "sequence-classification"
    pooling: Literal["mean", "native"] = "mean"
    quantization: Literal["none", "8bit", "4bit"] = "none"
