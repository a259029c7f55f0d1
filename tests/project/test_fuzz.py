"""Everything that reads what others wrote, on inputs that are almost right: nothing runs, hangs or grows, and what is
wrong ends as an error that is documented.

    make fuzz FUZZ_SECONDS=3600

tries inputs for an hour, other ones each time, the same time for each reader; as part of the suite it is twenty
thousand inputs, the same each time. An input that violates a promise is kept in `fuzz_cases` and tried from then on.
"""

import encodings.idna  # noqa: F401 (the first address of a socket loads it, which the watch would see before the socket)
import importlib
import io
import json
import math
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image
from safetensors.torch import save

import fuzzing
from fftmoe import MoeAdapterConfig, attach_adapter
from fftmoe.backbones.adapter_folder import check_adapter
from fftmoe.backbones.load import explained_errors
from fftmoe.backbones.trust import check_settings, check_weights
from fftmoe.client.screening import screen_plan
from fftmoe.config import parse_recipe
from fftmoe.config.overrides import apply_override, parse_override
from fftmoe.data.images import decode_image
from fftmoe.data.token_cache import fits_texts, read_cached
from fftmoe.data.tokens import tokenize_texts
from fftmoe.deploy.files import read_fields
from fftmoe.deploy.folder import create_deployment, read_site
from fftmoe.deploy.job import make_job, read_job, read_profile
from fftmoe.deploy.link.objects import put_together
from fftmoe.deploy.run_sites import RunSites
from fftmoe.engines.flower_messages import (
    pack_query,
    pack_reply,
    pack_request,
    unpack_job,
    unpack_profile,
    unpack_reply,
    unpack_request,
)
from fftmoe.errors import InputError
from fftmoe.records import pack_plan
from fftmoe.server.screening import Rejected, screen
from fftmoe.setup.model import build_model
from fftmoe.setup.site import make_agreement, site_recipe
from fftmoe.store import pack_state, read_config, read_labels, unpack_state
from fftmoe.strict import strict_json, strict_yaml
from fuzzed_files import FILES, columns_of
from fuzzing import Reader, Things, Watch, at, fuzz
from models import tiny_bert, tiny_tokenizer
from tampering import CELLS, recipe_of, record

CASES = int(os.environ.get("FFTMOE_FUZZ", "20000"))
SEED = int(os.environ.get("FFTMOE_FUZZ_SEED", "1"))
BUDGET = float(os.environ.get("FFTMOE_FUZZ_SECONDS", "inf"))  # for all readers together
FEWEST = 30  # inputs of a reader
KEPT = Path(__file__).parent / "fuzz_cases"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, and asks /proc for it")

Make = Callable[[Things], Reader]


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def things(recipe_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Things]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield Things(tmp_path_factory.mktemp("fuzz"), recipe_values)


# Messages


def update(things: Things) -> Reader:
    known = record(recipe_of("fft-moe-int8", things.recipe_values), "train")
    expected = known.expectation(known.victim)
    others = tuple(known.replies.values())
    seeds = [known.replies[known.victim]]
    return Reader("update", lambda data: screen(data, expected), seeds, (Rejected,), 0.337, others=others)


def sums(things: Things) -> Reader:
    known = record(recipe_of("fft-moe-sums", things.recipe_values), "sums", rounds=1)
    expected = known.expectation(known.victim)
    return Reader("sums", lambda data: screen(data, expected), [known.replies[known.victim]], (Rejected,), 0.06)


def plan(things: Things) -> Reader:
    known = record(recipe_of("fft-moe", things.recipe_values), CELLS["fft-moe"][2], rounds=1)
    experiment = known.experiment
    model = build_model(experiment.recipe, experiment.label_names)
    agreed = make_agreement(experiment.recipe, model, known.victim, experiment.budgets[known.victim].name)
    asked = next(client for client in known.plan.clients if client.client_id == known.victim)
    seeds = [pack_plan(asked, experiment.method.download(known.state, asked))]
    return Reader("plan", lambda data: screen_plan(data, agreed), seeds, (InputError,), 0.24)


def state(things: Things) -> Reader:
    known = record(recipe_of("fft-moe", things.recipe_values), "train", rounds=2)
    return Reader("state", unpack_state, [pack_state(known.play({})[0])], (ValueError,), 0.12)


def flower(things: Things) -> Reader:
    """Messages of Flower in which one object is replaced: an answer, a request, a query and a profile."""
    contents = [
        pack_reply([(3, b"abc"), (5, b"x" * 99)], 1.5),
        pack_request({"recipe": {}}, [(3, b"abc")]),
        pack_query({"who": True}),
        RecordDict({"profile": ConfigRecord({"json": '{"site":"a"}'})}),
    ]
    roots, objects = [], []
    for content in contents:
        message = Message(content, dst_node_id=3, message_type="train")
        objects.append({name: part.deflate() for name, part in get_all_nested_objects(message).items()})
        roots.append(message.object_id)
    parts = [(number, name) for number, own in enumerate(objects) for name in own]
    seeds = [objects[number][name] for number, name in parts]

    def read(data: bytes) -> object:
        """Read a message in which these bytes replace the object that is most similar to them."""
        order = range(len(seeds))
        number, name = parts[min(order, key=lambda i: (seeds[i][:12] != data[:12], abs(len(seeds[i]) - len(data))))]
        content = put_together(roots[number], {**objects[number], name: data}).content
        return (unpack_reply, unpack_request, unpack_job, unpack_profile)[number](content)

    return Reader("flower", read, seeds, (Exception,), 0.08)


