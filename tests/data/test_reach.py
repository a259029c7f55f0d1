"""A name that is no folder, where no hub can be reached: one message at once, or the copy that is there."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import constants

from fftmoe.backbones import load_backbone, load_tokenizer, resolve_model
from fftmoe.data import reach
from fftmoe.errors import InputError
from models import tiny_bert, tiny_tokenizer
from reading import read_labelled_texts

SOON = 25.0  # seconds; the hub's client alone repeats the request for one file for longer
COMMIT = "b" * 40


@pytest.fixture(params=["refused", "no such host", "silent"])
def no_hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A hub that cannot be reached, in three ways; the folder of its cache."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        port = silent.getsockname()[1]
        if request.param == "refused":
            silent.close()
        host = "nowhere.invalid" if request.param == "no such host" else "127.0.0.1"
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{host}:{port}")
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"http://{host}:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(reach, "PATIENCE_SECONDS", 0.5)
        monkeypatch.chdir(tmp_path)
        yield tmp_path / "hub"


@pytest.mark.parametrize("name", ["models/bert", "bert"])
def test_a_model_that_is_no_folder_is_refused_at_once(no_hub: Path, name: str):
    began = time.monotonic()
    for load in (resolve_model, load_tokenizer, lambda own: load_backbone(own, num_labels=2)):
        with pytest.raises(InputError, match=rf"^model '{name}' is not a local folder \(looked for /.*/{name}\)"):
            load(name)
    assert time.monotonic() - began < SOON


def test_a_data_set_that_is_no_folder_is_refused_at_once(no_hub: Path):
    began = time.monotonic()
    with pytest.raises(
        InputError, match=r"^data.source='data/mine' is not a local folder \(looked for /.*/data/mine\)"
    ):
        read_labelled_texts("data/mine")
    assert time.monotonic() - began < SOON


def test_a_model_that_was_fetched_before_is_read_from_its_copy(no_hub: Path):
    folder = no_hub / "models--someone--bert" / "snapshots" / COMMIT
    backbone: Any = tiny_bert().get_submodule("bert")
    backbone.save_pretrained(folder)
    tiny_tokenizer(("ash", "bay")).save_pretrained(folder)
    (no_hub / "models--someone--bert" / "refs").mkdir()
    (no_hub / "models--someone--bert" / "refs" / "main").write_text(COMMIT)
    began = time.monotonic()
    model: Any = load_backbone("someone/bert", num_labels=2)
    assert load_tokenizer("someone/bert")("ash")["input_ids"]
    assert time.monotonic() - began < SOON
    assert model.config.name_or_path == model.backbone.name_or_path == "someone/bert"
    assert json.loads((folder / "config.json").read_text())["model_type"] == transformers.BertConfig.model_type


def test_a_hub_that_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch):
    asked = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append(url)

    monkeypatch.setattr(reach, "get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr("time.monotonic", lambda: 7e9)
    assert [reach.why_unreachable() for _ in range(5)] == [None] * 5
    assert asked == ["http://hub.invalid"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert reach.why_unreachable() == "HF_HUB_OFFLINE is set"
