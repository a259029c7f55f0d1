"""Strangers at the door are few and make no site wait; a site's connections are bounded too."""

import errno
import io
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.deploy.link import bounded_log
from fftmoe.deploy.link import gate as gate_module
from fftmoe.deploy.link.bounded_log import keep_log
from fftmoe.deploy.link.gate import (
    AT_A_TIME,
    MOST_OF_ADDRESS,
    MOST_OF_KEY,
    MOST_STRANGERS,
    PROOF_SECONDS,
    Connection,
    Gate,
    GatedListener,
    Peer,
    listen,
)
from fftmoe.engines.base import Reply
from flooding import connections_to, endless_headers, resident_mib, soon_at_most
from flower_link import Authority, Link, open_link


class FakeConnection:
    """A connection that notes when it is cut off, and then leaves, as asyncio makes it leave."""

    def __init__(self, gate: Gate, peer: Peer) -> None:
        self.gate, self.peer, self.is_cut = gate, peer, False

    def cut(self) -> None:
        self.is_cut = True
        self.gate.leave(self.peer)


class Door:
    """A gate with a clock of its own, and everyone who has ever come."""

    def __init__(self) -> None:
        self.now = 0.0
        self.gate = Gate(lambda: self.now)
        self.all: list[FakeConnection] = []

    def come(self, host: str) -> FakeConnection:
        connection = FakeConnection(self.gate, (host, len(self.all)))
        self.all.append(connection)
        self.gate.enter(cast(Connection, connection))
        return connection

    def open(self) -> list[FakeConnection]:
        return [connection for connection in self.all if not connection.is_cut]


def test_of_too_many_strangers_the_oldest_is_cut_off():
    door = Door()
    first = [door.come("one") for _ in range(MOST_OF_ADDRESS)]
    assert not any(connection.is_cut for connection in first)
    door.come("one")
    assert [connection.is_cut for connection in first] == [True, *[False] * (MOST_OF_ADDRESS - 1)]
    others = [door.come(f"host-{i}") for i in range(MOST_STRANGERS)]
    assert door.gate.strangers == MOST_STRANGERS
    assert all(connection.is_cut for connection in first)
    assert not any(connection.is_cut for connection in others)


def test_a_stranger_that_takes_too_long_is_cut_off_when_another_comes():
    door = Door()
    slow = door.come("one")
    door.now = PROOF_SECONDS - 1
    quick = door.come("one")
    door.now = PROOF_SECONDS
    door.come("two")
    assert (slow.is_cut, quick.is_cut) == (True, False)


def test_a_connection_that_proved_a_key_stays_however_many_strangers_come():
    door = Door()
    site = door.come("one")
    door.gate.prove(site.peer, "key")
    door.gate.prove(site.peer, "key")  # with every request
    for i in range(3 * MOST_STRANGERS):
        door.come("one" if i % 2 else f"host-{i}")
        door.now += 1
    assert not site.is_cut
    assert door.gate.proved == 1


def test_of_too_many_connections_of_one_key_the_oldest_is_cut_off():
    door = Door()
    own = []
    for _ in range(MOST_OF_KEY + 3):
        own.append(door.come("one"))
        door.gate.prove(own[-1].peer, "key")
    other = door.come("one")
    door.gate.prove(other.peer, "another key")
    assert [connection.is_cut for connection in own] == [*[True] * 3, *[False] * MOST_OF_KEY]
    assert not other.is_cut


def test_nothing_is_kept_of_a_key_without_connections():
    door = Door()
    for key in ("one", "two"):
        connection = door.come("host")
        door.gate.prove(connection.peer, key)
        door.gate.leave(connection.peer)
    assert (door.gate.strangers, door.gate.proved, len(door.gate.by_key)) == (0, 0, 0)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["come", "prove", "leave", "wait"]), st.integers(0, 6), st.integers(0, 2**16)),
    min_size=1,
    max_size=300,
)


