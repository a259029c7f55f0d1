"""Images: read from tables, resized once, normalised as the model's own image processor does."""

import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from fftmoe.backbones import ImageFormat, load_backbone, load_image_processor, logits
from fftmoe.data import ImageExamples, evaluation_batches
from fftmoe.errors import InputError
from fftmoe.rng import numpy_generator
from models import FAMILIES
from reading import Labelled, Rows, read_labelled_images

SIZE = (5, 7)
FORMAT = {"mean": [0.5, 0.25, 0.125], "std": [0.5, 1.0, 2.0], "scale": 1 / 255}


def colours(number: int, height: int = 5, width: int = 7) -> np.ndarray:
    return numpy_generator(number, "image").integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def write(folder: Path, images: list[Any], feature: Any = None, **columns: list[Any]) -> Path:
    """The same rows as train and test; labels 0, 1, 0, ..."""
    features = None if feature is None else {"image": feature, "label": datasets.ClassLabel(names=["cat", "dog"])}
    values = {"image": images, "label": [row % 2 for row in range(len(images))], **columns}
    for split in ("train", "test"):
        table = datasets.Dataset.from_dict(values, features=datasets.Features(features) if features else None)
        table.to_parquet(folder / f"{split}.parquet")
    return folder


def load(folder: Path, size: tuple[int, int] = SIZE, **options: Any) -> Labelled:
    return read_labelled_images(str(folder), size, **options)


def as_examples(rows: Rows, mean: Sequence[float], std: Sequence[float], scale: float) -> ImageExamples:
    return ImageExamples(rows.content, torch.from_numpy(rows.labels), tuple(mean), tuple(std), scale)


@pytest.fixture
def examples(tmp_path: Path) -> ImageExamples:
    folder = write(tmp_path, [Image.fromarray(colours(i)) for i in range(3)], datasets.Image())
    return as_examples(load(folder).splits["train"], **FORMAT)


@pytest.mark.parametrize("kind", ["image", "bytes", "struct", "lists"])
def test_every_form_of_column_gives_the_same_pixels(tmp_path: Path, kind: str):
    arrays = [colours(number) for number in range(3)]
    forms: dict[str, tuple[list[Any], Any]] = {
        "image": ([Image.fromarray(array) for array in arrays], datasets.Image()),
        "bytes": ([png(array) for array in arrays], None),
        "struct": ([{"bytes": png(array), "path": None} for array in arrays], None),
        "lists": ([array.tolist() for array in arrays], None),
    }
    loaded = load(write(tmp_path, *forms[kind]))
    for split in (loaded.splits["train"], loaded.splits["test"]):
        assert split.content.dtype == torch.uint8
        assert np.array_equal(split.content.permute(0, 2, 3, 1).numpy(), arrays)
        assert split.labels.tolist() == [0, 1, 0]
        assert len(split) == 3
    assert loaded.label_names == (("cat", "dog") if kind == "image" else ("0", "1"))


def test_columns_are_named_and_kept(tmp_path: Path):
    folder = write(tmp_path, [png(colours(0))] * 3, style=["photo", "sketch", "photo"])
    for split in ("train", "test"):
        path = str(folder / f"{split}.parquet")
        table = cast(datasets.Dataset, datasets.Dataset.from_parquet(path, keep_in_memory=True))
        table.rename_columns({"image": "photo", "label": "animal"}).to_parquet(path)
    loaded = load(folder, image="photo", label="animal", extra_columns=["style"])
    assert loaded.splits["test"].columns == {"style": ["photo", "sketch", "photo"]}


def test_grey_images_get_three_equal_channels_and_all_are_resized(tmp_path: Path):
    grey = colours(1, 28, 28)[:, :, 0]
    transparent = Image.fromarray(colours(2, 11, 13)).convert("RGBA")
    images = [Image.fromarray(grey), transparent, Image.fromarray(colours(3, 5, 7))]
    pixels = load(write(tmp_path, images, datasets.Image())).splits["train"].content
    assert pixels.shape == (3, 3, 5, 7)
    assert torch.equal(pixels[0, 0], pixels[0, 2])
    expected = Image.fromarray(grey).resize((7, 5), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels[0, 0].numpy(), np.asarray(expected))
    lists = load(write(tmp_path, [grey.tolist()] * 2)).splits["train"].content
    assert torch.equal(lists[0], pixels[0])


