"""Folders of a server or a site that are refused: missing, open to others, damaged, or of another kind."""

import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments import FACTS, PRIVATE, PUBLIC, READERS, edit, refused
from fftmoe.deploy.folder import read_server, read_site
from fftmoe.errors import InputError


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *(("server", name) for name in ("ca.crt", "server.crt", "server.key", "sites/hospital-a.pub", "sites")),
        *(("site", name) for name in ("ca.crt", "node.key")),
    ],
)
def test_a_missing_file_is_named(folders: dict[str, Path], part: str, name: str):
    path = folders[part] / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(
        InputError, match=rf"/{name}(/.*)? is missing; copy it again from the folder that `fftmoe deploy"
    ):
        READERS[part](folders[part])


def test_another_folder_of_the_deployment_is_recognised(made: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"is a whole deployment, not the server's folder; pass its server/"):
        read_server(made)
    with pytest.raises(InputError, match=r"is a whole deployment, not a site's folder; pass its sites/<name>/"):
        read_site(made)
    with pytest.raises(InputError, match=r"is not the server's folder: it has no deployment.json; pass server/ from"):
        read_server(made / "sites" / "3")
    for other in (made / "server", made / "sites", tmp_path):
        with pytest.raises(InputError, match=r"is not a site's folder: it has no site.json; pass sites/<name>/ from"):
            read_site(other)


@pytest.mark.parametrize(("file", "words"), [(False, "No such file"), (True, "Not a directory")])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, file: bool, words: str):
    if file:
        (tmp_path / "x").touch()
    with pytest.raises(InputError, match=f"cannot open the folder {tmp_path / 'x'}: {words}.*; pass the server's"):
        read_server(tmp_path / "x")
    with pytest.raises(InputError, match=f"cannot open the folder {tmp_path / 'x'}: {words}.*; pass a site's"):
        read_site(tmp_path / "x")


@pytest.mark.parametrize(("part", "key"), [("server", "server.key"), ("site", "node.key")])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o660, 0o777])
def test_a_private_key_that_others_can_open_is_refused_with_the_remedy(
    folders: dict[str, Path], part: str, key: str, mode: int
):
    (folders[part] / key).chmod(mode)
    with pytest.raises(InputError, match=rf"open to other users \(mode {mode:04o}\); run: chmod 600 ") as caught:
        READERS[part](folders[part])
    os.system(str(caught.value).rpartition("run: ")[2])
    READERS[part](folders[part])


def test_the_remedy_can_be_pasted_when_the_path_has_a_space(made: Path, tmp_path: Path):
    folder = Path(shutil.copytree(made / "sites" / "3", tmp_path / "a b"))
    (folder / "node.key").chmod(0o644)
    with pytest.raises(InputError, match=rf"run: chmod 600 '{folder / 'node.key'}'$"):
        read_site(folder)


def test_a_file_that_cannot_be_read_is_named(server: Path):
    (server / "ca.crt").unlink()
    (server / "ca.crt").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*ca.crt: Is a directory; make it readable, or copy it again"):
        read_server(server)


@pytest.mark.parametrize("part", FACTS)
@pytest.mark.parametrize("content", ["", "{", "\udcff", "[" * 100_000], ids=["empty", "cut", "binary", "deep"])
def test_a_file_that_is_not_json_is_damaged(folders: dict[str, Path], part: str, content: str):
    path = folders[part] / FACTS[part]
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=rf"{path} is damaged or not from `fftmoe deploy init`: not JSON .*copy it"):
        READERS[part](path.parent)


@pytest.mark.parametrize("content", ["[]", "1", "null", "{}", '{"format": "1"}', '{"format": true}'])
def test_json_of_another_kind_is_damaged(server: Path, content: str):
    (server / "deployment.json").write_text(content)
    wrong = r'it has no {"format": \.\.\.}' if content[0] == "{" else r"not JSON \(.*; expected an object\)"
    with pytest.raises(InputError, match=rf"is damaged or .*: {wrong}; copy it again"):
        read_server(server)


@pytest.mark.parametrize("part", FACTS)
def test_another_format_names_both(folders: dict[str, Path], part: str):
    path = folders[part] / FACTS[part]
    edit(path, format=2, more="fields")
    with pytest.raises(InputError, match=rf"{path} has format 2, and this fftmoe reads format 1; use the version"):
        READERS[part](path.parent)


@pytest.mark.parametrize(
    ("part", "fields", "words"),
    [
        ("server", {"more": 1}, "it has address, format, more, sites and should have format, address, sites"),
        ("server", {"address": 1}, "address is 1 and should be of type str"),
        ("server", {"address": "fl.example.org"}, "the address 'fl.example.org' has no port"),
        ("server", {"sites": "abc"}, "sites is 'abc' and should be of type list"),
        ("server", {"sites": []}, "there are no sites"),
        ("server", {"sites": [1]}, "site 1 cannot be called 1"),
        ("server", {"sites": [["a"]]}, "site 1 cannot be called ['a']"),
        ("server", {"sites": ["../../sites/3/node"]}, "site 1 cannot be called '../../sites/3/node'"),
        ("server", {"sites": ["3", "3"]}, "two sites are called '3'"),
        ("site", {"more": 1}, "and should have format, name, client_id, address"),
        ("site", {"name": None}, "name is None and should be of type str"),
        ("site", {"name": "../x"}, "site 1 cannot be called '../x'"),
        ("site", {"client_id": True}, "client_id is True and should be of type int"),
        ("site", {"client_id": 1.0}, "client_id is 1.0 and should be of type int"),
        ("site", {"client_id": -1}, "client_id is -1 and should be 0 or more"),
        ("site", {"address": "http://fl.example.org:9092"}, "has a scheme"),
    ],
)
def test_a_wrong_field_is_named(folders: dict[str, Path], part: str, fields: dict[str, object], words: str):
    edit(folders[part] / FACTS[part], **fields)
    with pytest.raises(InputError, match=re.escape(words) + ".*copy it again") as caught:
        READERS[part](folders[part])
    assert f"{FACTS[part]} is damaged" in str(caught.value)


# A damaged serial number is warned of before its signature is refused.
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=50)
@given(st.data())
def test_damage_is_refused_in_words_or_harmless(made: Path, data: st.DataObject):
    """Whatever happens to a byte of a file, nobody sees a traceback."""
    with TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(made, Path(temporary) / "x"))
        readable = [f for f in (PRIVATE | PUBLIC) if f.startswith(("server/", "sites/hospital-a/"))]
        path = folder / data.draw(st.sampled_from(sorted(readable)))
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        else:
            content = data.draw(st.binary(max_size=64)) + content[: data.draw(st.integers(0, len(content)))]
        path.write_bytes(content)
        for read, part in ((read_server, "server"), (read_site, "sites/hospital-a")):
            found = refused(read, folder / part)
            assert not isinstance(found, str) or str(folder / part) in found
