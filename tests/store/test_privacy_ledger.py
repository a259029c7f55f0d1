"""The ledgers of spent privacy: they are read as they were written, and damage is an error."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fftmoe.errors import InputError
from fftmoe.records import Release
from fftmoe.store.privacy_ledger import AskedLedger, PrivacyLedger, Spent, TrainingRequests

LATER = (Release(0.25, 1.5, 7), Release(0.1 + 0.2, 1.5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def test_ledgers_are_read_as_they_were_written(folder: Path):
    spent = Spent(noise_multiplier=0.1 + 0.2, clip_norm=1 / 3, releases=LATER)
    PrivacyLedger(folder).write(spent)
    assert PrivacyLedger(folder).read() == spent
    asked = [TrainingRequests("one", LATER[0], Counter({0: 3, 12: 1})), TrainingRequests("other", LATER[1])]
    AskedLedger(folder).write(asked)
    assert AskedLedger(folder).read() == asked


def test_equal_releases_in_a_row_are_one_entry():
    """The file does not grow with the rounds, and the order of unlike releases stays."""
    spent = Spent(1.0, 1.0)
    for rate in (0.5, 0.5, 0.25, 0.5):
        spent = spent.after(Release(rate, 2.0))
    assert spent.releases == (Release(0.5, 2.0, 2), Release(0.25, 2.0), Release(0.5, 2.0))
    assert spent.number == 4


ONE = {"cohort": "poisson", "sampling_rate": 0.5, "noise_multiplier": 1.0, "times": 2}
WHOLE = {"version": 2, "noise_multiplier": 1.0, "clip_norm": 1.0, "releases": [ONE]}
PART = {"population": "them", "release": ONE, "times": {"0": 1}}
BAD_RELEASES: tuple[Any, ...] = (
    *({**ONE, name: value} for name, value in (("sampling_rate", 0.0), ("sampling_rate", 1.5), ("times", -1))),
    *({**ONE, name: value} for name, value in (("times", True), ("sampling_rate", math.nan), ("cohort", "fixed"))),
    *({**ONE, name: value} for name, value in (("noise_multiplier", 0.0), ("noise_multiplier", math.inf), ("a", 1))),
    {name: value for name, value in ONE.items() if name != "sampling_rate"},
    7,
)
DAMAGED = (
    *(None, "", "{}", "[]", "\x00", json.dumps(WHOLE)[:-2]),
    *(json.dumps({**WHOLE, **own}) for own in ({"releases": 2}, {"clip_norm": math.nan}, {"a": 1})),
    *(json.dumps({**WHOLE, name: value}) for name in ("noise_multiplier", "clip_norm") for value in (0.0, -1.0, 1)),
    *(json.dumps({**WHOLE, name: 0.5}).replace("0.5", "1e999", 1) for name in ("noise_multiplier", "clip_norm")),
    *(json.dumps({**WHOLE, "releases": [bad]}) for bad in BAD_RELEASES),
)
DAMAGED_ASKED = (
    *(None, "", "{}", "[]", json.dumps({"version": 2, "asked": 3}), json.dumps({"version": 2, "asked": [3]})),
    *(
        json.dumps({"version": 2, "asked": [{**PART, "times": times}]})
        for times in ({"0": -1}, {"0": 0}, {"0": True}, {"0": 1.5}, {"a": 1}, [1])
    ),
    *(json.dumps({"version": 2, "asked": [{**PART, "release": bad}]}) for bad in BAD_RELEASES),
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_ledger_is_an_error_and_not_an_empty_ledger(folder: Path, text: str | None):
    if text is not None:
        (folder / "checkpoints" / "privacy.json").write_text(text)
    with pytest.raises(InputError, match="does not say what this run has spent"):
        PrivacyLedger(folder).read()


@pytest.mark.parametrize("text", DAMAGED_ASKED)
def test_a_damaged_ledger_of_examples_is_an_error(folder: Path, text: str | None):
    if text is not None:
        (folder / "checkpoints" / "example_privacy.json").write_text(text)
    with pytest.raises(InputError, match="does not say how often this run has asked its clients"):
        AskedLedger(folder).read()


def test_a_ledger_without_sampling_rates_is_refused_and_never_recounted(folder: Path):
    """The first version kept neither sampling rates nor silent rounds, so nothing that is made of it is enough."""
    (folder / "checkpoints" / "privacy.json").write_text('{"noise_multiplier": 1.0, "clip_norm": 1.0, "releases": 2}')
    (folder / "checkpoints" / "example_privacy.json").write_text('{"asked": {"0": 1}}')
    for ledger in (PrivacyLedger(folder), AskedLedger(folder)):
        with pytest.raises(InputError, match=r"it has version 1 and not 3.*finish the run with the fftmoe that began"):
            ledger.read()


def test_no_changed_digit_passes_for_what_was_written(folder: Path):
    spent = Spent(noise_multiplier=1.25, clip_norm=3.5, releases=(Release(0.25, 1.5, 7), Release(0.75, 2.5)))
    asked = [TrainingRequests("one", LATER[0], Counter({0: 3, 12: 1}))]
    PrivacyLedger(folder).write(spent)
    AskedLedger(folder).write(asked)
    for ledger in (PrivacyLedger(folder), AskedLedger(folder)):
        whole = ledger.path.read_text()
        for place, own in enumerate(whole):
            for other in set("17") - {own} if own.isdigit() else ():
                ledger.path.write_text(whole[:place] + other + whole[place + 1 :])
                with pytest.raises(InputError, match="does not say"):
                    ledger.read()
        ledger.path.write_text(whole)
    assert PrivacyLedger(folder).read() == spent
    assert AskedLedger(folder).read() == asked


def test_ledgers_of_the_version_without_a_digest_are_read(folder: Path):
    PrivacyLedger(folder).path.write_text(json.dumps(WHOLE))
    assert PrivacyLedger(folder).read() == Spent(1.0, 1.0, (Release(0.5, 1.0, 2),))
    PrivacyLedger(folder).path.write_text(json.dumps({**WHOLE, "sha256": "0" * 64}))
    with pytest.raises(InputError, match="does not say"):
        PrivacyLedger(folder).read()
