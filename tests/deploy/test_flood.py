"""A registered site that floods harms only itself: the rounds end with the others, and the server stays bounded."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.superlink.federation import NoOpFederationManager

from fftmoe.deploy.link import link_state
from fftmoe.deploy.link.gate import MOST_OF_KEY, MOST_STRANGERS
from fftmoe.deploy.link.link_state import CALLER, LeanLinkState, Refused
from fftmoe.deploy.link.pace import A_SECOND, AT_ONCE, MOST_WAITING, SAVED, Allowance, Pace, TooManyWait
from fftmoe.engines.base import Quota, Reply
from flooding import DOES, KINDS, THREADS, chunk, connections_to, flooding, resident_mib, soon_at_most
from flower_link import Authority, Link, make_key, node_here, open_link
from stored_messages import stored_message

Rows = list[dict[str, Any]]


def test_a_key_that_asks_too_often_waits_and_a_quiet_one_does_not():
    busy, quiet = Allowance(), Allowance()
    waits = [busy.take(1.0) for _ in range(int(SAVED) + 100)]
    assert waits[: int(SAVED)] == [0.0] * int(SAVED)
    assert waits[-1] == pytest.approx(100 / A_SECOND)
    assert busy.take(3.0 + 100 / A_SECOND) == 0.0  # it has waited that long
    assert [quiet.take(0.2 * n) for n in range(5000)] == [0.0] * 5000


def test_few_requests_of_a_key_run_at_once_and_each_has_its_turn():
    async def flood() -> tuple[int, int]:
        pace, running, most, done = Pace(), 0, 0, 0

        async def one(key: str) -> None:
            nonlocal running, most, done
            async with pace.turn(key):
                running, most = running + 1, max(most, running + 1)
                await asyncio.sleep(0.001)
                running, done = running - 1, done + 1

        await asyncio.gather(*(one("key") for _ in range(MOST_WAITING)))
        return most, done

    assert asyncio.run(flood()) == (AT_ONCE, MOST_WAITING)


def test_no_more_requests_of_a_key_wait_than_it_has_connections():
    """A request waits on although its connection was cut off, and holds what came with it."""

    async def flood() -> tuple[Counter[str], Counter[str]]:
        pace, before, after = Pace(), Counter[str](), Counter[str]()
        done = asyncio.Event()

        async def one(key: str, counts: Counter[str]) -> None:
            try:
                async with pace.turn(key):
                    await done.wait()
                    counts["answered"] += 1
            except TooManyWait:
                counts["refused"] += 1

        waiting = [asyncio.create_task(one("busy", before)) for _ in range(1000)]
        waiting.append(asyncio.create_task(one("quiet", before)))
        await asyncio.sleep(0.01)
        done.set()
        await asyncio.gather(*waiting)
        await one("busy", after)  # it has its turn again
        return before, after

    before, after = asyncio.run(flood())
    assert before == {"refused": 1000 - MOST_WAITING, "answered": MOST_WAITING + 1}
    assert after == {"answered": 1}
    assert MOST_WAITING == MOST_OF_KEY


def test_a_turn_ends_when_its_request_fails():
    async def fail(pace: Pace) -> None:
        async with pace.turn("key"):
            raise OSError("cut off")

    async def all_fail() -> None:
        pace = Pace()
        for _ in range(3 * AT_ONCE):
            with pytest.raises(OSError, match="cut off"):
                await asyncio.wait_for(fail(pace), 5.0)

    asyncio.run(all_fail())


# What a node may store


class Asked(NamedTuple):
    state: LeanLinkState
    run: int
    node: int
    other: int
    request: Message

    def announce(self, message: Message, tree: ObjectTree) -> list[str]:
        session = self.state.start_session(self.run)
        return self.state.store_message_and_object_tree(message, tree, session)[1]

    @property
    def sessions(self) -> int:
        return len(self.state._object_push_sessions)


@pytest.fixture
def asked() -> Iterator[Asked]:
    """A node that has been sent a request; what follows is in its name."""
    state = LeanLinkState(NoOpFederationManager(), InMemoryObjectStore())
    nodes = [state.create_node("owner", "owner", key, 30.0) for key in (b"key", b"other key")]
    assert all(state.activate_node(node, 30.0) for node in nodes)
    run = state.create_run("id", "1.0.0", "hash", {}, "@none/default", None, None, "flwr-serverapp")
    request = stored_message(run, nodes[0])
    state.store_message_and_object_tree(request, get_object_tree(request), state.start_session(run))
    token = CALLER.set(nodes[0])
    yield Asked(state, run, nodes[0], nodes[1], request)
    CALLER.reset(token)


def answer_to(request: Message) -> Message:
    answer = Message(RecordDict(), reply_to=request)
    answer.metadata.__dict__["_message_id"] = answer.object_id
    return answer


def with_children(root: str, names: list[str]) -> ObjectTree:
    return ObjectTree(object_id=root, children=[ObjectTree(object_id=name) for name in names])


def test_a_node_announces_one_answer_with_the_same_objects_each_time(asked: Asked):
    answer, before = answer_to(asked.request), asked.sessions
    tree = get_object_tree(answer)
    wanted = asked.announce(answer, tree)
    assert asked.announce(answer, tree) == wanted  # again, because its response was lost
    stored = len(asked.state.object_store)
    for number in range(50):
        with pytest.raises(Refused, match="announced with other objects before"):
            asked.announce(answer, with_children(tree.object_id, [chunk(number)[0]]))
    assert len(asked.state.object_store) == stored
    assert asked.sessions <= before + 1
    another = answer_to(asked.request)
    assert asked.announce(another, get_object_tree(another)) == []
    assert asked.sessions <= before + 1


def test_a_node_answers_in_its_own_name_and_asks_nobody(asked: Asked):
    before = asked.sessions
    foreign = answer_to(asked.request)
    foreign.metadata.__dict__["_src_node_id"] = asked.other
    request = stored_message(asked.run, asked.other)
    for message in (foreign, request):
        with pytest.raises(Refused, match="sent what is no answer of its own"):
            asked.announce(message, get_object_tree(message))
    answer = answer_to(asked.request)
    with pytest.raises(Refused, match="not the root of its objects"):
        asked.announce(answer, with_children(chunk(1)[0], []))
    assert asked.sessions == before


def test_an_answer_that_the_server_has_is_stored_no_more(asked: Asked):
    answer = answer_to(asked.request)
    asked.announce(answer, get_object_tree(answer))
    asked.state.get_message_res({asked.request.metadata.message_id}, asked.run)
    asked.state.object_store.delete(answer.metadata.message_id)
    stored = len(asked.state.object_store)
    assert asked.announce(answer, with_children(answer.metadata.message_id, [chunk(3)[0]])) == []
    assert len(asked.state.object_store) == stored


def test_what_a_node_stores_is_bounded_until_it_is_fetched(asked: Asked, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(link_state, "MOST_STORED_BYTES", 11 * 2**20)
    answer, parts = answer_to(asked.request), [chunk(number) for number in range(3)]
    root = hashlib.sha256(b"root").hexdigest()
    answer.metadata.__dict__["_message_id"] = root
    session = asked.state.start_session(asked.run)
    tree = with_children(root, [name for name, _ in parts])
    asked.state.store_message_and_object_tree(answer, tree, session)
    store = partial(asked.state.store_object, asked.run, session)
    assert [store(*part) for part in parts[:2]] == [True, True]
    with pytest.raises(Refused, match="has more than 11534336 bytes stored"):
        store(*parts[2])
    CALLER.set(asked.other)  # the limit is of a node
    assert store(*parts[2])
    CALLER.set(asked.node)
    asked.state.object_store.delete(root)
    assert not asked.state.store_object(asked.run, session, *parts[2])  # nobody waits for it, and nothing is refused


# Over the network


class Four(NamedTuple):
    link: Link
    key: Path  # of the fifth site


@pytest.fixture(scope="module")
def four(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Four]:
    """A SuperLink, four nodes that work, and the key of a fifth one."""
    folder, key = tmp_path_factory.mktemp("four"), make_key()
    (folder / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    with open_link(authority, folder, "abcd", {"flood": key}) as opened:
        yield Four(opened, folder / "key")


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_registered_site_that_floods_keeps_no_other_site_out(four: Four, attacks: Rows, kind: str):
    """Rounds of five go on with the four others, and the server's memory and connections are bounded."""
    link, held = four.link, 0
    before = resident_mib(link.process.pid)
    with flooding(link.endpoint, four.key, kind, link.nodes["a"]) as counts:
        for _ in range(2):
            quota, clients = Quota(4), list[int]()
            for answer in link.engine().run_clients([[(client, b"ab")] for client in range(5)], quota):
                if isinstance(answer, Reply):
                    clients.append(answer.client_id)
                    quota.count()
            assert sorted(clients) == [0, 1, 2, 3]
            held = max(held, connections_to(link.endpoint.fleet))
            assert held <= MOST_STRANGERS + 5 * MOST_OF_KEY
        grown = resident_mib(link.process.pid) - before
    assert sum(counts.values()) > 0
    assert counts["objects stored"] <= 1
    assert grown < 128
    assert soon_at_most(lambda: connections_to(link.endpoint.fleet), 16) <= 16
    attacks.append(of_site(f"{THREADS} threads: {DOES[kind]}", "rounds end with the four others", held, grown))


