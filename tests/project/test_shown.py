"""No text from data, a recipe or another machine acts on a terminal or a page, wherever it is shown."""

import ast
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.errors import LONGEST, InputError, OutputError, RunError
from fftmoe.report.console import Console
from fftmoe.report.render import page_templates
from fftmoe.shown import count_of, shown, shown_json, shown_on_a_line
from run_fixtures import RunValues
from shared_fixtures import Cli

PACKAGE = Path(__file__).parents[2] / "src" / "fftmoe"
EVIL = "red\x1b[2J\x1b]0;owned\x07\u202e\x9b31m"
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@given(
    st.text(st.characters(exclude_categories=[]) | st.sampled_from("\x1b\x9b\u202e\ud800\n"), max_size=99),
    st.integers(1, 999),
)
def test_an_error_is_short_and_cannot_act_whatever_text_it_repeats(text: str, times: int):
    for kind in (InputError, OutputError, RunError):
        message = str(kind(f"cannot read {text * times}; write another"))
        assert not ACTING.search(message)
        assert len(message) <= LONGEST
        assert message.startswith("cannot read ")
        assert message.endswith("; write another")


@given(st.text(st.characters(exclude_categories=[]) | st.sampled_from("\x1b\x9b\u202e\ud800\n\t\\")))
def test_what_is_shown_cannot_act_and_plain_text_stays(text: str):
    assert not ACTING.search(shown(text))
    shown(text).encode()
    assert shown(shown(text)) == shown(text)
    assert "\n" not in shown_on_a_line(text)
    plain = ACTING.sub("", text)
    assert shown(plain) == plain


@pytest.mark.parametrize("code", [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
def test_every_mark_of_direction_is_shown_and_letters_written_from_right_to_left_stay(code: int):
    """Unicode's property Bidi_Control has these twelve; a lone U+200F already moves the digits beside it."""
    assert shown(f"\u05d0{chr(code)}1") == f"\u05d0\\u{code:04x}1"
    assert shown_json(f'"{chr(code)}"') == f'"\\u{code:04x}"'


@given(st.recursive(st.text(st.characters(exclude_categories=[])), lambda own: st.lists(own, max_size=3)))
def test_json_keeps_its_values(value: Any):
    text = shown_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert not ACTING.search(text)
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "fault", "1 fault"),
        (0, "fault", "0 faults"),
        (1204, "fault", "1,204 faults"),
        (2, "entry", "2 entries"),
        (2, "key", "2 keys"),
    ],
)
def test_a_noun_agrees_with_its_number(number: int, noun: str, said: str):
    assert count_of(number, noun) == said


@pytest.mark.parametrize("text", ["[/b]", "[red]x", ":warning:", EVIL, "\\[b]"])
def test_a_console_shows_texts_as_they_are(text: str):
    from rich.table import Table

    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    table = Table("name")
    table.add_row(text)
    console.print(text)
    console.print(table)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert not ACTING.search(out.replace("\r", ""))
    assert out.count(shown(text)) == 2


def test_every_console_is_the_one_that_shows_texts_as_they_are():
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        theirs = {
            name.asname or name.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console"
            for name in node.names
        }
        made = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not made & (theirs | {"rich.console.Console"}), path


def test_a_page_shows_texts_as_they_are():
    page = page_templates().from_string("{{ text }}").render(text=f"<b>{EVIL}")
    assert page.startswith("&lt;b&gt;red\\x1b[2J")
    assert not ACTING.search(page)


@pytest.mark.parametrize(
    "name",
    ["../../x", "/x", "a/b", "a\\b", ".", "..", ".x", "", " ", " a", "a\x1bb", "a\nb", "c:x", "x" * 101, "a\u202eb"],
)
def test_the_name_of_a_recipe_is_no_path(cli: Cli, recipe_values: dict[str, Any], tmp_path: Path, name: str):
    values = {**recipe_values, "name": name}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    outcome = cli("run", tmp_path / "mine.yaml")
    assert outcome.status == 2
    assert "name" in outcome.err
    assert not ACTING.search(outcome.err)
    assert outcome.err.count("\n") == 1


