"""Readers of the files of sites and runs, and of tables that people write, for fuzzing."""

import codecs
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

from fftmoe.adapter.bound import check_adapter_files
from fftmoe.cli.pages import page_of
from fftmoe.config import parse_recipe
from fftmoe.config.facts import read_facts
from fftmoe.data import lists_of, names_of, numbers_of, texts_of
from fftmoe.data.read import read_lines, read_table
from fftmoe.data.text_encodings import LIKELY_ENCODINGS
from fftmoe.deploy.ledger_account import Account
from fftmoe.deploy.running import FACTS, holder
from fftmoe.errors import InputError
from fftmoe.records import Release
from fftmoe.setup.policy import parse_policy
from fftmoe.store import Bindings, RunFolder, read_summary
from fftmoe.store.bindings import differences
from fftmoe.store.chained_log import NO_LINE, ChainedLog
from fftmoe.store.owner import LOCK, owner_of
from fftmoe.store.privacy_ledger import AskedLedger, PrivacyLedger, Spent, TrainingRequests
from fftmoe.strict import strict_json, strict_yaml
from fuzzing import Reader, Things, at, check_message
from policies import policy_of
from reports import config, rows, summary
from tables import MARKS, write_csv, write_jsonl

Make = Callable[[Things], Reader]
for encoding in (*MARKS, *LIKELY_ENCODINGS.values()):
    codecs.lookup(encoding)  # imports it, which no reader should
RELEASE = Release(0.25, 1.5, 3)
TEXTS = {"text": ['a "b"', "c\nd", "é"], "label": ["x", "y", "x"], "client": ["1", "01", "NA"]}


# Of people


def tagged(things: Things) -> Reader:
    """YAML that says the types of its values itself."""
    seeds = [
        b"a: !!bool true\nb: !!int 7\nc: !!float 1.5\nd: !!null ~\ne: !!str 7\n",
        b"a: !!timestamp 2001-12-31\nb: !!timestamp 2001-12-14t21:59:43.10-05:00\nc: !!binary YWI=\n",
        b"a: !!set {b, c}\nd: !!omap [e: 1]\nf: !!pairs [g: 1]\nh: !<tag:yaml.org,2002:int> 1:30\n",
    ]
    return Reader("tagged", strict_yaml, seeds, (ValueError,), 0.02)


# Of a site


def policy(things: Things) -> Reader:
    recipe = parse_recipe(things.recipe_values, "here")
    counted = {"modes": ["examples"], "epsilon": 3.0, "delta": 1e-5}
    seeds = [policy_of(recipe), policy_of(recipe, fields={"federation.rounds": {"most": 9}, "seed": "any"})]
    seeds.append(policy_of(recipe, privacy=counted, labels=["a", "b"], ledger="../ledger"))
    packed = [yaml.safe_dump(seed).encode() for seed in seeds]
    return Reader("policy", lambda data: parse_policy(data, "policy.yaml"), packed, (InputError,), 0.01)


def ledger(things: Things) -> Reader:
    """The lines of a ledger, or its head; what is read is added up."""
    log = ChainedLog(things.place("ledger/ledger.jsonl"), "the ledger")
    log.begin()
    asked = {"event": "asked", "server": "s", "run": "r", "recipe": "d", "mode": "examples"}
    for number in range(3):
        with log.locked():
            log.append({**asked, "task": "training", "round": number, "release": vars(RELEASE)}, durable=True)
    kept = {path: path.read_bytes() for path in (log.path, log.head)}

    def read(data: bytes) -> object:
        chosen = log.head if data.startswith(b'{"lines"') or len(data) <= 128 else log.path
        for path, own in kept.items():
            path.write_bytes(data if path == chosen else own)
        return Account.of(ChainedLog(log.path, log.label).read())

    return Reader("ledger", read, list(kept.values()), (InputError,), 0.01, (log.path.parent,))


def account(things: Things) -> Reader:
    """An entry of a ledger that a later version wrote: its digests are right, its fields may not be."""
    path = things.place("account/ledger.jsonl")
    entry = {"event": "asked", "server": "s", "run": "r", "recipe": "d", "task": "training", "mode": "examples"}
    entry |= {"release": vars(RELEASE), "epsilon": 1.0, "delta": 1e-6}

    def read(data: bytes) -> object:
        line = json.dumps({"number": 1, **strict_json(data), "previous": NO_LINE}).encode() + b"\n"
        path.write_bytes(line)
        head = {"lines": 1, "bytes": len(line), "last": hashlib.sha256(line).hexdigest()}
        path.with_suffix(".head").write_text(json.dumps(head))
        return Account.of(ChainedLog(path, "the ledger").read())

    return Reader("account", read, [json.dumps(entry).encode()], (InputError, ValueError), 0.005, (path.parent,))


