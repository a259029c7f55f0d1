"""What sites say about themselves, true and false, and what the server makes of it, without a network."""

import io
from collections.abc import Mapping
from typing import Any, cast

import pytest
from flwr.serverapp import Grid
from rich.console import Console

from fftmoe.deploy import gather as roll_call
from fftmoe.deploy.gather import Gathered, RollCall, gather
from fftmoe.errors import RunError
from fftmoe.report.progress import Progress
from fftmoe.setup.deployment import SiteProfile

SITES = {"a": 0, "b": 1, "c": 2}
NODES = {"a": 11, "b": 13, "c": 17}
GOOD = {
    site: {"site": site, "client_id": i, "tier": "small", "num_examples": 5 + i, "backbone": "0" * 16}
    for site, i in SITES.items()
}
KNOWN = {site: SiteProfile(**cast(dict[str, Any], values)) for site, values in GOOD.items()}


class Connected:
    """A grid whose nodes are all connected."""

    def get_node_ids(self) -> list[int]:
        return [*NODES.values()]


def gathered(
    monkeypatch: pytest.MonkeyPatch, answers: Mapping[str, Any], known: Mapping[str, SiteProfile] | None = None
) -> tuple[Gathered | str, str]:
    """What comes of these answers of the sites, or the message of the error; and what the terminal shows."""
    by_node = {NODES[site]: answer for site, answer in answers.items()}

    def ask(grid: Grid, nodes: list[int], job: Any, seconds: float) -> dict[int, Any]:
        return {node: by_node[node] for node in nodes if node in by_node}

    monkeypatch.setattr(roll_call, "ask", ask)
    monkeypatch.setattr(roll_call, "CONNECTED_POLL_SECONDS", 0.0)
    shown = io.StringIO()
    progress = Progress(Console(file=shown, width=10_000))
    call = RollCall(cast(Grid, Connected()), NODES, SITES, {}, ("small", "large"), known or {}, progress)
    try:
        return gather(call, 0.02), shown.getvalue()
    except RunError as error:
        return str(error), shown.getvalue()


WRONG: dict[str, Any] = {
    "nothing": {},
    "a list": [1],
    "a text too many": {**GOOD["b"], "note": "x"},
    "a name of bytes": {**GOOD["b"], "site": "b\x1b[2J"},
    "another site": {**GOOD["b"], "site": "a"},
    "another client": {**GOOD["b"], "client_id": 0},
    "a number as text": {**GOOD["b"], "num_examples": "5"},
    "true for one": {**GOOD["b"], "num_examples": True},
    "no rows": {**GOOD["b"], "num_examples": 0},
    "too many rows": {**GOOD["b"], "num_examples": 10**9 + 1},
    "an unknown tier": {**GOOD["b"], "tier": "huge"},
    "a tier that acts": {**GOOD["b"], "tier": "\x1b]0;owned\x07"},
    "a long tier": {**GOOD["b"], "tier": "t" * 100_000},
    "a backbone of words": {**GOOD["b"], "backbone": "mine"},
    "a long backbone": {**GOOD["b"], "backbone": "0" * 17},
}
CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "more rows": {"num_examples": 10**9},
    "another tier": {"tier": "large"},
    "another backbone": {"backbone": "1" * 16},
}
"""Changes of what site b said when the run began."""
