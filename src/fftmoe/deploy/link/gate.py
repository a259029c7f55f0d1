"""Bounds the connections that a listener holds, before TLS and before any key.

Whoever connects is a stranger until a request of the connection has proved a key. Strangers are few: when there are too
many, of one address or in all, or when one takes too long, the oldest is cut off. A site proves its key within a moment
of its connection, so strangers that wait, trickle or never say anything make no site wait. Nobody is refused for an
address, because sites and strangers can share one.

Used by the SuperLink's process, which must not load torch; this module needs the standard library only.
"""

import errno
import socket
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Peer = tuple[str, int]
"""The host and the port of the other end of a connection."""

MOST_STRANGERS = 256  # connections that have proved nothing, in all
MOST_OF_ADDRESS = 64  # and of one address
MOST_OF_KEY = 16  # connections that proved the same key; a site needs a few
AT_A_TIME = 32  # connections that are accepted before those of before are looked after
PORT_SECONDS = 5.0  # for whatever uses a port to let go of it
PROOF_SECONDS = 30.0  # for a stranger's handshake and its first request


class Gate:
    """Keeps account of the connections of its listeners and cuts off strangers that are too many or too slow.

    Args:
        clock: returns seconds since any fixed moment.

    Attributes:
        by_key: the connections that have proved each key, the oldest first; a key without connections has no entry.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._strangers: OrderedDict[Peer, tuple[float, Connection]] = OrderedDict()  # the oldest first
        self.by_key: defaultdict[str, OrderedDict[Peer, Connection]] = defaultdict(OrderedDict)

    @property
    def strangers(self) -> int:
        """Return how many connections have proved nothing yet."""
        return len(self._strangers)

    @property
    def proved(self) -> int:
        """Return how many connections have proved a key."""
        return sum(map(len, self.by_key.values()))

    def enter(self, connection: "Connection") -> None:
        """Enter a new connection; make room for it among the strangers."""
        self._cut_slow()
        of_address = [peer for peer in self._strangers if peer[0] == connection.peer[0]]
        if len(of_address) >= MOST_OF_ADDRESS:
            self._cut(of_address[0])
        if len(self._strangers) >= MOST_STRANGERS:
            self._cut(next(iter(self._strangers)))
        self._strangers[connection.peer] = (self._clock(), connection)

    def prove(self, peer: Peer, key: str) -> None:
        """Note that a request of this connection has proved this key: the connection is no stranger's any more.

        Of too many connections of one key the oldest is cut off.
        """
        found = self._strangers.pop(peer, None)
        if found is None:
            return  # it has proved its key before, or has just ended
        own = self.by_key[key]
        own[peer] = found[1]
        if len(own) > MOST_OF_KEY:
            _, oldest = own.popitem(last=False)
            oldest.cut()

    def leave(self, peer: Peer) -> None:
        """Note that a connection has ended."""
        self._strangers.pop(peer, None)
        for key, own in list(self.by_key.items()):
            own.pop(peer, None)
            if not own:
                del self.by_key[key]

    def _cut_slow(self) -> None:
        """Cut off the strangers that have proved nothing for too long."""
        while self._strangers:
            peer, (since, _) = next(iter(self._strangers.items()))
            if self._clock() - since < PROOF_SECONDS:
                return
            self._cut(peer)

    def _cut(self, peer: Peer) -> None:
        _, connection = self._strangers.pop(peer)
        connection.cut()


class Connection(socket.socket):
    """Wraps an accepted connection, which tells its gate when it ends."""

    gate: Gate | None = None
    peer: Peer = ("", 0)

    @classmethod
    def of(cls, accepted: socket.socket, address: Any, gate: Gate) -> "Connection":
        """Return the same connection, which this object now owns."""
        made = cls(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        made.gate, made.peer = gate, (str(address[0]), int(address[1]))
        return made

    def cut(self) -> None:
        """End the connection: whoever serves it reads its end."""
        with suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See `socket.socket.close`."""
        if self.gate is not None:
            self.gate.leave(self.peer)
            self.gate = None
        super().close()


class GatedListener(socket.socket):
    """Wraps a listening socket whose connections pass a gate; asyncio calls its `accept`.

    asyncio would accept all that wait, up to 2,048, and give each a buffer of 256 KiB before it notices that most have
    been cut off. So now and then this says that none is waiting, and is asked again when those have been looked after.
    """

    gate: Gate
    taken = 0

    @classmethod
    def of(cls, listener: socket.socket, gate: Gate) -> "GatedListener":
        """Return the same listener, which this object now owns."""
        made = cls(listener.family, listener.type, listener.proto, fileno=listener.detach())
        made.gate = gate
        return made

    def accept(self) -> tuple[socket.socket, Any]:
        """See `socket.socket.accept`.

        Raises:
            BlockingIOError: no connection is waiting, or enough have been accepted for now.
        """
        if self.taken >= AT_A_TIME:
            self.taken = 0
            raise BlockingIOError
        self.taken += 1
        accepted, address = super().accept()
        connection = Connection.of(accepted, address, self.gate)
        connection.setblocking(False)
        self.gate.enter(connection)
        return connection, address


def host_and_port(address: str) -> tuple[str, int]:
    """Return the two parts of host:port; an IPv6 address stands in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _open_port(address: str) -> socket.socket:
    """Return a listener; the SuperLink of a server that was killed just now has a moment to end."""
    host, port = host_and_port(address)
    ends = time.monotonic() + PORT_SECONDS
    while True:
        try:
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > ends:
                raise
        time.sleep(0.1)


def listen(address: str) -> socket.socket:
    """Return a listener on host:port.

    Raises:
        OSError: it cannot be opened; the message says why.
    """
    try:
        listener = _open_port(address)
    except OSError as error:
        raise OSError(
            f"it cannot listen on {address} ({error.strerror}); choose another port or host, or end what uses it"
        ) from error
    # With this protocol number asyncio turns off Nagle's algorithm, which would delay each answer by 40 ms.
    return socket.socket(listener.family, listener.type, socket.IPPROTO_TCP, fileno=listener.detach())
