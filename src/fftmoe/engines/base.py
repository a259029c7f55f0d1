"""How clients are run. An engine moves bytes; it knows nothing of the mathematics."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

Handler = Callable[[Sequence[bytes]], Sequence[bytes]]
"""Clients that are run together: the server's messages in, the clients' messages out, in the same order."""

Build = Callable[[], Handler]
"""Makes a handler in whichever process it will run; must be picklable for worker processes."""


class Engine(Protocol):
    """Runs the clients of a round."""

    def run_clients(self, groups: Sequence[Sequence[tuple[int, bytes]]]) -> Iterator[tuple[int, bytes, float]]:
        """Deliver `(client_id, message)`, a group at a time; yield `(client_id, reply, seconds)` in their order.

        The seconds of a group are divided equally among its clients.

        Raises:
            RunError: a client failed; the message names it.
        """
        ...

    def close(self) -> None:
        """End worker processes and free what the engine holds."""
        ...

    def peak_rss_mib(self) -> float:
        """Largest resident memory so far, summed over this process and its workers."""
        ...
