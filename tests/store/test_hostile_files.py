"""Files and messages that were made to harm the reader are refused immediately and by name, and nothing happens."""

import gzip
import io
import itertools
import json
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import datasets
import pytest

from fftmoe.config import load_recipe
from fftmoe.deploy.folder import create_deployment, read_server, read_site
from fftmoe.errors import InputError
from fftmoe.server.screening import screen
from fftmoe.store import read_config, read_labels, unpack_state
from fftmoe.strict import read_small, strict_json
from hostile import BOMBS, Code, every_bomb, lay_canary, refused, say
from reading import read_labelled_images, read_labelled_texts
from tampering import Recorded, recipe_of, record


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return lay_canary(tmp_path, monkeypatch)


# Recipes and what a run writes down

NINE = {after: f"&{after} [{', '.join([f'*{before}'] * 9)}]" for before, after in itertools.pairwise("abcdefghi")}
LAUGHS = "a: &a [x, x]\n" + "\n".join(f"{name}: {value}" for name, value in NINE.items())
YAMLS = {
    "a command": ("!!python/object/apply:os.system ['touch CANARY']", "could not determine a constructor"),
    "a module": ("!!python/module:evil", "could not determine a constructor"),
    "a name": ("!!python/name:evil.Evil", "could not determine a constructor"),
    "an object": ("!!python/object/new:evil.Evil []", "could not determine a constructor"),
    "a thousand million laughs": (LAUGHS, "an alias"),
    "itself": ("&a [*a]", "an alias"),
    "deep": ("[" * 10**5, "nested more than 20 deep"),
    "deep in blocks": ("- " * 6 * 10**4, "nested more than 20 deep"),
    "long": ("a: " + "x" * 2**18, "more characters than the 131,072 that are read"),
    "very long": ("#" * 2**21, "more bytes than the 1,048,576 that are read"),
    "a huge number": ("seed: 0x" + "f" * 10**5, "a number of more binary digits than the 256"),
    "a long number": ("seed: " + "9" * 10**5, "digits"),
    "no date": ("a: 2001-13-45", "month must be in"),
    "no truth value": ("a: !!bool maybe", "'maybe' is no value of the kind bool"),
    "no whole number": ('a: !!int ""', "'' is no value of the kind int"),
    "no fraction": ('a: !!float ""', "'' is no value of the kind float"),
    "no time": ("a: !!timestamp soon", "'soon' is no value of the kind timestamp"),
    "a key twice among many": ("\n".join(f"a{n}:" for n in [*range(16000), 15999]), "has the key 'a15999' twice"),
    "a key twice": ("{seed: 3, name: a, seed: 4}", "has the key 'seed' twice"),
    "no text": ("\udcff\udcfe", "decode"),
    "a list": ("[1, 2]", "mapping of sections|holds no sections"),
}


@pytest.mark.parametrize("kind", YAMLS)
def test_a_recipe_or_a_configuration_of_a_run_runs_no_code_and_does_not_expand(tmp_path: Path, canary: Path, kind: str):
    text, reason = YAMLS[kind]
    data = text.replace("CANARY", str(canary)).encode(errors="surrogateescape")
    (tmp_path / "recipe.yaml").write_bytes(data)
    refused(lambda: load_recipe(tmp_path / "recipe.yaml"), reason, InputError)
    (tmp_path / "config.yaml").write_bytes(data)
    refused(lambda: read_config(tmp_path), reason, InputError)
    if data.isascii() and len(data) < 10**4 and kind != "a list":
        refused(lambda: load_recipe("quickstart", [f"seed={data.decode()}"]), "not YAML", InputError)
    assert not canary.exists()


def test_reading_does_not_wait_for_a_pipe_or_a_device(tmp_path: Path):
    os.mkfifo(tmp_path / "labels.json")
    refused(lambda: read_labels(tmp_path), "a pipe or a device", InputError)
    (tmp_path / "labels.json").unlink()
    (tmp_path / "labels.json").symlink_to("/dev/zero")
    refused(lambda: read_labels(tmp_path), "a pipe or a device", InputError)
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(InputError, match="not a run folder"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"labels": "abc"}', "not a list of texts"),
        ('{"labels": [1, 2]}', "not a list of texts"),
        ('{"labels": {"a": 1}}', "not a list of texts"),
        ("[" * 10**5, "nested"),
        ('{"labels": ["a"], "labels": ["b"]}', "the name .labels. twice"),
        ('{"labels": ["' + "a" * 2**21 + '"]}', "more bytes than the 1,048,576 that are read"),
    ],
)
def test_a_file_that_holds_no_labels_is_refused(tmp_path: Path, text: str, reason: str):
    (tmp_path / "labels.json").write_text(text)
    refused(lambda: read_labels(tmp_path), reason, InputError)


@every_bomb
def test_a_checkpoint_that_is_a_bomb_is_refused(bomb: str):
    reason = r"header|JSON|bytes|metadata"
    refused(lambda: unpack_state(BOMBS[bomb]), reason, ValueError)


# Messages


@pytest.fixture(scope="module")
def known(recipe_values: dict[str, Any]) -> Recorded:
    return record(recipe_of("fft-moe", recipe_values), "train", rounds=1)


@every_bomb
def test_a_message_that_is_a_bomb_is_refused(known: Recorded, bomb: str):
    refused(lambda: screen(BOMBS[bomb], known.expectation(known.victim)), "not an fftmoe update|bytes; at most")
    whole = BOMBS[bomb].ljust(len(known.replies[known.victim]), b" ")
    refused(lambda: screen(whole, known.expectation(known.victim)), "not an fftmoe update|bytes; at most")


# Data


