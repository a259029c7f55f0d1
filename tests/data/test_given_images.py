"""Which images a person's places name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fftmoe.data.unlabelled import read_images
from fftmoe.errors import InputError

SIZE = (5, 7)


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(path)
    return path


def test_a_file_and_a_folder_are_read_whatever_the_folder_is_called(tmp_path: Path):
    places = [save(tmp_path / "one.png"), save(tmp_path / "photos.csv" / "two.png").parent]
    found = read_images(places, "image", SIZE)
    assert [Path(name).name for name in found.names] == ["one.png", "two.png"]
    assert found.pixels.shape == (2, 3, *SIZE)
    assert found.reasons == [None, None]


def test_a_place_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"there is no image file, folder of images or table at .*nothing.png"):
        read_images([tmp_path / "nothing.png"], "image", SIZE)
