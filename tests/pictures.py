"""Small pictures that are a little or very red, green or blue, and a tiny ViT, for runs on images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from fftmoe.rng import numpy_generator
from models import FAMILIES

COLOURS = ("red", "green", "blue")  # as the channels


def write_pictures(
    folder: Path, names: Sequence[str], colours: Sequence[str] = COLOURS, noise: int = 200, signal: int = 12
) -> Path:
    """Pictures of these colours, as `train` and `test`; the labels are numbered as `names`.

    Values of pixels are random below `noise`; `signal` is added to those of the picture's colour.
    """
    features = datasets.Features({"picture": datasets.Image(), "colour": datasets.ClassLabel(names=list(names))})
    for split, size in (("train", 61), ("test", 23)):
        random = numpy_generator(3, split)
        rows: dict[str, list[Any]] = {"picture": [], "colour": []}
        for row in range(size):
            pixels = random.integers(0, noise, (11, 7, 3), dtype=np.uint8)
            colour = colours[row % len(colours)]
            pixels[:, :, COLOURS.index(colour)] += signal
            rows["picture"].append(Image.fromarray(pixels))
            rows["colour"].append(names.index(colour))
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def save_vision_model(folder: Path) -> Path:
    """A tiny ViT for images of 8 × 8 pixels."""
    FAMILIES["vit"].make().save_pretrained(folder)  # type: ignore[operator]
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def vision_values(folder: Path, noise: int = 200, signal: int = 12) -> dict[str, Any]:
    """The sections of a recipe for a tiny ViT on such pictures, both saved in `folder`; see `write_pictures`."""
    return {
        "backbone": {"model": str(save_vision_model(folder / "vit")), "task": "image-classification"},
        "data": {
            "source": str(write_pictures(folder, COLOURS, noise=noise, signal=signal)),
            "image": "picture",
            "label": "colour",
        },
    }