def of_site(attack: str, victim: str, held: int, grown: float) -> dict[str, Any]:
    """A row of the table of attacks."""
    return {
        "attacker": "site",
        "attack": attack,
        "learns": "nothing",
        "victim": victim,
        "connections": held,
        "MiB": round(grown),
    }


@pytest.mark.network
@pytest.mark.slow
def test_two_processes_with_one_key_are_one_site(four: Four, attacks: Rows, tmp_path: Path):
    """The second one takes requests of the first, and answers in its turn: a round counts one answer of the key.

    Other sites notice nothing. If the second process takes a request and is silent, only this key's client is late.
    """
    link, held, most = four.link, 0, 0
    key = tmp_path / "key"
    key.write_bytes(link.keys["a"].private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    list(link.engine().run_clients([[(client, b"ab")] for client in range(4)]))
    before = resident_mib(link.process.pid)
    for second in (node_here(link.endpoint, link.keys["a"], tmp_path / "again"), flooding_as(link, key)):
        with second:
            for _ in range(3):
                answers = list(link.engine(10.0).run_clients([[(client, b"ab")] for client in range(4)]))
                clients = [answer.client_id for answer in answers if isinstance(answer, Reply)]
                assert sorted(set(clients)) == sorted(clients)
                assert {1, 2, 3} <= set(clients)
                held, most = max(held, connections_to(link.endpoint.fleet)), max(most, clients.count(0))
    grown = resident_mib(link.process.pid) - before
    assert most == 1
    assert held <= MOST_STRANGERS + 5 * MOST_OF_KEY
    assert grown < 128
    victim = "rounds end with the three others; the key counts at most once in each"
    attacks.append(of_site("two processes with one key, one takes requests and is silent", victim, held, grown))


def flooding_as(link: Link, key: Path) -> Any:
    """A second process with the key of a node that works, which asks for its requests and answers none."""
    return flooding(link.endpoint, key, "pull", link.nodes["b"], link.nodes["a"])
