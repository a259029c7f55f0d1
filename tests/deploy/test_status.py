"""`fftmoe deploy status` describes a run from its folder, also while the run writes to it."""

import json
from pathlib import Path

import pytest

from fftmoe.deploy import status
from fftmoe.deploy.running import running
from fftmoe.errors import InputError
from fftmoe.store import owned

ROWS = [
    {"round": 0, "metric": "accuracy", "accuracy": 0.25},
    {
        "round": 1,
        "metric": "macro_f1",
        "macro_f1": 0.5,
        "faults": [{"client_id": 3, "kind": "late", "reason": "no answer within 10 s"}],
    },
    {"round": 2, "accuracy": None},
]


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, str]:
    return {"output": str(tmp_path)}


def write(folder: Path, text: str) -> None:
    (folder / "metrics.jsonl").write_text(text)


@pytest.mark.parametrize(
    ("number", "lines"),
    [
        (0, ["no round is finished yet"]),
        (1, ["round 0 is finished, accuracy 0.250"]),
        (2, ["round 1 is finished, macro f1 0.500", "  late: client 3 (no answer within 10 s)"]),
        (3, ["round 2 is finished"]),
    ],
)
def test_the_last_finished_round_is_described(facts: dict[str, str], tmp_path: Path, number: int, lines: list[str]):
    write(tmp_path, "".join(json.dumps(row) + "\n" for row in ROWS[:number]))
    assert status.last_round(facts) == lines


def test_a_row_that_is_being_written_is_not_read(facts: dict[str, str], tmp_path: Path):
    whole = "".join(json.dumps(row) + "\n" for row in ROWS[:2])
    half = json.dumps(ROWS[2])
    for end in (1, len(half) - 1, len(half)):
        write(tmp_path, whole + half[:end])
        assert status.last_round(facts)[0] == "round 1 is finished, macro f1 0.500"


def test_a_folder_is_a_servers_or_a_sites(tmp_path: Path):
    with pytest.raises(InputError, match="neither a server's folder nor a site's"):
        status.describe(tmp_path)
    (tmp_path / "site.json").write_text("{}")
    assert status.describe(tmp_path) == [f"nothing runs from {tmp_path}"]
    with running(tmp_path, {"address": "fl.example.org:9092", "data": "/data"}):
        (line,) = status.describe(tmp_path)
        assert line.endswith("serves fl.example.org:9092 with the data in /data")


@pytest.mark.parametrize("name", ["site.json", "deployment.json"])
def test_a_process_that_has_not_said_what_it_runs_yet_is_starting(tmp_path: Path, name: str):
    (tmp_path / name).write_text("{}")
    with owned(tmp_path):
        assert status.describe(tmp_path) == [f"a process is starting in {tmp_path}, or ending; look again in a moment"]
