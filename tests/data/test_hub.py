"""Data sets of a hub: only parquet files by fixed names are read, whatever else a data set holds or names."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import packaged_modules
from pyarrow import parquet

from fftmoe.data import hub
from fftmoe.data.hub import READERS
from fftmoe.errors import InputError
from hub_server import HUB_ID, serving
from reading import read_labelled_images, read_labelled_texts

FEATURES = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["zoo", "art"], "_type": "ClassLabel"}}


def table(features: Any = FEATURES, **columns: list[Any]) -> bytes:
    notes = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(notes), file)
    return file.getvalue()


REVIEWS = {
    "default/train/0000.parquet": table(text=["a", "b"], label=[0, 1]),
    "default/train/0001.parquet": table(text=["c"], label=[0]),
    "default/test/0000.parquet": table(text=["d"], label=[1]),
    "default/unsupervised/0000.parquet": table(text=["e"], label=[-1]),
}


class Mark:
    """An object whose unpickling would leave a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("name", sorted(READERS | set(packaged_modules._PACKAGED_DATASETS_MODULES)))
@pytest.mark.parametrize("configuration", ["", ":default"])
def test_the_name_of_a_reader_is_no_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, configuration: str
):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for suffix in ("pkl", "tar", "txt", "arrow", "h5"):
            Path(f"{split}.{suffix}").write_bytes(pickle.dumps(Mark(tmp_path / "executed")))
        Path(f"{split}.csv").write_text("text,label\na,x\nb,y\n")
    with pytest.raises(InputError, match="neither a local folder nor the name of a data set"):
        read_labelled_texts(name + configuration)
    assert not Path("executed").exists()
    Path(name).mkdir()  # a folder of this name is a folder
    for split in ("train", "test"):
        Path(f"{split}.csv").rename(Path(name) / f"{split}.csv")
    assert read_labelled_texts(name).label_names == ("x", "y")


@pytest.mark.parametrize(
    "source",
    [
        "hf://someone",
        "https://someone/reviews",
        "zip://reviews.zip",
        "buckets/a",
        "someone/reviews:../../x",
        "someone/reviews:*",
        "some one/a",
        "someone/re\nviews",
        "someone/..",
        "-x",
        "a..b",
        "reviews:a:b",
        "a" * 9999,
        "\0",
        "~nobody-of-this-name/data",
    ],
)
def test_what_is_no_name_of_a_data_set_reaches_no_library(source: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        InputError, match=r"is neither a file nor a folder|cannot be looked up|neither a local folder nor"
    ):
        read_labelled_texts(source)


def test_a_data_set_of_the_hub_is_read_and_found_again_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    with serving(REVIEWS, tmp_path, monkeypatch) as hub:
        data = read_labelled_texts(HUB_ID)
    assert capfd.readouterr() == ("", "")
    assert list(data.splits) == ["train", "test"]
    assert data.splits["train"].content == ("a", "b", "c")
    assert data.label_names == ("zoo", "art")
    assert sorted(hub.fetched) == sorted(set(REVIEWS) - {"default/unsupervised/0000.parquet"})
    assert read_labelled_texts(f"{HUB_ID}:default").splits["test"].content == ("d",)  # nobody serves any more
    (cached,) = tmp_path.rglob("train/0001.parquet")
    cached.unlink()
    with pytest.raises(InputError, match="loading it from the Hugging Face hub failed"):  # not two rows of three
        read_labelled_texts(HUB_ID)


def test_nothing_that_a_data_set_names_is_fetched_or_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    card = "---\nconfigs:\n- config_name: default\n  data_files: {train: train.pkl, test: 'file:///etc/passwd'}\n---\n"
    traps = {
        "README.md": card.encode(),
        "reviews.py": f"open({str(tmp_path / 'executed')!r}, 'w')".encode(),
        "train.pkl": pickle.dumps(Mark(tmp_path / "executed")),
        "default/train/0000.pkl": pickle.dumps(Mark(tmp_path / "executed")),
        "default/train/data.tar": b"",
        "dataset_infos.json": b'{"default": {"builder_name": "pandas"}}',
        "../default/train/0000.parquet": b"",
    }
    with serving({**REVIEWS, **traps}, tmp_path / "cache", monkeypatch) as hub:
        assert read_labelled_texts(HUB_ID).splits["train"].content == ("a", "b", "c")
    assert not set(hub.fetched) & set(traps)
    assert not (tmp_path / "executed").exists()


