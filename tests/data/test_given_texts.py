"""Which inputs of a person's files can be read, and why the others cannot, without a model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fftmoe.data.images import NO_IMAGE
from fftmoe.data.unlabelled import NamedImages, read_images, read_texts
from fftmoe.errors import InputError

SIZE = (3, 5)


def table(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lines_are_texts_blank_ones_too(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\nthree\n")
    found = read_texts(tmp_path / "a.txt", "text")
    assert (found.texts, found.reasons) == (["one", "", "three"], [None, None, None])
    found.check_texts()


def test_a_row_that_holds_no_text_keeps_its_place_and_has_a_reason(tmp_path: Path):
    place = table(tmp_path / "a.jsonl", {"text": "one"}, {"text": None}, {"text": 3}, {"text": ""})
    found = read_texts(place, "text")
    assert found.texts == ["one", None, None, ""]
    assert found.reasons == [None, None, "the column 'text' holds 3, which is not a text", None]
    with pytest.raises(InputError, match=r"a\.jsonl: in row 3 the column 'text' holds 3, which is not a text; correct"):
        found.check_texts()


def test_a_table_without_any_text_is_refused_if_it_holds_something_else(tmp_path: Path):
    with pytest.raises(InputError, match="in row 2 the column 'text' holds 3"):
        read_texts(table(tmp_path / "a.jsonl", {"text": None}, {"text": 3}), "text")
    empty = read_texts(table(tmp_path / "b.jsonl", {"text": None, "id": 1}, {"text": None, "id": 2}), "text")
    assert (empty.texts, empty.reasons) == ([None, None], [None, None])


def test_a_column_that_a_table_lacks_is_named(tmp_path: Path):
    place = table(tmp_path / "a.jsonl", {"words": "one", "id": "1"})
    for read in (lambda: read_texts(place, "text"), lambda: read_images([place], "text", SIZE)):
        with pytest.raises(InputError, match=r"has no column 'text'; it has words, id: name one of them with --column"):
            read()
    assert read_texts(place, "words").texts == ["one"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "pictures" / "one.png"
    path.parent.mkdir()
    Image.fromarray(np.full((*SIZE, 3), 7, dtype=np.uint8)).save(path)
    return path


def test_a_row_of_a_table_has_a_number_and_may_have_no_image(picture: Path):
    place = table(picture.parent / "a.jsonl", {"image": "one.png"}, {"image": None}, {"image": "none.png"})
    found = read_images([place, picture], "image", SIZE)
    assert found.names == [f"{place}:1", f"{place}:2", f"{place}:3", str(picture)]
    assert found.reasons[:2] == [None, NO_IMAGE]
    assert found.reasons[2] is not None
    assert found.reasons[3] is None
    assert found.pixels.shape == (2, 3, *SIZE)
    assert (found.pixels == 7).all()
    with pytest.raises(InputError, match=r"a\.jsonl:3: the image cannot be read: .*; replace it, or leave it out"):
        found.check_undamaged()


def test_images_that_are_missing_are_not_damaged(picture: Path):
    place = table(picture.parent / "a.jsonl", {"image": None, "id": 1}, {"image": None, "id": 2})
    found = read_images([place], "image", SIZE)
    assert (found.reasons, len(found.pixels)) == ([NO_IMAGE, NO_IMAGE], 0)
    NamedImages(["a", "b"], [None, NO_IMAGE], found.pixels).check_undamaged()


def test_places_without_any_readable_image_are_refused(tmp_path: Path, picture: Path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"damaged\.png: the image cannot be read"):
        read_images([damaged], "image", SIZE)
    assert read_images([damaged, picture], "image", SIZE).reasons[1] is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder .*empty holds no image; it may hold files that end in"):
        read_images([tmp_path / "empty", picture], "image", SIZE)
