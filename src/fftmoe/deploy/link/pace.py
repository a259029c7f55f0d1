"""Makes a node wait that asks too often, so that one site's requests leave room for those of the others.

A request that comes too soon is not refused but waits its turn, before its body is read. An honest node never waits: it
asks a few times a second, and sends the parts of an answer one after another.

A request may wait although its connection is gone. So only few of a key may wait: a connection has one request at a
time and a key has few connections, so what is beyond that waits for nobody.

Used by the SuperLink's process; this module needs the standard library only.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

AT_ONCE = 4  # requests of one key that are carried out together; a node has two: its loop, and its heartbeats
A_SECOND = 50.0  # requests of one key in the long run
MOST_WAITING = 16  # requests of one key that wait or are carried out: as many as it may have connections
SAVED = 500.0  # requests that a quiet key may send without waiting: an answer of 1 GiB has 206


class TooManyWait(Exception):
    """Reports that as many requests of a key wait as may."""


@dataclass
class Allowance:
    """Counts what one key may still ask without waiting; below 0 it is in debt."""

    left: float = SAVED
    since: float = 0.0
    running: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    waiting: int = 0

    def take(self, now: float) -> float:
        """Take one request; return the seconds that it must wait."""
        self.left = min(SAVED, self.left + (now - self.since) * A_SECOND) - 1.0
        self.since = now
        return max(0.0, -self.left / A_SECOND)


class Pace:
    """Keeps the turns of all keys. A key is proved before it has one, so there are as many as registered nodes.

    Args:
        clock: returns seconds since any fixed moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowances: dict[str, Allowance] = {}

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        """Wait until it is this key's turn, and keep it until the request has been answered.

        Raises:
            TooManyWait: `MOST_WAITING` requests of the key wait already.
        """
        own = self._allowances.setdefault(key, Allowance(since=self._clock()))
        if own.waiting >= MOST_WAITING:
            raise TooManyWait
        own.waiting += 1
        try:
            async with own.running:
                await asyncio.sleep(own.take(self._clock()))
                yield
        finally:
            own.waiting -= 1