def test_a_batch_is_scaled_then_normalised(examples: ImageExamples):
    batch = examples.batch([2, 0])
    assert batch["pixel_values"].dtype == torch.float32
    mean, std = (np.array(FORMAT[name])[:, None, None] for name in ("mean", "std"))
    for got, number in zip(batch["pixel_values"], (2, 0), strict=True):
        expected = (colours(number).transpose(2, 0, 1) / 255 - mean) / std
        torch.testing.assert_close(got, torch.from_numpy(expected).float())
    assert torch.equal(batch["labels"], torch.tensor([0, 0]))
    assert examples.batch(np.array([1]))["labels"].tolist() == [1]


def test_a_selection_is_a_complete_data_set(examples: ImageExamples):
    chosen = pickle.loads(pickle.dumps(examples.select([2, 1])))
    assert len(chosen) == 2
    assert torch.equal(chosen.batch([0])["pixel_values"], examples.batch([2])["pixel_values"])
    assert torch.equal(chosen.labels, examples.labels[[2, 1]])
    assert torch.equal(examples.lengths, torch.ones(3, dtype=torch.int64))
    assert [rows.tolist() for rows in evaluation_batches(examples, 2)] == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "the value is empty"),
        (b"nonsense", "the file has an unknown format"),
        (png(colours(0))[:-30], "image file is truncated"),
        (png(colours(0)[:, :, 0].astype(np.uint16)), r"more than 8 bits \(mode I;16\)"),
    ],
)
def test_a_damaged_image_is_named(tmp_path: Path, value: Any, reason: str):
    folder = write(tmp_path, [png(colours(0)), value, png(colours(1))])
    message = (
        rf"train.parquet: column 'image' holds no image in row 2: .*{reason}.*correct or remove the row.*data.image"
    )
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([[0, 256]], "int64 numbers from 0 to 256"),
        ([[0.0, 0.5]], r"float64 numbers from 0.0 to 0.5"),
        ([0, 1, 2], r"shape \[3\]"),
        ([[0, 1], [2]], "inhomogeneous"),
        ("a cat", "No such file"),
        (7, "7 is a value of type int"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, value: Any, reason: str):
    with pytest.raises(InputError, match=rf"row 1.*: .*{reason}"):
        load(write(tmp_path, [value, value]))


def test_a_missing_column_and_bad_labels_are_named_as_for_texts(tmp_path: Path):
    folder = write(tmp_path, [png(colours(0))] * 2)
    with pytest.raises(InputError, match=r"no column 'imag'; did you mean 'image'.*data.image, data.label or"):
        load(folder, image="imag")
    with pytest.raises(InputError, match=r"no column 'style'.*partition.by"):
        load(folder, extra_columns=["style"])
    with pytest.raises(InputError, match="holds one label only"):
        load(write(tmp_path, [png(colours(0))]))


@pytest.fixture
def vit_folder(tmp_path: Path) -> Path:
    vit = FAMILIES["vit"].make()
    assert isinstance(vit, transformers.PreTrainedModel)
    vit.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def configure(folder: Path, **values: Any) -> str:
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, **values}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_the_format_is_the_image_processors(vit_folder: Path, tmp_path: Path):
    source = configure(vit_folder, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.5])
    format = load_image_processor(source)
    assert format == ImageFormat((8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.5), 1 / 255)
    images = [Image.fromarray(colours(number, 11, 13)) for number in range(2)]
    split = load(write(tmp_path, images, datasets.Image()), format.size).splits["train"]
    ours = as_examples(split, mean=format.mean, std=format.std, scale=format.scale).batch([0, 1])
    processor: Any = transformers.AutoImageProcessor.from_pretrained(source)
    own = processor(images, return_tensors="pt")["pixel_values"]
    # One grey level: libraries round a resized pixel differently.
    torch.testing.assert_close(ours["pixel_values"], own, atol=1.01 / 255 / 0.2, rtol=0)
    model = load_backbone(source, task="image-classification", num_labels=2)
    assert logits(model, ours).shape == (2, 2)


def test_steps_that_are_switched_off_do_nothing(vit_folder: Path):
    source = configure(vit_folder, do_normalize=False, do_rescale=False)
    assert load_image_processor(source) == ImageFormat((8, 8), (0.0,) * 3, (1.0,) * 3, 1.0)


def test_a_model_without_an_image_processor_or_a_size_is_named(vit_folder: Path):
    with pytest.raises(InputError, match="cannot load the image processor of"):
        load_image_processor(str(vit_folder))
    source = configure(vit_folder, size={"longest_edge": 8})
    with pytest.raises(InputError, match=r"gives no height and width up to 4096: size="):
        load_image_processor(source)