def test_labels_tiers_and_clients_that_would_act_are_written_out(
    cli: Cli, recipe_values: dict[str, Any], run_values: RunValues, tmp_path: Path
):
    """A whole run whose labels, clients and columns hold escape sequences, markup and code of emoji."""
    labels = [EVIL, "[/b]", ":x:"]
    rows = [{"text": f"red ash {n}", "label": labels[n % 3], "site\x1b[1m": f"{EVIL}{n % 4}"} for n in range(60)]
    for split, own in (("train", rows), ("test", rows[:12])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    first = cli(
        "init", tmp_path, "--by", "site\x1b[1m", "--text", "text", "--label", "label", "--output", tmp_path / "a"
    )
    assert first.status == 0, first.err
    tiers = [{"name": "[/b]", "fraction": 1.0, "top_k": 2, "experts": 5}]
    done = run_values(
        {
            **recipe_values,
            "data": {"source": str(tmp_path), "max_length": 13, "validation": "off"},
            "partition": {"kind": "natural", "by": "site\x1b[1m"},
            "federation": {**recipe_values["federation"], "clients_per_round": 2, "rounds": 1},
            "budgets": tiers,
        }
    )
    asked = cli("predict", done.folder, "red \x9b2J", "--scores")
    measured = cli("evaluate", done.folder)
    exported = cli("export", done.folder, "--to", "peft", "--output", tmp_path / "peft")
    refused = cli("evaluate", done.folder, "--data", tmp_path / EVIL)
    assert refused.status == 2
    for outcome in (first, done.outcome, asked, measured, exported, refused):
        assert not ACTING.search(outcome.out + outcome.err), outcome
    page = (done.folder / "report.html").read_text()
    assert not ACTING.search(page)
    assert json.loads(measured.out)["accuracy_by_label"].keys() == set(labels)


QUOTING = """
import logging, sys, warnings
import fftmoe.setup.finished as finished
from fftmoe.cli.app import main

def quote(*arguments, **options):
    logging.getLogger("library").warning("logged %s", sys.argv[2])
    warnings.warn("warned " + sys.argv[2])
    print("printed " + sys.argv[2], file=sys.stderr)
    raise TypeError("raised " + sys.argv[2])

finished.finished_run = quote
main(["predict", sys.argv[1], "a text"])
"""


def test_what_libraries_log_warn_of_or_raise_cannot_act(tmp_path: Path):
    """Of data that they quote, in the process of a command."""
    command = [sys.executable, "-c", QUOTING, str(tmp_path), EVIL]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert found.returncode == 1
    assert not ACTING.search(found.stderr)
    for event in ("logged", "warned", "printed", "TypeError: raised"):
        assert f"{event} {shown(EVIL)}" in found.stderr


IN_WORKERS = """
import logging, sys, warnings
from fftmoe.engines.pool import WorkerDied, WorkerProcesses

def quote(text):
    logging.getLogger("library").warning("logged %s", text)
    own = logging.getLogger("early")  # whose handler was made before this function was called
    own.warning("handled %s", text)
    warnings.warn("warned " + text)
    print("printed " + text, file=sys.stderr)
    sys.stderr.writelines(["line " + text + chr(10)])
    raise TypeError("raised " + text)

def start():
    return quote

logging.getLogger("early").addHandler(logging.StreamHandler())
logging.getLogger("early").propagate = False
if __name__ == "__main__":
    import multiprocessing
    pool = WorkerProcesses(1, start, multiprocessing.get_context(sys.argv[1]))
    try:
        pool.submit(sys.argv[2]).result()
    except WorkerDied:
        sys.exit(3)
    finally:
        pool.close()
"""


@pytest.mark.parametrize("how", [pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def test_what_a_worker_process_writes_cannot_act(tmp_path: Path, how: str):
    """Log lines, also of handlers that libraries made when they were imported, warnings, and its last traceback."""
    (tmp_path / "script.py").write_text(IN_WORKERS)
    command = [sys.executable, str(tmp_path / "script.py"), how, EVIL]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert found.returncode == 3, found.stderr
    assert not ACTING.search(found.stderr)
    for event in ("logged", "handled", "warned", "printed", "line", "TypeError: raised"):
        assert f"{event} {shown(EVIL)}" in found.stderr, event


def test_every_process_that_is_started_for_work_shows_its_errors():
    """Processes are started in one place, whose target shows them; another keeps a log, which shows its lines."""
    starts = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        made = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        named = {name for name in made if name.split(".")[-1] in ("Process", "Popen", "ProcessPoolExecutor", "fork")}
        if named:
            starts[str(path.relative_to(PACKAGE))] = named
    assert starts == {"engines/pool.py": {"context.Process"}, "deploy/link/superlink.py": {"subprocess.Popen"}}
