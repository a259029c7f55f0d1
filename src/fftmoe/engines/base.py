"""How clients are run. An engine moves bytes; it knows nothing of the mathematics."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

Handler = Callable[[bytes], bytes]
"""A client: the server's message in, the client's message out."""

Build = Callable[[], Handler]
"""Makes a handler in whichever process it will run; must be picklable for worker processes."""


class Engine(Protocol):
    """Runs the clients of a round."""

    def run_clients(self, requests: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes, float]]:
        """Deliver `(client_id, message)`; yield `(client_id, reply, seconds)` in the order of the requests.

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