def lock(things: Things) -> Reader:
    """The note about the process that owns a folder, and what that process says about itself."""
    path = things.place(f"running/{LOCK}")
    seeds = [b'{"pid": 1, "host": "a", "started": 5}', b'{"pid": 1, "address": "a:1", "data": "b"}']

    def read(data: bytes) -> object:
        for name, own in ((LOCK, seeds[0]), (FACTS, seeds[1])):
            (path.parent / name).write_bytes(data if (b"host" in data) == (name == LOCK) else own)
        return owner_of(path.parent), holder(path.parent)

    return Reader("lock", read, seeds, (), 0.005, (path.parent,))


# Of a run


def run_rows(things: Things) -> Reader:
    """The rows of a run without their digests, and the page that is made of them."""
    folder = things.place("rows/metrics.jsonl").parent
    (folder / "config.yaml").write_text(yaml.safe_dump(config()))
    seeds = ["".join(json.dumps(row) + "\n" for row in rows(metric)).encode() for metric in ("accuracy", "perplexity")]
    read = at(folder / "metrics.jsonl", lambda path: page_of(path.parent))
    return Reader("rows", read, seeds, (InputError,), 0.003, (folder,))


def run_summary(things: Things) -> Reader:
    folder = things.place("summary/summary.json").parent
    (folder / "config.yaml").write_text(yaml.safe_dump(config()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))

    def read(path: Path) -> object:
        found = read_summary(path.parent)
        assert isinstance(found, dict)
        return page_of(path.parent)

    seeds = [json.dumps(summary()).encode()]
    return Reader("summary", at(folder / "summary.json", read), seeds, (InputError,), 0.003, (folder,))


def comparison(things: Things) -> Reader:
    from comparisons import cell
    from fftmoe.comparison.record import comparison_values
    from fftmoe.comparison.statistics import Comparison

    path = things.place("comparison/comparison.json")
    cells = tuple(cell(variant, "iid", seed, 0.5 + seed / 9) for variant in ("fft-moe", "fedit") for seed in (0, 1))
    seeds = [json.dumps(comparison_values(Comparison("c", cells, 0.5))).encode()]
    return Reader(
        "comparison", at(path, lambda path: page_of(path.parent)), seeds, (InputError,), 0.002, (path.parent,)
    )


def bindings(things: Things) -> Reader:
    folder = things.place("bindings/bindings.json").parent
    digests = {"rows": 3, "sha256": "a" * 64}
    values = {"labels": ["a", "b"], "population": {"clients": 2, "names": ["x", "y"]}, "recipe": {"seed": 1}}
    values |= {"training rows": digests, "test rows": digests, "backbone": "ab", "tokenizer": "cd"}
    values |= {"versions": {"torch": "2"}, "keys": {"a": "b"}}
    now = {**values, "labels": ["b", "a"], "population": {"clients": 2, "names": ["x", "z"]}, "keys": {"a": "c"}}
    now |= {"training rows": {"rows": 4, "sha256": "b" * 64}, "recipe": {"seed": 2}, "versions": {"torch": "3"}}

    def read(path: Path) -> object:
        found = Bindings.read(path.parent)
        assert found is not None
        return differences(found.values, now)

    seeds = [Bindings(values, ("the labels",)).pack()]
    return Reader("bindings", at(folder / "bindings.json", read), seeds, (InputError,), 0.005, (folder,))


def spent(things: Things) -> Reader:
    """What a run has spent of its clients' or of its examples' privacy."""
    folder = things.place("spent/checkpoints/x").parent.parent
    PrivacyLedger(folder).write(Spent(1.5, 0.5, (RELEASE,)))
    AskedLedger(folder).write([TrainingRequests("p", RELEASE, Counter({0: 2, 5: 1}))])
    kept = {path: path.read_bytes() for path in (folder / "checkpoints").glob("*.json")}

    def read(data: bytes) -> object:
        for path, own in kept.items():
            path.write_bytes(data if (b'"asked"' in data) == ("example" in path.name) else own)
        return PrivacyLedger(folder).read(), AskedLedger(folder).read()

    return Reader("spent", read, list(kept.values()), (InputError,), 0.01, (folder,))