def png(width: int, height: int) -> bytes:
    """An image of this size in a few bytes: its pixels are all zero, and far fewer than it claims."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch CANARY) (w) file\n%%EOF\n"
IMAGES = {
    "huge": (png(10**5, 10**5), "could be decompression bomb|pixels"),
    "large": (png(10**4, 10**4), "could be decompression bomb|pixels"),
    "just too large": (png(2**13 + 1, 2**13), "has 8193 x 8192 pixels, and at most 67108864"),
    "a program": (EPS, "an unknown format"),
    "pickle": (pickle.dumps(Code("true")), "an unknown format"),
    "nothing": (b"", "empty|an unknown format"),
}


def write_images(folder: Path, values: list[Any]) -> None:
    for split in ("train", "test"):
        rows = datasets.Dataset.from_dict({"image": values, "label": list(range(len(values)))})
        rows.to_parquet(folder / f"{split}.parquet")


@pytest.mark.filterwarnings("ignore:Image size:Warning")
@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_that_is_a_bomb_or_a_program_is_refused(tmp_path: Path, canary: Path, kind: str):
    data, reason = IMAGES[kind]
    write_images(tmp_path, [data.replace(b"CANARY", str(canary).encode())] * 2)
    read_images_of = lambda: read_labelled_images(str(tmp_path), (8, 8))  # noqa: E731
    with pytest.raises(InputError, match="holds no image in row 1"):
        read_images_of()  # so that late imports happen before the time is measured
    refused(read_images_of, reason, InputError)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "link.png", "pipe.png"])
def test_an_image_outside_the_folder_of_the_data_is_refused(tmp_path: Path, name: str):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in (tmp_path / "outside.png", folder / "inside.png"):
        path.write_bytes(png(3, 3))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    os.mkfifo(folder / "pipe.png")
    write_images(folder, [name, name])
    refused(lambda: read_labelled_images(str(folder), (8, 8)), "is not in|a pipe or a device", InputError)
    write_images(folder, ["inside.png", "inside.png"])
    assert read_labelled_images(str(folder), (8, 8)).splits["train"].content.shape == (2, 3, 8, 8)


def packed(kind: str) -> bytes:
    rows = b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'
    if kind == "gzip":
        return gzip.compress(rows)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../evil.jsonl", rows)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["gzip", "zip"])
def test_compressed_data_is_not_unpacked(tmp_path: Path, kind: str):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_bytes(packed(kind))
    refused(lambda: read_labelled_texts(str(tmp_path)), "cannot be read as jsonl", InputError)
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").rename(tmp_path / f"{split}.parquet")
    refused(lambda: read_labelled_texts(str(tmp_path)), "cannot be read as parquet", InputError)


@pytest.mark.parametrize("kind", ["Evil", "Audio", "Video", "Image", "Features", "partial"])
def test_the_metadata_of_a_table_creates_no_objects(tmp_path: Path, kind: str, canary: Path):
    """It creates no class that it names, and it loads nothing from an address that a text holds."""
    from pyarrow import Table, parquet

    features = {"text": {"_type": kind, "path": "http://127.0.0.1:9/"}, "label": {"_type": "Value", "dtype": "int64"}}
    notes = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for split in ("train", "test"):
        table = Table.from_pydict({"text": ["http://127.0.0.1:9/a", "b"], "label": [0, 1]})
        parquet.write_table(table.replace_schema_metadata(notes), tmp_path / f"{split}.parquet")
    assert read_labelled_texts(str(tmp_path)).splits["train"].content == ("http://127.0.0.1:9/a", "b")
    assert not canary.exists()


# A deployment's folder


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    create_deployment(tmp_path / "federation", "localhost:9092", ["a", "b"], days=9)
    return tmp_path / "federation"


@pytest.mark.parametrize("name", ["../b", "/etc", "a/../b", "", ".", "a" * 99, "A"])
def test_the_name_of_a_site_cannot_be_a_path(deployment: Path, name: str):
    say(deployment / "sites" / "a" / "site.json", name=name)
    refused(lambda: read_site(deployment / "sites" / "a"), "cannot be called", InputError)
    say(deployment / "server" / "deployment.json", sites=[name, "b"])
    refused(lambda: read_server(deployment / "server"), "cannot be called", InputError)


@pytest.mark.parametrize("file", ["site.json", "ca.crt", "node.key"])
def test_the_files_of_a_site_must_be_small_files(deployment: Path, file: str):
    path = deployment / "sites" / "a" / file
    path.write_bytes(b"[" * 2**21)
    refused(lambda: read_site(path.parent), "more bytes than the 1,048,576 that are read", InputError)
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(lambda: read_site(path.parent), "a pipe or a device|open to other users", InputError)
    path.unlink()
    os.mkfifo(path, 0o600)
    refused(lambda: read_site(path.parent), "a pipe or a device", InputError)


# The readers that the tests above rely on


def test_reading_stops_at_the_limit(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 11)
    assert read_small(path, 11) == b"x" * 11
    with pytest.raises(ValueError, match="more bytes than the 10 that are read"):
        read_small(path, 10)
    with pytest.raises(IsADirectoryError):
        read_small(tmp_path)
    assert strict_json('{"a": [[1]]}', deepest=3) == {"a": [[1]]}
    with pytest.raises(ValueError, match="nested 3 deep; at most 2"):
        strict_json('{"a": [[1]]}', deepest=2)


@pytest.mark.parametrize("text", ["[7]", "7", '"a"', "null", "true"])
def test_json_that_is_no_object_is_refused(text: str):
    with pytest.raises(ValueError, match="expected an object"):
        strict_json(text)


def test_the_canary_detects_code_that_runs(canary: Path):
    """A check of these tests: the code that they use would do what they look for."""
    pickle.loads(pickle.dumps(Code(f"touch {canary}")))
    assert canary.exists()
    canary.unlink()
    __import__("evil")
    assert canary.exists()