@given(ACTIONS, st.integers(1, 3))
def test_the_bounds_hold_whatever_happens(actions: list[tuple[str, int, int]], hosts: int):
    door = Door()
    for what, who, number in actions:
        known = door.all[number % len(door.all)] if door.all else None
        if what == "come":
            for _ in range(number % 90):
                door.come(f"host-{who % hosts}")
        elif what == "wait":
            door.now += who
        elif known is not None and what == "prove" and not known.is_cut:
            door.gate.prove(known.peer, f"key-{who}")
        elif known is not None and what == "leave":
            known.cut()
        assert door.gate.strangers <= min(MOST_STRANGERS, hosts * MOST_OF_ADDRESS)
        assert door.gate.proved <= 7 * MOST_OF_KEY
        assert door.gate.strangers + door.gate.proved == len(door.open())


@pytest.fixture
def listener() -> Iterator[GatedListener]:
    with GatedListener.of(socket.create_server(("127.0.0.1", 0)), Gate()) as own:
        yield own


def test_a_closed_connection_leaves_its_gate_and_one_that_is_cut_reads_its_end(listener: GatedListener):
    address = listener.getsockname()
    with socket.create_connection(address) as client, socket.create_connection(address) as other:
        accepted, peer = listener.accept()
        second, _ = listener.accept()
        assert peer == client.getsockname()
        assert listener.gate.strangers == 2
        accepted.close()
        accepted.close()
        assert listener.gate.strangers == 1
        cast(Connection, second).cut()
        other.settimeout(40.0)
        assert other.recv(1) == b""
        second.close()
    assert listener.gate.strangers == 0


def test_connections_are_accepted_a_few_at_a_time(listener: GatedListener):
    """So that no more than a few have memory before the gate has cut off those that are too many."""
    with ExitStack() as stack:
        for _ in range(AT_A_TIME + 1):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        for _ in range(AT_A_TIME):
            stack.enter_context(listener.accept()[0])
        with pytest.raises(BlockingIOError):
            listener.accept()
        stack.enter_context(listener.accept()[0])


def test_a_port_that_is_let_go_of_in_a_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    """As by the SuperLink of a server that was killed."""
    with socket.create_server(("127.0.0.1", 0)) as before:
        address = f"127.0.0.1:{before.getsockname()[1]}"
        timer = threading.Timer(0.3, before.close)
        timer.start()
        with listen(address) as after:
            assert f"127.0.0.1:{after.getsockname()[1]}" == address
        timer.join()
    monkeypatch.setattr(gate_module, "PORT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen on {address} .*choose another port"):
            listen(address)


@pytest.mark.parametrize(
    ("address", "family"),
    [("127.0.0.1:7", socket.AF_INET), ("[::1]:7", socket.AF_INET6), ("localhost:7", socket.AF_INET)],
)
def test_only_a_port_in_use_is_waited_for(monkeypatch: pytest.MonkeyPatch, address: str, family: int):
    """Another error will not pass, and whoever starts the server is told at once."""
    asked: list[tuple[Any, ...]] = []

    def refuse(place: tuple[str, int], *, family: int) -> socket.socket:
        asked.append((*place, family))
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(OSError, match=r"cannot listen on .* \(Permission denied\)"):
        listen(address)
    assert asked == [(address.rpartition(":")[0].strip("[]"), 7, family)]


# The log


def logged(tmp_path: Path, output: bytes) -> dict[str, bytes]:
    keep_log(cast(Any, io.BytesIO(output)), tmp_path / "a.log").join()
    return {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_log_is_bounded_whatever_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounded_log, "MOST_FILE_BYTES", 3001)
    files = logged(tmp_path, b"".join(b"line %d %s\n" % (i, b"x" * (i % 97)) for i in range(5003)))
    assert files.keys() == {"a.log", "a.log.1", "a.log.2", "a.log.3"}
    assert all(len(content) <= 3001 for content in files.values())
    assert b"line 5002 " in files["a.log"].splitlines()[-1]


