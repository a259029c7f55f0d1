"""Nothing that the program reads again is written with a number that its reader refuses."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.deploy.files import json_bytes
from fftmoe.deploy.running import running
from fftmoe.engines.flower_messages import pack_query, pack_request
from fftmoe.records import Release, pack_update
from fftmoe.records.messages import ClientUpdate
from fftmoe.store import Bindings
from fftmoe.store.chained_log import ChainedLog
from fftmoe.store.privacy_ledger import PrivacyLedger, Spent
from fftmoe.strict import exact_json, hash_text, strict_json

BROKEN = (math.nan, math.inf, -math.inf)


def _runs(folder: Path, value: float) -> None:
    with running(folder, {"port": value}):
        raise AssertionError("not reached")


def _appends(folder: Path, value: float) -> None:
    log = ChainedLog(folder / "log.jsonl", "the log")
    with log.locked():
        log.append({"epsilon": value}, durable=True)


def _spends(folder: Path, value: float) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    PrivacyLedger(folder).write(Spent(value, 1.0, (Release(0.5, 1.0, 3),)))


WRITERS: dict[str, Callable[[Path, float], object]] = {
    "what a run is bound to": lambda folder, value: Bindings({"rows": {"mean": value}}).write(folder),
    "a ledger of privacy": _spends,
    "a chained log": _appends,
    "what a process says about itself": _runs,
    "a file of a deployment": lambda folder, value: json_bytes({"wait": value}),
    "a client's update": lambda folder, value: pack_update(ClientUpdate(1, 0, 3, {}, metrics={"loss": value})),
    "a query of a server": lambda folder, value: pack_query({"recipe": {"rate": value}}),
    "a request of a server": lambda folder, value: pack_request({"recipe": [value]}, [(0, b"plan")]),
}


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("name", WRITERS)
def test_a_number_that_readers_refuse_is_not_written(tmp_path: Path, name: str, value: float):
    """Before, the file or message was complete, and whoever read it called it damaged."""
    if name == "a chained log":
        ChainedLog(tmp_path / "log.jsonl", "the log").begin()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        WRITERS[name](tmp_path, value)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "lock" not in path.name}
    assert after == before


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda own: st.lists(own, max_size=3) | st.dictionaries(st.text(), own, max_size=3),
    max_leaves=7,
)


@given(st.dictionaries(st.text(), PLAIN), st.booleans(), st.booleans(), st.sampled_from([None, 2]))
def test_what_is_written_is_read_as_it_was(values: dict[str, Any], sort: bool, compact: bool, indent: int | None):
    text = exact_json(values, indent, sort, compact)
    assert strict_json(text) == values
    assert text.isascii()
    assert exact_json(values) == json.dumps(values)  # the bytes of the files and messages of before


@given(PLAIN)
def test_what_is_hashed_may_have_any_number(value: Any):
    assert hash_text(value) == json.dumps(value, sort_keys=True)
    assert hash_text([value, math.inf]) != hash_text([value, math.nan])