def profile(things: Things) -> Reader:
    own = {"site": "a", "client_id": 0, "tier": "small", "num_examples": 5, "backbone": "0" * 16}
    return Reader("profile", lambda d: read_profile(strict_json(d)), [json.dumps(own).encode()], (ValueError,), 0.03)


def job(things: Things) -> Reader:
    recipe = parse_recipe(things.recipe_values, "here").model_dump(mode="json")
    seeds = [json.dumps(make_job(recipe, ["a", "b"], "abc1")).encode()]

    def read(data: bytes) -> object:
        return site_recipe(read_job(strict_json(data))["recipe"], things.folder, None)

    return Reader("job", read, seeds, (ValueError,), 0.05)


# Files


def recipe(things: Things) -> Reader:
    folder = things.place("run/config.yaml").parent
    seeds = [yaml.safe_dump(things.recipe_values).encode()]
    read = at(folder / "config.yaml", lambda path: parse_recipe(read_config(path.parent), "here"))
    return Reader("recipe", read, seeds, (InputError,), 0.005, (folder,))


def override(things: Things) -> Reader:
    def read(data: bytes) -> object:
        values = {"budgets": [{"name": "small"}], "a": {"b": 1}}
        return apply_override(values, *parse_override(data.decode(errors="replace")))

    return Reader("override", read, [b"a.b=[1, 2]", b"budgets.small.experts=3"], (InputError,), 0.04)


def labels(things: Things) -> Reader:
    folder = things.place("labels/labels.json").parent
    read = at(folder / "labels.json", lambda path: read_labels(path.parent))
    return Reader("labels", read, [b'{"labels": ["a", "b"]}'], (InputError,), 0.004, (folder,))


def adapter(things: Things) -> Reader:
    """Its configuration, or its weights."""
    folder = things.place("adapter/x").parent
    model = attach_adapter(tiny_bert(), MoeAdapterConfig(num_experts=3, expert_dim=4, top_k=1, shared_rank=2))
    model.save_pretrained(str(folder))
    kept = {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}

    def read(data: bytes) -> object:
        is_config = data[:1] == b"{" or len(data) < 3000
        for name, own in kept.items():
            (folder / name).write_bytes(data if is_config == name.endswith(".json") else own)
        return check_adapter(folder)

    return Reader("adapter", read, list(kept.values()), (InputError,), 0.004, (folder,))


def backbone(things: Things) -> Reader:
    """Its settings and the head of its weights; what is right is built, without memory."""
    folder = things.place("backbone/x").parent
    shutil.copytree(things.recipe_values["backbone"]["model"], folder, dirs_exist_ok=True)

    def read(data: bytes) -> object:
        (folder / "config.json").write_bytes(data)
        with explained_errors(str(folder), "model"):
            check_settings(str(folder), "config.json")
            return check_weights(folder)

    return Reader("backbone", read, [(folder / "config.json").read_bytes()], (InputError,), 0.001, (folder,))


def settings_of_a_tokenizer(things: Things) -> Reader:
    folder = things.place("tokenizer/x").parent
    tiny_tokenizer(("a", "b")).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    read = at(path, lambda path: check_settings(str(folder), path.name))
    return Reader("tokenizer", read, [path.read_bytes()], (InputError,), 0.004, (folder,))


def tokens(things: Things) -> Reader:
    path, texts, labels = things.place("tokens/a.safetensors"), ("a b", "b", "a a a"), np.array([0, 1, 1])
    found = tokenize_texts(texts, labels, tiny_tokenizer(("a", "b")), 9)
    tensors = {"input_ids": found.input_ids, "offsets": found.offsets, "labels": found.labels}

    def read(path: Path) -> object:
        examples = read_cached(path, 0)
        if examples is not None and fits_texts(examples, labels, 6, 9):
            return examples.batch([0, 1, 2])
        return None

    return Reader("tokens", at(path, read), [save(tensors)], (), 0.004, (path.parent,))


def deployment(things: Things) -> Reader:
    path = things.place("deployment/site.json")
    types = {"name": str, "client_id": int, "address": str}
    seeds = [b'{"format": 1, "name": "a", "client_id": 0, "address": "a.example:9092"}']
    return Reader(
        "deployment", at(path, lambda path: read_fields(path, types)), seeds, (InputError,), 0.004, (path.parent,)
    )


def site(things: Things) -> Reader:
    """A site's key, certificate or name."""
    create_deployment(things.folder / "federation", "localhost:9092", ["a", "b"], days=9)
    folder = things.folder / "federation" / "sites" / "a"
    kept = {name: (folder / name).read_bytes() for name in ("site.json", "ca.crt", "node.key")}

    def read(data: bytes) -> object:
        which = {b"{": "site.json", b"-": "ca.crt" if b"CERT" in data[:40] else "node.key"}.get(data[:1], "node.key")
        for name, own in kept.items():
            (folder / name).write_bytes(data if name == which else own)
        return read_site(folder)

    return Reader("site", read, list(kept.values()), (InputError,), 0.001, (folder,))


