"""Leaves out of a round the changes that are far longer than those of most others (`server/lengths.py`)."""

import math
from collections.abc import Iterable, Iterator, Sequence

from fftmoe.engines.base import Fault
from fftmoe.records import ClientUpdate
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.expectation import Expectation
from fftmoe.server.lengths import MOST_TIMES, longest_allowed, update_length, usual_length

HELD = 32  # updates that are held until they can be compared, so that memory does not grow with the cohort
ALLOWED_LENGTH = f"{MOST_TIMES:g} times what is usual; federation.max_update_norm: none allows any"


class AnswerLengths:
    """Holds the lengths of the answers to one plan.

    They are looked at twice. When an answer arrives, those that are too long among all so far fill no quota. When the
    answers are in order, the verdict follows from their order alone, whichever arrived first: the first `HELD` are
    judged together, each later one with all before it.

    Args:
        task: of the plan. ledger: knows the lengths of the last rounds; what is too long is noted there as rejected.
    """

    def __init__(self, task: str, ledger: Ledger) -> None:
        self._task, self._ledger = task, ledger
        self._earlier = tuple(ledger.lengths) if task == "train" else ()
        self._lengths: dict[int, float] = {}
        self._valid = 0

    def arrived(self, update: ClientUpdate, expected: Expectation) -> int:
        """Enter a valid update; return by how many it changes the number of those that may count."""
        if not expected.compared:
            return 1
        self._lengths[update.client_id] = update_length(update, self._task)
        lengths, before = [*self._lengths.values()], self._valid
        bound = self._bound(lengths)
        self._valid = sum(length <= bound for length in lengths)
        return self._valid - before

    def within(self, updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
        """Yield the updates that are not too long, in the same order; note the others."""
        seen: list[float] = []
        held: list[ClientUpdate] = []
        kept: list[float] = []
        for update in updates:
            if update.client_id not in self._lengths:  # nothing is compared in this run
                yield update
                continue
            seen.append(self._lengths[update.client_id])
            held.append(update)
            if len(seen) >= HELD:
                yield from self._judged(held, seen, kept)
                held = []
        yield from self._judged(held, seen, kept)
        if self._task == "train" and (usual := usual_length(kept)) is not None:
            self._ledger.usual(usual)

    def _judged(self, held: Sequence[ClientUpdate], seen: Sequence[float], kept: list[float]) -> Iterator[ClientUpdate]:
        bound = self._bound(seen)
        for update in held:
            length = self._lengths[update.client_id]
            if length <= bound:
                kept.append(length)
                yield update
            else:
                reason = f"the norm of what it sent is {length:.4g}; at most {bound:.4g} is allowed, {ALLOWED_LENGTH}"
                self._ledger.note(Fault(update.client_id, "rejected", reason))

    def _bound(self, lengths: Sequence[float]) -> float:
        bound = longest_allowed(lengths, self._earlier)
        return math.inf if bound is None else bound
