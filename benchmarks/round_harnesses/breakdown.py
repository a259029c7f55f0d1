"""Where the time of our rounds goes, by timers around the functions of each part; not run while rounds are compared.

A part's time is its own: what it calls of another part counts there. What no timer covers is "the rest". A function
that is no longer where this file looks for it is left out, and said so, rather than counted to the wrong part.
"""

import functools
import importlib
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fftmoe.config import load_recipe
from fftmoe.setup.run import run

from .ours import Clock
from .task import now

# What each part is made of, as `module:name`, the name as it is looked up where it is called. Clients are trained one
# by one (`client.update`) or together (`client.stack`).
PARTS = {
    "plan": ("fftmoe.rounds.policy:choose_cohort", "fftmoe.rounds.loop:plan_round"),
    "pack and unpack": (
        "fftmoe.methods.fft_moe:FftMoe.download",
        "fftmoe.rounds.exchange:pack_plan",
        "fftmoe.client.runtime:unpack_plan",
        "fftmoe.client.runtime:pack_update",
    ),
    "screening": ("fftmoe.server.expectation:Expectation.of", "fftmoe.rounds.exchange:screen"),
    "what an update was made on": (
        "fftmoe.server.plan:digest",
        "fftmoe.client.runtime:fingerprint",
        "fftmoe.client.runtime:made_on",
    ),
    "client states on disk": ("fftmoe.store:ClientStateFiles.load", "fftmoe.store:ClientStateFiles.save"),
    "install": (
        "fftmoe.methods.fft_moe:FftMoeSession.__init__",
        "fftmoe.methods.fft_moe:FftMoeSession.__enter__",
        "fftmoe.methods.fft_moe_stack:FftMoeStack.__init__",
        "fftmoe.methods.fft_moe_stack:FftMoeStack.__enter__",
    ),
    "batches": (
        "fftmoe.client.update:training_batches",
        "fftmoe.data.tokens:TokenizedText.lengths",
        "fftmoe.data.tokens:TokenizedText.batch",
    ),
    "forward": ("fftmoe.client.update:outputs", "fftmoe.methods.fft_moe_stack:FftMoeStack.logits"),
    "auxiliary losses": (
        "fftmoe.methods.fft_moe:FftMoeSession.penalty",
        "fftmoe.methods.fft_moe_stack:FftMoeStack.penalty",
    ),
    "backward": ("torch:Tensor.backward",),
    "optimizer, made": ("fftmoe.client.training:make_optimizers",),
    "optimizer, step": ("torch.optim:Adam.step",),  # AdamW's own, once the first one has been made
    "the update": (
        "fftmoe.methods.fft_moe:FftMoeSession.finish",
        "fftmoe.methods.fft_moe_stack:FftMoeStack.finish",
    ),
    "the rest of a client": ("fftmoe.engines.local:run_group",),
    "aggregate": ("fftmoe.methods.fft_moe:FftMoe.aggregate",),
    "save the state": ("fftmoe.store:RunFolder.save_state",),
    "journal": ("fftmoe.rounds.journal:Journal.write",),
}
REST = "the rest"


class Timers:
    """Own seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[float] = []  # of each call that has not returned: what the calls within it took

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            start = now()
            self._open.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                taken = now() - start
                self.seconds[part] += taken - self._open.pop()
                if self._open:
                    self._open[-1] += taken

        return timed


@contextmanager
def timed(timers: Timers, parts: Mapping[str, tuple[str, ...]] = PARTS) -> Iterator[list[str]]:
    """Within the context every function of `parts` is timed; yields those that were not found."""
    with ExitStack() as stack:
        absent = []
        for part, targets in parts.items():
            for target in targets:
                if (found := _find(target)) is None:
                    absent.append(target)
                    continue
                owner, name, value = found
                if isinstance(value, property):
                    assert value.fget is not None
                    wrapped: Any = property(timers.around(part, value.fget))
                elif isinstance(value, classmethod):
                    wrapped = classmethod(timers.around(part, value.__func__))
                else:
                    wrapped = timers.around(part, value)
                stack.enter_context(mock.patch.object(owner, name, wrapped))
        yield absent


def _find(target: str) -> tuple[Any, str, Any] | None:
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
    except (ImportError, AttributeError):
        return None
    # From the class itself: `getattr` would call a property, and find what a class only inherits.
    value = vars(owner).get(name)
    return None if value is None else (owner, name, value)


class PartClock(Clock):
    """Also notes what each part has taken so far."""

    def __init__(self, timers: Timers) -> None:
        super().__init__()
        self._timers, self.seconds = timers, []

    def round_done(self, row: Mapping[str, Any]) -> None:
        """The times are those before the first round, and after each."""
        super().round_done(row)
        self.seconds.append(dict(self._timers.seconds))


def parts_of_a_round(folder: Path, output: Path) -> dict[str, Any]:
    """A whole run; mean seconds of a round by part, over the rounds that `steady` counts."""
    timers = Timers()
    clock = PartClock(timers)
    with timed(timers) as absent:
        run(load_recipe(str(folder / "recipe.yaml")), output, clock)
    first, last = 1, len(clock.times) - 2  # after round 1, after the last but one
    counted = last - first
    seconds = {
        part: (clock.seconds[last].get(part, 0.0) - clock.seconds[first].get(part, 0.0)) / counted for part in PARTS
    }
    total = (clock.times[last] - clock.times[first]) / counted
    return {"seconds": {**seconds, REST: total - sum(seconds.values())}, "absent": absent}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder) as output:
        print(json.dumps(parts_of_a_round(Path(folder), Path(output) / "run")), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
