"""A folder of images by class is read as a table of paths, labels and, where there are, clients."""

import os
from pathlib import Path

import pytest
from PIL import Image

from fftmoe.data.images import read_pixels
from fftmoe.data.read import read_folder
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


@pytest.mark.parametrize(
    ("names", "words"),
    [(("1.jpg",), "holds no table: 1.jpg is not read"), (("a/b/c/d/1.jpg",), "no train and no test split")],
)
def test_folders_that_are_no_images_by_class_are_refused(tmp_path: Path, names: tuple[str, ...], words: str):
    with pytest.raises(InputError, match=words):
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


def write_client(folder: Path, labels: dict[str, str], table: str = "labels.csv") -> None:
    """A client's table, and the images that it names, each of one colour of its own."""
    rows = "".join(f"{name},{label}\n" for name, label in labels.items())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / table).write_text("image,label\n" + rows)
    for number, name in enumerate(labels):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        colour = (len(folder.name) * 20, number * 50, 7)
        Image.new("RGB", (3, 3), colour).save(folder / name)


@pytest.mark.parametrize("below", ["", "photos/", "a/b/"])
def test_a_clients_table_names_images_from_its_own_folder(tmp_path: Path, below: str):
    """The same names for other images: whoever looked in one folder for all would mix the clients up."""
    for client in ("east", "north"):
        write_client(tmp_path / client, {f"{below}{n}.png": "cat" if n % 2 else "dog" for n in range(4)})
    table = read_undivided(tmp_path)
    assert table is not None
    assert list(table.columns["client"]) == ["east"] * 4 + ["north"] * 4
    assert list(table.columns["label"]) == ["dog", "cat"] * 4
    for own, places in ((table, range(8)), (table.select("some", [6, 1]), [6, 1])):
        pixels = read_pixels(own, "image", (2, 2))[:, :2, 0, 0].tolist()
        assert pixels == [[80 if place < 4 else 100, place % 4 * 50] for place in places]


def test_tables_of_splits_name_images_too(tmp_path: Path):
    for client in ("east", "north"):
        write_client(tmp_path / "a" / client, {"img/1.png": "cat", "img/2.png": "dog"}, "train.csv")
        write_client(tmp_path / "a" / client, {"img/3.png": "cat"}, "test.csv")
        write_client(tmp_path / "b" / "train", {f"{client}/{n}.png": "cat" for n in range(2)}, f"{client}.csv")
    content = {"data.image": ["image"], "data.label": ["label"]}
    found = read_tables(str(tmp_path / "a"), content)
    assert {split: list(table.columns["label"]) for split, table in found.items()} == {
        "train": ["cat", "dog"] * 2,
        "test": ["cat"] * 2,
    }
    assert read_pixels(found["train"], "image", (2, 2)).shape == (4, 3, 2, 2)
    train = read_folder(tmp_path / "b", ())["train"]
    assert list(train.columns["client"]) == ["east"] * 2 + ["north"] * 2
    assert read_pixels(train, "image", (2, 2)).shape == (4, 3, 2, 2)


def test_the_folder_of_a_split_may_hold_a_table_beside_its_images(tmp_path: Path):
    """`train/metadata.csv` with the names of the images is how many data sets of images are shared."""
    write_client(tmp_path / "train", {f"{n}.png": "cat" if n % 2 else "dog" for n in range(4)}, "metadata.csv")
    write_client(tmp_path / "test", {"img/0.png": "cat"}, "metadata.csv")
    found = read_tables(str(tmp_path), {"data.image": ["image"], "data.label": ["label"]})
    assert {split: list(table.columns["label"]) for split, table in found.items()} == {
        "train": ["dog", "cat"] * 2,
        "test": ["cat"],
    }
    assert read_pixels(found["test"], "image", (2, 2))[0, :, 0, 0].tolist() == [80, 0, 7]


def test_a_path_from_a_clients_folder_may_reach_the_others_and_no_further(tmp_path: Path):
    for client in ("east", "north"):
        write_client(tmp_path / "data" / client, {"1.png": "cat", "2.png": "dog"})
    Image.new("RGB", (3, 3)).save(tmp_path / "data" / "shared.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "secret.png")
    for path, works in (("../shared.png", True), ("../../secret.png", False), (str(tmp_path / "secret.png"), False)):
        (tmp_path / "data" / "east" / "labels.csv").write_text(f"image,label\n1.png,cat\n{path},dog\n")
        table = read_undivided(tmp_path / "data")
        assert table is not None
        if works:
            assert len(read_pixels(table, "image", (2, 2))) == 4
        else:
            with pytest.raises(InputError, match="from which paths are read and which they may not leave"):
                read_pixels(table, "image", (2, 2))


def test_tables_that_name_no_images_leave_a_folder_of_images_as_it_is(tmp_path: Path):
    for label in ("cat", "dog"):
        write_client(tmp_path / label, {"1.png": "x", "2.png": "y"})
        (tmp_path / label / "labels.csv").write_text("who,when\nme,today\n")
    table = read_undivided(tmp_path)
    assert table is not None
    assert list(table.columns["label"]) == ["cat", "cat", "dog", "dog"]