def sites_of_a_run(things: Things) -> Reader:
    path = things.place("known/sites.json")
    (path.parent / "config.yaml").write_text("")
    profile = {"site": "a", "client_id": 0, "tier": "small", "num_examples": 5, "backbone": "0" * 16}
    seeds = [json.dumps({"run": "abc", "profiles": {"a": profile}}).encode()]
    return Reader(
        "sites", at(path, lambda path: RunSites.read(path.parent)), seeds, (InputError,), 0.003, (path.parent,)
    )


def image(things: Things) -> Reader:
    seeds = []
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3)).save(file, kind)
        seeds.append(file.getvalue())
    return Reader("image", lambda d: decode_image(d, None).convert("RGB").resize((4, 4)), seeds, (Exception,), 0.01)


def parquet(things: Things) -> Reader:
    import datasets

    path = things.place("data/train.parquet")
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]})
    rows.cast_column("label", datasets.ClassLabel(names=["x", "y"])).to_parquet(path)
    return Reader("parquet", at(path, columns_of), [path.read_bytes()], (InputError,), 0.001, (things.folder,))


READERS: dict[str, Make] = {
    **{make.__name__: make for make in (update, sums, plan, state, flower, profile, job)},
    **{make.__name__: make for make in (recipe, override, labels, adapter, backbone, settings_of_a_tokenizer, tokens)},
    **{make.__name__: make for make in (deployment, site, sites_of_a_run, image, parquet)},
    **FILES,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_whatever_is_read_nothing_runs_hangs_or_grows(things: Things, watch: Watch, name: str):
    reader = READERS[name](things)
    for seed in reader.seeds:  # what is imported late is imported now
        reader.read(seed)
    start = time.perf_counter()
    cases = max(FEWEST, round(reader.share * CASES)) if BUDGET == math.inf else sys.maxsize
    found = fuzz(reader, cases, SEED, watch, KEPT, BUDGET / len(READERS))
    seconds, total = time.perf_counter() - start, sum(found.values())
    print(f"\n{name}: {total} in {seconds:.1f} s, {total / seconds:.0f}/s: {dict(found.most_common())}")
    assert not torch.is_inference_mode_enabled()
    assert found["read"] >= len(reader.seeds)


def waiting(data: bytes) -> None:
    time.sleep(60)


def busy(data: bytes) -> None:
    while True:
        pass


def grown(data: bytes) -> None:
    np.zeros(2**31, dtype=np.uint8)


@pytest.mark.parametrize(
    ("read", "seen"),
    [
        (lambda data: eval("1 + 1"), "compile"),
        (lambda data: exec(compile("a = 1", "b", "exec")), "compile"),
        (lambda data: pickle.loads(pickle.dumps(Path)), "pickle.find_class"),
        (lambda data: os.system("true"), "os.system"),
        (lambda data: subprocess.run(["true"]), "subprocess.Popen|os.posix_spawn|os.fork"),
        (lambda data: socket.create_connection(("127.0.0.1", 9)), "socket"),
        (lambda data: (sys.modules.pop("colorsys", None), importlib.import_module("colorsys")), "import|marshal"),
        (lambda data: Path("/tmp/canary").write_text(""), "open .*canary"),
        (lambda data: Path("/tmp/no/such").mkdir(), "os.mkdir"),
        (lambda data: {}["a"], "KeyError"),
        (waiting, "more than 0.5 s"),
        (busy, "more than 0.5 s"),
        (grown, "MemoryError"),
    ],
)
def test_the_watch_finds_what_is_forbidden(
    read: Any, seen: str, watch: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(fuzzing, "SECONDS", 0.5)
    monkeypatch.setattr(fuzzing, "WAITED", 0.5 if read is waiting else 60.0)
    wrong = Reader("wrong", read, [b"a"], (OSError,), 1.0)
    with pytest.raises(fuzzing.Violation, match=seen):
        fuzz(wrong, 0, SEED, watch, tmp_path)
    later = wrong._replace(read=lambda data: None if data == b"a" else read(data))
    with pytest.raises(AssertionError, match=rf"wrong, seed {SEED}, case 0: .*({seen})"):
        fuzz(later, 9, SEED, watch, tmp_path)
    [kept] = (tmp_path / "wrong").iterdir()
    with pytest.raises(fuzzing.Violation, match=seen):  # it is tried again from now on
        fuzz(later, 0, SEED, watch, tmp_path)
    assert kept.read_bytes() != b"a"


def test_yaml_and_json_say_what_is_wrong_with_them():
    for text in ("a: *b", "!!python/object/apply:os.system [id]", "a: 2001-13-45", "a: 0x" + "f" * 9999, "[" * 99):
        with pytest.raises(ValueError, match=r"alias|constructor|month|digits|deep"):
            strict_yaml(text)
