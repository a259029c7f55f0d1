"""A folder of images by class is read as a table of paths, labels and, where there are, clients."""

import os
from pathlib import Path

import pytest
from PIL import Image

from fftmoe.data.sources import SplitRequest, read_tables
from fftmoe.data.undivided import read_undivided
from fftmoe.errors import InputError
from pictures import save_vision_model
from shared_fixtures import Cli


def save(folder: Path, *names: str) -> Path:
    for place, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (7, 5), (place, 0, 0)).save(folder / name)
    return folder


def test_the_folder_of_an_image_is_its_label_and_the_one_above_its_client(tmp_path: Path):
    table = read_undivided(save(tmp_path / "a", "dog/2.jpg", "cat/1.PNG", "cat/notes/../3.gif"))
    assert table is not None
    assert table.columns == {"image": ["cat/1.PNG", "cat/3.gif", "dog/2.jpg"], "label": ["cat", "cat", "dog"]}
    table = read_undivided(save(tmp_path / "b", "south/dog/1.jpg", "north/cat/1.jpg"))
    assert table is not None
    assert table.columns == {
        "image": ["north/cat/1.jpg", "south/dog/1.jpg"],
        "label": ["cat", "dog"],
        "client": ["north", "south"],
    }
    assert table.folder == tmp_path / "b"


def test_hidden_files_other_files_and_linked_folders_are_left_out(tmp_path: Path):
    save(tmp_path / "a", "cat/1.jpg", "cat/._1.jpg", ".trash/cat/2.jpg")
    (tmp_path / "a" / "cat" / "README.txt").write_text("no image")
    save(tmp_path / "elsewhere", "3.jpg")
    (tmp_path / "a" / "dog").symlink_to(tmp_path / "elsewhere")
    table = read_undivided(tmp_path / "a")
    assert table is not None
    assert table.columns["image"] == ["cat/1.jpg"]


@pytest.mark.parametrize(
    "names",
    [("cat/1.jpg", "north/cat/1.jpg"), ("1.jpg", "cat/1.jpg"), ("a/b/c/1.jpg", "a/b/1.jpg")],
)
def test_images_at_different_depths_are_refused(tmp_path: Path, names: tuple[str, ...]):
    with pytest.raises(InputError, match=r"holds images such as .* and .*CLIENT/CLASS/IMAGE"):
        read_undivided(save(tmp_path, *names))


def test_a_name_that_is_no_text_is_refused(tmp_path: Path):
    save(tmp_path, "cat/1.jpg")
    os.rename(tmp_path / "cat" / "1.jpg", os.fsencode(tmp_path / "cat") + b"/\xff.jpg")
    with pytest.raises(InputError, match="no text in UTF-8"):
        read_undivided(tmp_path)


@pytest.mark.parametrize("names", [("1.jpg",), ("a/b/c/d/1.jpg",)])
def test_folders_that_are_no_images_by_class_are_as_before(tmp_path: Path, names: tuple[str, ...]):
    with pytest.raises(InputError, match="no train and no test split"):
        read_tables(str(save(tmp_path, *names)), {})


def test_parts_that_are_named_after_splits_are_splits(tmp_path: Path):
    content = {"data.image": ["image"], "data.label": ["label"]}
    save(tmp_path, *(f"train/{label}/{n}.jpg" for label in ("cat", "dog") for n in range(7)))
    with pytest.raises(InputError, match=r"no test split \(it has train\)"):
        read_tables(str(tmp_path), content)
    save(tmp_path, *(f"test/{label}/{n}.jpg" for label in ("cat", "dog") for n in range(3)))
    assert {name: table.num_rows for name, table in read_tables(str(tmp_path), content).items()} == {
        "train": 14,
        "test": 6,
    }
    (tmp_path / "test.csv").write_text("image,label\ntrain/cat/0.jpg,cat\n")
    assert read_tables(str(tmp_path), content)["test"].num_rows == 1  # a table stands for its split


def test_a_site_reads_all_images_of_its_folder_for_training(tmp_path: Path):
    folder = save(tmp_path, *(f"{label}/{n}.jpg" for label in ("cat", "dog") for n in range(3)))
    tables = read_tables(str(folder), {"data.image": ["image"]}, request=SplitRequest(("train",), divide=False))
    assert tables["train"].num_rows == 6


def test_init_writes_a_recipe_for_a_folder_of_images(cli: Cli, tmp_path: Path):
    folder = save(
        tmp_path / "photos",
        *(f"{client}/{label}/{n}.jpg" for client in ("n", "s") for label in ("cat", "dog") for n in range(9)),
    )
    model = save_vision_model(tmp_path / "vit")
    done = cli("init", folder, "--model", model, "--output", tmp_path / "mine.yaml")
    assert done.status == 0, done.err
    assert "7 test rows, 2 clients" in done.out
    assert 'partition: {kind: natural, by: "client"}' in (tmp_path / "mine.yaml").read_text()
