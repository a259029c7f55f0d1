"""Defines the interface of an engine: groups of messages in, one reply or fault for each client out."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Handler = Callable[[Sequence[bytes]], Sequence[bytes]]
"""Answers for clients that run together: the server's messages in, the clients' messages out, in the same order."""

Build = Callable[[], Handler]
"""Makes a handler in the process where it will run; it must be picklable for worker processes."""

Group = Sequence[tuple[int, bytes]]
"""Clients that run together: each one's id, and the server's message for it."""


class Reply(NamedTuple):
    """Holds a client's answer, and the seconds that it took; the seconds of a group are divided equally."""

    client_id: int
    message: bytes
    seconds: float


class Fault(NamedTuple):
    """Reports a client that contributes nothing to the round.

    Attributes:
        kind: one of
            `failed`: the client reported that it failed.
            `late`: it is a straggler, which did not answer before the deadline.
            `absent`: it was not connected when the round began.
            `spare`: the round had enough answers before it answered.
            `stale`: it answered after its round was over, or answered twice. The current round continues unchanged.
            `rejected`: its answer failed validation. No engine reports this kind, because engines do not read answers.
        reason: a sentence for people.
    """

    client_id: int
    kind: str
    reason: str


@dataclass
class Quota:
    """Counts how many more valid updates a round waits for; None means the updates of all its clients.

    Engines do not read answers, so they cannot know which are valid: whoever screens an answer counts it here before
    asking for the next one. An invalid answer does not count, however quickly it comes.
    """

    missing: int | None = None

    @property
    def is_met(self) -> bool:
        """Return whether the round waits for no more."""
        return self.missing is not None and self.missing <= 0

    def count(self, number: int = 1) -> None:
        """Count a valid update that has arrived; a negative number takes back what turned out to be invalid."""
        if self.missing is not None:
            self.missing -= number


class Engine(Protocol):
    """Runs the clients of a round."""

    @property
    def reliable(self) -> bool:
        """Return whether every client answers or the run ends, so that a round needs no spare clients."""
        ...

    def absent(self) -> Collection[int]:
        """Return the clients that are not connected now."""
        ...

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        """Deliver the messages, one group at a time; yield one reply or fault for each client, in any order.

        Args:
            quota: once it is met, the engine stops waiting; None waits for all clients.

        Raises:
            RunError: the run cannot continue; the message names the cause.
        """
        ...

    def close(self) -> None:
        """End worker processes and release all resources."""
        ...

    def peak_rss_mib(self) -> float:
        """Return the peak resident memory so far in MiB, summed over this process and its workers on this machine."""
        ...
