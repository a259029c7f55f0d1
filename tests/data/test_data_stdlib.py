import hashlib
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from fftmoe.data import stdlib_docs
from fftmoe.data.stdlib_docs import chapter_of, module_chapters
from fftmoe.errors import InputError
from reading import Labelled, read_labelled_texts


@pytest.fixture(scope="module")
def docs() -> Labelled:
    return read_labelled_texts("builtin:stdlib-docs", extra_columns=["module"])


def test_size_and_balance(docs: Labelled):
    train, test = docs.splits["train"], docs.splits["test"]
    assert len(docs.label_names) >= 15
    assert len(train) + len(test) >= 4000
    counts = Counter([*train.labels.tolist(), *test.labels.tolist()])
    assert min(counts.values()) >= 60
    assert max(counts.values()) < 0.2 * sum(counts.values())


def test_split_is_stratified_by_chapter_and_leaves_every_module_two_examples(docs: Labelled):
    train, test = docs.splits["train"], docs.splits["test"]
    in_train, in_test = Counter(train.labels.tolist()), Counter(test.labels.tolist())
    for label, count in in_train.items():
        assert abs(in_test[label] - (count + in_test[label]) / 5) <= 1
    modules = Counter(train.columns["module"])
    assert min(modules.values()) >= 2
    assert set(test.columns["module"]) <= set(modules)


def test_no_text_occurs_twice(docs: Labelled):
    texts = [text for split in docs.splits.values() for text in split.content]
    assert len(set(texts)) == len(texts)
    assert all(text == " ".join(text.split()) for text in texts)


def test_labels_of_well_known_modules(docs: Labelled):
    train = docs.splits["train"]
    found = {
        module: docs.label_names[label]
        for module, label in zip(train.columns["module"], train.labels.tolist(), strict=True)
    }
    assert found["json"] == "Internet Data Handling"
    assert found["asyncio"] == "Networking and Interprocess Communication"
    assert found["itertools"] == "Functional Programming Modules"  # written in C
    assert found["xml"] == "Structured Markup Processing Tools"


def test_chapter_by_longest_prefix():
    chapters = {name: chapter_of(name, module_chapters()) for name in ("json", "json.decoder", "_pydecimal", "decimal")}
    assert chapters["json"] == chapters["json.decoder"] == "Internet Data Handling"
    assert chapter_of("concurrent.futures.thread", module_chapters()) == "Concurrent Execution"
    assert chapters["_pydecimal"] == chapters["decimal"] == "Numeric and Mathematical Modules"
    assert chapter_of("numpy", module_chapters()) is None


def test_every_documented_public_module_has_a_chapter():
    # `this` and `antigravity` are jokes, `idlelib` is an application, `pydoc_data` is text.
    undocumented = {"this", "antigravity", "idlelib", "pydoc_data"}
    public = {name for name in sys.stdlib_module_names if not name.startswith("_")}
    chapters = module_chapters()
    assert {name for name in public if chapter_of(name, chapters) is None} == undocumented


@pytest.mark.slow  # parses the library a second time
def test_the_set_is_the_same_in_another_process(docs: Labelled):
    # Another hash seed, and modules imported that this process may lack, must change nothing.
    script = (
        "import decimal, curses.ascii, hashlib\n"
        "from fftmoe.data.stdlib_docs import stdlib_docs\n"
        "print(hashlib.sha256(repr(list(stdlib_docs().values())).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    run = [sys.executable, "-c", script]
    other = subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    rows = [
        list(zip(split.content, (docs.label_names[i] for i in split.labels), split.columns["module"], strict=True))
        for split in docs.splits.values()
    ]
    assert hashlib.sha256(repr(rows).encode()).hexdigest() == other


def test_repeated_and_ambiguous_texts():
    rows = [("same", "A", "a"), ("both", "A", "a"), ("same", "A", "b"), ("both", "B", "c"), ("both", "A", "a")]
    assert stdlib_docs.drop_repeats(iter(rows)) == [("same", "A", "a")]


def test_first_paragraph():
    assert stdlib_docs.first_paragraph("One\n    line \ud800.\n\n    More.") == "One line ?."


def test_a_library_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(stdlib_docs, "C_MODULES", [])
    with pytest.raises(InputError, match=r"found 0 docstrings in .* without the sources of its standard library"):
        read_labelled_texts("builtin:stdlib-docs")


def test_source_is_parsed_and_not_run(tmp_path: Path):
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "json.py").write_text('"""Skipped."""')
    (tmp_path / "json.py").write_text(
        '"""Module."""\nraise SystemExit\ntry:\n    class A:\n        "Class."\n        async def f(self): "Method."\n'
        'except OSError:\n    def g(): "Fallback."\n'
    )
    found = {name: list(docs) for name, docs in stdlib_docs.source_docstrings(tmp_path)}
    assert found == {"broken": [], "json": ["Module.", "Class.", "Method.", "Fallback."]}
