"""Loads what a model reads with: its tokenizer, or the format of the images that it expects."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import transformers

from fftmoe.backbones import trust
from fftmoe.backbones.find import resolve_model
from fftmoe.backbones.load import explained_errors
from fftmoe.backbones.quiet import quiet_transformers
from fftmoe.errors import InputError

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model")
MOST_EDGE = 4096  # pixels, of an image as the model sees it


def load_tokenizer(model: str) -> transformers.PreTrainedTokenizerBase:
    """Return the model's tokenizer; if it has no padding token, its end-of-text token is used for padding.

    Raises:
        InputError: the model or its tokenizer cannot be found.
    """
    source = resolve_model(model)
    # transformers would return an empty tokenizer, which knows no word.
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(
            f"model folder '{source}' has no tokenizer (such as tokenizer.json); save the model's tokenizer there"
        )
    with explained_errors(model, "tokenizer"):
        for name in (trust.MODEL_CONFIG, trust.TOKENIZER):
            trust.check_settings(source, name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer = cast(transformers.PreTrainedTokenizerBase, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class ImageFormat:
    """Describes the images that a model expects: (pixel * scale - mean) / std, for pixels from 0 to 255.

    Attributes:
        size: height and width.
        mean: of each of the three channels.
        std: of each of the three channels.
        scale: see above.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float


def load_image_processor(model: str) -> ImageFormat:
    """Return how the model's image processor (preprocessor_config.json) would prepare an image.

    Raises:
        InputError: the model or its image processor cannot be found, or it gives no size.
    """
    processor = _image_processor(model)
    # A processor that crops first resizes to a larger size; here images are resized to the size that the model sees.
    size = dict((processor.crop_size if getattr(processor, "do_center_crop", None) else None) or processor.size)
    edge = size.get("shortest_edge")
    height, width = (value if isinstance(value := size.get(name, edge), int) else 0 for name in ("height", "width"))
    if not 0 < min(height, width) <= max(height, width) <= MOST_EDGE:
        raise InputError(
            f"the image processor of {model!r} gives no height and width up to {MOST_EDGE}: size={size}; correct its "
            "preprocessor_config.json, or use another model"
        )
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
    return ImageFormat((height, width), tuple(map(float, mean)), tuple(map(float, std)), scale)


def load_reader(model: str, images: bool) -> Any:
    """Return what prepares a model's inputs, as transformers has it: the tokenizer, or the image processor.

    Raises:
        InputError: it cannot be found.
    """
    return _image_processor(model) if images else load_tokenizer(model)


def _image_processor(model: str) -> Any:
    with explained_errors(model, "image processor"), quiet_transformers():
        source = resolve_model(model)
        for name in (trust.MODEL_CONFIG, trust.IMAGES):
            trust.check_settings(source, name)
        return transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
