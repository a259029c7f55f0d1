"""What a finished run has left in its folder, and the comparison of two runs."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fftmoe.records import ServerState
from fftmoe.store import unpack_state
from shared_fixtures import Outcome

SUMMARY_KEYS = {
    "schema_version",
    "method",
    "seed",
    "rounds_completed",
    "num_clients",
    "trainable_parameters",
    "trainable_parameters_by_tier",
    "accuracy",
    "accuracy_interval",
    "best_round",
    "baselines",
    "accuracy_by_tier",
    "accuracy_by_round",
    "reweighted_accuracy",
    "bytes_up",
    "bytes_down",
    "client_seconds",
    "per_client_round_by_tier",
    "clients_failed",
    "faults",
    "seconds",
    "peak_rss_mib",
}

NOTHING_PRINTED = Outcome(0, "", "")  # the outcome of a run in Python


@dataclass(frozen=True)
class Finished:
    """The folder of a finished run."""

    folder: Path
    outcome: Outcome = NOTHING_PRINTED

    @property
    def summary(self) -> dict[str, Any]:
        return strict((self.folder / "summary.json").read_text())

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [strict(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def state(self) -> ServerState:
        """The state of the newest checkpoint."""
        return unpack_state(max((self.folder / "checkpoints").glob("*.safetensors")).read_bytes())

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        return self.state.tensors["head.weight"], self.state.tensors["head.bias"]

    @property
    def adapter(self) -> bytes:
        return (self.folder / "adapter" / "adapter_model.safetensors").read_bytes()


def strict(text: str) -> Any:
    """JSON as other programs read it: without NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def timeless(value: Any) -> Any:
    """The value without seconds and memory, at every depth."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if "seconds" not in key and "rss" not in key}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def check_same(one: Finished, two: Finished) -> int:
    """Check that two runs have equal summaries, rows and tensors, to the bit; returns the number of files."""
    assert timeless(one.summary) == timeless(two.summary)
    assert timeless(one.rows) == timeless(two.rows)
    names = sorted(path.relative_to(one.folder) for path in one.folder.rglob("*.safetensors"))
    assert names == sorted(path.relative_to(two.folder) for path in two.folder.rglob("*.safetensors"))
    for name in names:
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name
    return len(names)


def check_advice(printed: str, folder: Path | str) -> None:
    """What a run advises at its end is a reason and a command about this run that can be pasted."""
    _, advice = printed.split("\nwhat to do next: ")
    why, command = advice.splitlines()[:2]
    program, verb, about, *_ = shlex.split(command)
    assert why
    assert (program, verb) in [("fftmoe", verb) for verb in ("predict", "evaluate", "run", "compare")]
    assert about == (f"{folder}/config.yaml" if verb in ("run", "compare") else str(folder))
