"""The tiny data divided among four sites, for the tests of federations over sites."""

import csv
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fftmoe.deploy.site import OpenSite
from fftmoe.engines.base import Fault, Group, Quota, Reply

NAMES = ("author-0", "author-1", "author-2", "author-3")  # in the order of a natural partition's clients
TIERS = ("large", "small", "small", "large")


def divide(data_folder: Path, folder: Path) -> None:
    """Write only the test rows to `folder/server`, and only an author's training rows to `folder/<name>`."""
    with (data_folder / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        with (folder / name / "train.csv").open("w", newline="") as file:
            writer: csv.DictWriter[str] = csv.DictWriter(file, ["text", "label"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows([dict(row) for row in rows if row["author"] == name])
    (folder / "server").mkdir()
    shutil.copy(data_folder / "test.csv", folder / "server")


def natural(recipe_values: dict[str, Any], **federation: Any) -> dict[str, Any]:
    """The recipe on one machine that has all rows: the authors are its clients, all of them in every round."""
    return {
        **recipe_values,
        "partition": {"kind": "natural", "by": "author"},
        "federation": {**recipe_values["federation"], "rounds": 3, "clients_per_round": 4, **federation},
        "budgets": [dict(budget, fraction=0.5) for budget in recipe_values["budgets"]],
        "evaluation": {"baselines": "off", "every": 1},
        "trackers": [],
    }


def over_sites(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same recipe for a server that has only the test rows."""
    return {**values, "data": {**values["data"], "source": str(folder / "server")}}


class Sites:
    """All sites in this process; their answers pass as bytes."""

    reliable = False

    def __init__(self, sites: Sequence[OpenSite]) -> None:
        self._sites = sites

    def absent(self) -> tuple[int, ...]:
        return ()

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        for [(client_id, message)] in reversed(groups):
            [reply] = self._sites[client_id]([message])
            yield Reply(client_id, reply, 0.1)

    def close(self) -> None: ...

    def peak_rss_mib(self) -> float:
        return 1.0


@contextmanager
def fails_as(code: str, words: str) -> Iterator[None]:
    """What leaves the site is the code; the words are for its own log."""
    from fftmoe.engines.failures import CodedError

    with pytest.raises(CodedError) as failure:
        yield
    assert failure.value.code == code
    assert re.search(words, str(failure.value.__cause__))
    assert not re.search(words, str(failure.value))
