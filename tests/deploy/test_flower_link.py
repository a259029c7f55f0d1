"""Messages between a server, its SuperLink and its nodes on this machine: what arrives, and what is a fault."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.superlink.federation import NoOpFederationManager
from flwr.supernode.fleet_http_client import FleetHttpClient

from fftmoe.deploy.link.link import open_grid
from fftmoe.deploy.link.link_state import LeanLinkState
from fftmoe.deploy.link.superlink import Endpoint
from fftmoe.engines.base import Fault, Reply
from fftmoe.engines.flower import FlowerEngine, ask
from flower_link import (
    JOB,
    SOON,
    Authority,
    Link,
    activation,
    connected,
    free_address,
    make_key,
    node_here,
    publics,
    signing,
    soon,
    superlink,
)
from stored_messages import stored_message

pytestmark = [pytest.mark.network, pytest.mark.slow]


def test_messages_go_and_come_back(link: Link):
    engine = link.engine()
    assert engine.absent() == set()
    profiles = ask(link.grid, list(link.nodes.values()), JOB, SOON)
    assert profiles == {node: {"site": name} for name, node in link.nodes.items()}
    large = os.urandom(11 * 2**20)  # three of Flower's chunks
    for messages in ((b"ab", b"cd"), (b"", b"ef"), (large, large[::-1])):
        answers = list(engine.run_clients([[(client, message)] for client, message in enumerate(messages)]))
        assert all(isinstance(answer, Reply) for answer in answers)
        assert {a.client_id: a.message for a in answers if isinstance(a, Reply)} == {
            client: message[::-1] for client, message in enumerate(messages)
        }


def test_what_a_node_raises_is_a_fault_and_the_node_goes_on(link: Link):
    engine = link.engine()
    answers = sorted(engine.run_clients([[(0, b"raise")], [(1, b"ab")]]), key=lambda answer: answer.client_id)
    code = "its training or evaluation failed (code training); the reason is in its own log"
    assert answers[0] == Fault(0, "failed", code)
    assert isinstance(answers[1], Reply)
    assert [type(answer) for answer in engine.run_clients([[(0, b"ab")]])] == [Reply]


def test_a_node_trains_and_says_what_it_is_and_nothing_else(link: Link):
    message = Message(RecordDict(), dst_node_id=link.nodes["a"], message_type="evaluate", ttl=SOON)
    [identity] = link.grid.push_messages([message])
    answers: list[Message] = []
    soon(lambda: bool(answers.extend(link.grid.pull_messages([identity])) or answers))
    assert answers[0].error.reason == "this node answers messages of the types train and query only"


def announce(client: FleetHttpClient, node: Node, answer: Message, header: Message) -> PushMessagesResponse:
    """Say that an answer will come, and who it is from."""
    header.metadata.__dict__["_message_id"] = answer.object_id
    request = PushMessagesRequest(
        node=node, messages_list=[message_to_proto(header)], message_object_trees=[get_object_tree(answer)]
    )
    return client.PushMessages(request)


def say_and_leave(client: FleetHttpClient, node: Node, asked: Message) -> None:
    answer = Message(RecordDict(), reply_to=asked)
    announce(client, node, answer, answer)


def lie(client: FleetHttpClient, node: Node, asked: Message) -> None:
    """The announcement is in order, and what follows is in the name of another node."""
    header, answer = Message(RecordDict(), reply_to=asked), Message(RecordDict(), reply_to=asked)
    answer.metadata.__dict__["_src_node_id"] += 1
    found = announce(client, node, answer, header)
    for object_id, part in get_all_nested_objects(answer).items():
        push = PushObjectRequest(
            node=node,
            run_id=asked.metadata.run_id,
            session_id=found.session_id,
            object_id=object_id,
            object_content=part.deflate(),
        )
        assert client.PushObject(push).stored


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (say_and_leave, Fault(1, "late", "no answer within 10 s")),  # Flower would wait for it for three minutes
        (lie, Fault(1, "failed", "its answer cannot be read")),
    ],
)
def test_a_site_that_answers_badly_harms_only_itself(
    answer: Callable[[FleetHttpClient, Node, Message], None], fault: Fault, authority: Authority, tmp_path: Path
):
    endpoint, keys = Endpoint(free_address(), *authority), {"good": make_key(), "bad": make_key()}

    def serve() -> None:
        while not (found := client.PullMessages(PullMessagesRequest(node=node))).messages_list:
            time.sleep(0.05)
        answer(client, node, message_from_proto(found.messages_list[0]))

    with (
        superlink(endpoint, tmp_path),
        node_here(endpoint, keys["good"], tmp_path / "good"),
        open_grid(endpoint, publics(keys)) as (grid, nodes),
        signing(endpoint, keys["bad"]) as client,
    ):
        node = Node(node_id=client.ActivateNode(activation(keys["bad"])).node_id)
        soon(lambda: connected(grid, nodes) == {"good", "bad"})
        thread = threading.Thread(target=serve)
        thread.start()
        engine = FlowerEngine(grid, dict(enumerate(nodes.values())), JOB, 10.0)
        answers = sorted(engine.run_clients([[(0, b"ab")], [(1, b"cd")]]), key=lambda answer: answer.client_id)
        thread.join()
    assert isinstance(answers[0], Reply)
    assert answers[1:] == [fault]
    assert not (tmp_path / "good").exists()  # a node that takes its leave has nothing to take back


def test_what_nobody_will_fetch_does_not_stay_in_memory():
    store = InMemoryObjectStore()
    state = LeanLinkState(NoOpFederationManager(), store)
    node = state.create_node("owner", "owner", b"key", 30.0)
    assert state.activate_node(node, 30.0)
    run = state.create_run("id", "1.0.0", "hash", {}, "@none/default", None, None, "flwr-serverapp")
    keep = state.create_node("owner", "owner", b"other key", 30.0)
    assert state.activate_node(keep, 30.0)
    for receiver in (node, keep):
        message = stored_message(run, receiver)
        state.store_message_and_object_tree(message, get_object_tree(message), state.start_session(run))
    before = len(store)
    assert state.deactivate_node(node)
    assert (before, len(store), state.num_message_ins()) == (3, 2, 1)  # the messages share their empty content