def checkpoint(things: Things) -> Reader:
    """The manifest of a run's only checkpoint."""
    from fftmoe.records import ServerState

    folder = RunFolder(things.place("checkpointed/metrics.jsonl").parent)
    (folder.path / "checkpoints").mkdir()
    for row in rows():
        folder.append_metrics(row)
    folder.checkpoints.save(ServerState(3, {}))
    [manifest] = (folder.path / "checkpoints").glob("*.json")
    read = at(manifest, lambda path: folder.load_newest())
    return Reader("checkpoint", read, [manifest.read_bytes()], (InputError,), 0.005, (folder.path,))


def bound(things: Things) -> Reader:
    from fftmoe import MoeAdapterConfig, attach_adapter
    from fftmoe.store import SavedWith, save_adapter
    from models import tiny_bert

    folder = things.place("bound/x").parent
    shutil.rmtree(folder)
    model = attach_adapter(tiny_bert(), MoeAdapterConfig(num_experts=3, expert_dim=4, top_k=1))
    save_adapter(model, folder, SavedWith(["a", "b"]))
    path = folder / "bound.json"
    read = at(path, lambda path: check_adapter_files(path.parent))
    return Reader("bound", read, [path.read_bytes()], (InputError,), 0.003, (folder,))


# Tables and texts


def columns_of(path: Path) -> object:
    """Read a table and each of its columns in every way that a task does."""
    table = read_table(path)
    for name in table.columns:
        for read in (
            lambda name: texts_of(table, "data.text", name),
            lambda name: lists_of(table, "data.tags", name),
            lambda name: numbers_of(table, [name]),
            lambda name: names_of(table, name, "client", "partition.by"),
        ):
            try:
                read(name)
            except InputError as error:
                check_message(error)
    return table


def csv(things: Things) -> Reader:
    path, seeds = things.place("csv/train.csv"), list[bytes]()
    for separator, line_end, encoding in ((",", "\n", "utf-8"), (";", "\r\n", "utf-16-le"), ("\t", "\n", "utf-8-sig")):
        write_csv(path, TEXTS, separator, line_end, encoding)
        seeds.append(path.read_bytes())
    return Reader("csv", at(path, columns_of), seeds, (InputError,), 0.01, (path.parent,))


def jsonl(things: Things) -> Reader:
    path = things.place("jsonl/train.jsonl")
    write_jsonl(path, TEXTS, escaped=True)
    nested = b'{"tokens": ["a", "b"], "tags": ["O", "X"], "size": 1.5, "more": {"a": [1, null, true]}}\n' * 2
    seeds = [path.read_bytes(), nested]
    return Reader("jsonl", at(path, columns_of), seeds, (InputError,), 0.01, (path.parent,))


def facts(things: Things) -> Reader:
    """A table of which the recipe names no column, or one."""
    folder = things.place("facts/train.jsonl").parent
    (folder / "test.jsonl").write_text('{"text": "a", "label": "x"}\n')
    plain = "".join(json.dumps({"text": f"a {n}", "label": "xy"[n % 2], "site": "s"}) + "\n" for n in range(4))
    tagged = '{"tokens": ["a", "b"], "tags": ["O", "X"]}\n' * 2
    answered = '{"prompt": "a", "completion": "b", "kind": "x"}\n' * 2
    seeds = [text.encode() for text in (plain, tagged, answered)]

    def read(path: Path) -> object:
        for named in ({}, {"data.label": "label"}, {"data.tokens": "tokens"}):
            try:
                read_facts(str(path.parent), named, None, "site")
            except InputError as error:
                check_message(error)
        return path

    return Reader("facts", at(folder / "train.jsonl", read), seeds, (), 0.01, (folder,))


def lines(things: Things) -> Reader:
    path = things.place("lines/texts.txt")
    seeds = ["a b\r\nc\u2028d\n\n".encode(encoding) for encoding in ("utf-8", "utf-8-sig", "utf-16")]
    return Reader("lines", at(path, read_lines), seeds, (InputError,), 0.005, (path.parent,))


FILES: dict[str, Make] = {
    make.__name__: make
    for make in (
        *(tagged, policy, ledger, account, lock, run_rows, run_summary, comparison, bindings, spent, checkpoint, bound),
        *(csv, jsonl, facts, lines),
    )
}
