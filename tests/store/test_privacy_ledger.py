"""The ledger of spent privacy: it is read as it was written, and damage is an error."""

import json
import math
from pathlib import Path

import pytest

from fftmoe.errors import InputError
from fftmoe.store.privacy_ledger import PrivacyLedger, Spent


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    ledger = PrivacyLedger(tmp_path)
    spent = Spent(noise_multiplier=0.1 + 0.2, clip_norm=1 / 3, releases=7)
    ledger.write(spent)
    assert ledger.read() == spent


WHOLE = {"noise_multiplier": 1.0, "clip_norm": 1.0, "releases": 2}
DAMAGED = (
    *(None, "", "{}", "[]", "\x00", json.dumps(WHOLE)[:-2]),
    *(json.dumps({**WHOLE, **own}) for own in ({"releases": -1}, {"releases": 2.5}, {"clip_norm": math.nan}, {"a": 1})),
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_ledger_is_an_error_and_not_an_empty_ledger(tmp_path: Path, text: str | None):
    (tmp_path / "checkpoints").mkdir()
    if text is not None:
        (tmp_path / "checkpoints" / "privacy.json").write_text(text)
    with pytest.raises(InputError, match="does not say what this run has spent"):
        PrivacyLedger(tmp_path).read()