@given(st.binary(max_size=3000))
def test_a_log_holds_harmless_short_lines_with_times(tmp_path_factory: pytest.TempPathFactory, output: bytes):
    content = logged(tmp_path_factory.mktemp("log"), output).get("a.log", b"").decode()
    for line in content.split("\n")[:-1]:
        assert line[:4].isdecimal()
        assert len(line) < 1100
        assert line.replace("\t", "").isprintable() or not any(
            c < " " or "\x7f" <= c < "\xa0" for c in line if c != "\t"
        )


# Over the network


@contextmanager
def idle_strangers(address: str, number: int, context: ssl.SSLContext | None) -> Iterator[list[socket.socket]]:
    """Connections that never say anything, or after their handshake; those that are cut off are replaced by nobody."""
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        found = []
        for _ in range(number):
            try:
                plain = stack.enter_context(socket.create_connection((host, int(port)), 40.0))
                one = plain if context is None else context.wrap_socket(plain, server_hostname="localhost")
            except OSError:
                continue  # cut off in its handshake
            found.append(stack.enter_context(one))
        yield found


@pytest.fixture(scope="module")
def four(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """A SuperLink and four nodes that work."""
    with open_link(authority, tmp_path_factory.mktemp("four"), "abcd") as opened:
        yield opened


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True], ids=["without a handshake", "with a handshake"])
def test_two_thousand_idle_strangers_keep_no_site_out(four: Link, attacks: list[dict[str, Any]], secure: bool):
    """They come from the sites' own address; four sites go on, and the server's connections and memory are bounded."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))
    context = ssl.create_default_context(cafile=four.endpoint.ca) if secure else None
    before = resident_mib(four.process.pid)
    with idle_strangers(four.endpoint.fleet, 2000, context):
        for _ in range(3):
            answers = list(four.engine().run_clients([[(client, b"ab")] for client in range(4)]))
            assert [type(answer) for answer in answers] == [Reply] * 4
        allowed = MOST_STRANGERS + 4 * MOST_OF_KEY
        held = soon_at_most(lambda: connections_to(four.endpoint.fleet), allowed)
        assert held <= allowed
        grown = resident_mib(four.process.pid) - before
        assert grown < 384  # without a bound on what is accepted at once: 600
    said = "after a handshake" if secure else "without a handshake"
    attacks.append(of_stranger(f"2,000 idle connections {said}, from the sites' own address", held, grown))


def of_stranger(attack: str, held: int, grown: float) -> dict[str, Any]:
    """A row of the table of attacks."""
    return {
        "attacker": "stranger",
        "attack": attack,
        "learns": "nothing",
        "victim": "rounds end with the four sites",
        "connections": held,
        "MiB": round(grown),
    }


@pytest.mark.network
@pytest.mark.slow
def test_headers_that_never_end_keep_no_site_out(authority: Authority, attacks: list[dict[str, Any]], tmp_path: Path):
    """A line each fifth of a second is no silence, but proves no key: such a connection stays a stranger's."""
    with open_link(authority, tmp_path, "abcd") as link:  # of its own, whose memory nobody has used before
        held, before, ends = 0, resident_mib(link.process.pid), time.monotonic() + PROOF_SECONDS + 5
        with endless_headers(link.endpoint, 400) as counts:
            while time.monotonic() < ends:
                answers = list(link.engine().run_clients([[(client, b"ab")] for client in range(4)]))
                assert [type(answer) for answer in answers] == [Reply] * 4
                held = max(held, connections_to(link.endpoint.fleet))
            grown = resident_mib(link.process.pid) - before
    allowed = MOST_STRANGERS + 4 * MOST_OF_KEY
    assert held <= allowed
    assert counts["cut off"] >= 400 - MOST_OF_ADDRESS  # they have one address
    assert grown < 384
    attacks.append(of_stranger("400 connections whose headers never end, a line each .2 s", held, grown))