def test_an_image_of_a_hub_is_no_file_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pictures = table({}, image=[{"bytes": None, "path": "/etc/hostname"}] * 2, label=["x", "y"])
    files = {f"default/{split}/0000.parquet": pictures for split in ("train", "test")}
    with (
        serving(files, tmp_path, monkeypatch),
        pytest.raises(InputError, match="'/etc/hostname' is the path of a file, and this data has no folder"),
    ):
        read_labelled_images(HUB_ID, (3, 5))


def test_a_configuration_is_chosen_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    several = {name.replace("default", kind): data for name, data in REVIEWS.items() for kind in ("plain", "rich")}
    with serving(several, tmp_path / "several", monkeypatch):
        for source in (HUB_ID, f"{HUB_ID}:plane"):
            words = f"configurations plain, rich; name one of them, as in {HUB_ID}:plain"
            with pytest.raises(InputError, match=words):
                read_labelled_texts(source)
        assert read_labelled_texts(f"{HUB_ID}:rich").splits["train"].content == ("a", "b", "c")
    only = {name.replace("default", "plain"): data for name, data in REVIEWS.items()}
    with serving(only, tmp_path / "only", monkeypatch):
        assert read_labelled_texts(HUB_ID).splits["train"].content == ("a", "b", "c")
    without = {name: data for name, data in REVIEWS.items() if "test" not in name}
    with (
        serving(without, tmp_path / "without", monkeypatch),
        pytest.raises(InputError, match="the data set someone/reviews has no test split"),
    ):
        read_labelled_texts(HUB_ID)


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving({}, tmp_path, monkeypatch):
        pass
    with pytest.raises(
        InputError, match=r"'someone/reviews' is not a local folder.*hub failed.*or give a local folder"
    ):
        read_labelled_texts(HUB_ID)


def test_without_a_network_the_hub_is_not_asked_and_the_first_reason_is_told(monkeypatch: pytest.MonkeyPatch):
    """What was fetched before is used; without it the message is about the hub, and not about the missing copy."""

    def fail(*_: object, **__: object) -> Any:
        raise OSError("there is no copy")

    def listed(*_: object, **__: object) -> Any:
        raise OSError("the hub said no")

    monkeypatch.setattr(hub, "snapshot", fail)
    monkeypatch.setattr(hub.huggingface_hub.HfApi, "list_repo_files", listed)
    for reason, words in (("no network", "no network"), (None, "the hub said no")):
        monkeypatch.setattr(hub, "why_unreachable", lambda reason=reason: reason)
        with pytest.raises(OSError, match=f"^{words}$"):
            hub.file_names("some/set")


def test_a_data_set_without_files_of_this_form_has_no_configuration(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "file_names", lambda name: ["README.md", "train.parquet"])
    with pytest.raises(InputError, match=rf"configurations \(none\); name one of them, as in {HUB_ID}:configuration"):
        hub.read_hub(HUB_ID)


@pytest.mark.parametrize(
    ("offline", "reason", "asks_nobody"), [(False, None, False), (True, None, True), (False, "no network", True)]
)
def test_a_hub_that_cannot_or_must_not_be_reached_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, offline: bool, reason: str | None, asks_nobody: bool
):
    asked: list[Any] = []
    monkeypatch.setattr(hub, "why_unreachable", lambda: reason)
    monkeypatch.setattr(
        hub.huggingface_hub, "snapshot_download", lambda *_, **options: asked.append(options) or "folder"
    )
    assert hub.snapshot(HUB_ID, ["default/train/*.parquet"], offline) == Path("folder")
    assert [options["local_files_only"] for options in asked] == [asks_nobody]


@pytest.mark.parametrize("had_bars", [True, False])
def test_progress_bars_are_as_they_were(monkeypatch: pytest.MonkeyPatch, had_bars: bool):
    bars = [had_bars]
    monkeypatch.setattr(hub, "are_progress_bars_disabled", lambda: not bars[-1])
    monkeypatch.setattr(hub, "disable_progress_bars", lambda: bars.append(False))
    monkeypatch.setattr(hub, "enable_progress_bars", lambda: bars.append(True))
    seen: list[bool] = []
    monkeypatch.setattr(hub, "file_names", lambda name: seen.append(bars[-1]) or [])
    with pytest.raises(InputError, match="in the configurations"):
        hub.read_hub(HUB_ID)
    assert (seen, bars[-1]) == ([False], had_bars)
