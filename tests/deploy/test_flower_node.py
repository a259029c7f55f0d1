"""A site's node keeps running and does nothing unexpected, whatever its server answers."""

import ssl
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse, PushObjectRequest, PushObjectResponse
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.deploy.link import line as flower_line
from fftmoe.deploy.link import node as flower_node
from fftmoe.deploy.link.objects import MOST_OBJECTS
from fftmoe.errors import RunError

Answer = Callable[[httpx.Request], httpx.Response]
LOOKS = 20  # after which the node is stopped


class Server:
    """Accepts the node, and gives prepared answers to its requests for messages."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers, self.asked = list(answers), [""]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.url.host}{request.url.path}")
        if request.url.path.endswith("activate-node"):
            return proto(ActivateNodeResponse(node_id=5))
        if request.url.path.endswith("pull-messages") and self._answers:
            return self._answers.pop(0)(request)
        if request.url.path.endswith("pull-object"):
            return proto(PullObjectResponse(object_found=True, object_available=True, object_content=b"x" * 2**20))
        return httpx.Response(200, content=b"")


def proto(message: Any) -> httpx.Response:
    return httpx.Response(200, content=message.SerializeToString())


def endless() -> Iterator[bytes]:
    while True:
        yield bytes(2**22)


class Endless(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        return endless()


def serve(answers: Sequence[Answer], patch: pytest.MonkeyPatch, folder: Path) -> tuple[Server, list[str]]:
    """Until the node has looked often enough; the server, and what the node said."""
    server, said, looks = Server(answers), [], []

    def pause(self: Any, seconds: float) -> None:
        looks.append(seconds)
        if len(looks) > LOOKS:
            raise flower_line.Stopped

    def never(message: Message, context: Context) -> Message:
        raise AssertionError("no message of these is one")

    patch.setattr(httpx, "Client", partial(httpx.Client, transport=httpx.MockTransport(server)))
    patch.setattr(ssl.SSLContext, "load_verify_locations", lambda self, *places, cadata="": None)
    patch.setattr(flower_line.ServerLine, "pause", pause)
    app, key = ClientApp(), ec.generate_private_key(ec.SECP384R1())
    app.train()(never)  # type: ignore[arg-type]
    memory = folder / "node.json"
    flower_node.serve_node("server:1", b"", key, app, {}, memory=memory, stop=lambda: False, say=said.append)
    return server, said


NONSENSE: dict[str, Answer] = {
    "no message": lambda request: httpx.Response(200, content=b"\xff" * 99),
    "a page": lambda request: httpx.Response(200, text="<html>"),
    "an error": lambda request: httpx.Response(500, content=b"x"),
    "elsewhere": lambda request: httpx.Response(307, headers={"location": "https://inside/secrets"}),
    "packed": lambda request: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Endless()),
    "endless": lambda request: httpx.Response(200, stream=Endless()),
    "an empty message": lambda request: proto(PullMessagesResponse(messages_list=[MessageProto()])),
    "no parts": lambda request: proto(PullMessagesResponse(messages_list=[MessageProto()], message_object_trees=[])),
    "parts that are none": lambda request: proto(
        PullMessagesResponse(messages_list=[MessageProto()], message_object_trees=[ObjectTree(object_id="../../a")])
    ),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_does_not_end_the_process(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    server, _ = serve([NONSENSE[kind]] * 2, monkeypatch, tmp_path)
    assert sum(path.endswith("pull-messages") for path in server.asked) > 2  # it asks again
    assert not any(path.startswith("inside") for path in server.asked)
    assert [path.name for path in tmp_path.iterdir()] == []  # it left, and nothing was written


@pytest.mark.parametrize("times", [0, 1, 1000])
def test_a_server_gets_each_part_of_an_answer_once_and_no_other(
    times: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """It names the parts that it wants: some that the answer does not have, and one very often."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    empty, pushed = Message(RecordDict(), dst_node_id=5, message_type="train"), []
    empty.metadata.__dict__["_message_id"] = "a"
    announced = message_to_proto(remove_content_from_message(empty))
    answered = Server.__call__

    def ask(self: Server, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("push-messages"):
            own = PushMessagesRequest.FromString(request.content).message_object_trees[0].object_id
            return proto(PushMessagesResponse(objects_to_push=["no part of it", *[own] * times]))
        if request.url.path.endswith("push-object"):
            pushed.append(PushObjectRequest.FromString(request.content).object_id)
            return proto(PushObjectResponse(stored=True))
        return answered(self, request)

    monkeypatch.setattr(Server, "__call__", ask)
    tree = PullMessagesResponse(messages_list=[announced], message_object_trees=[ObjectTree(object_id="a")])
    server, _ = serve([lambda request: proto(tree)], monkeypatch, tmp_path)
    assert len(pushed) == min(times, 1)
    assert sum(path.endswith("pull-messages") for path in server.asked) > 2  # the process goes on


def test_a_message_of_very_many_parts_is_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    tree = ObjectTree(object_id="a", children=[ObjectTree(object_id=f"{n}") for n in range(10_000)])
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    empty = Message(RecordDict(), dst_node_id=5, message_type="train")
    empty.metadata.__dict__["_message_id"] = "a"
    announced = message_to_proto(remove_content_from_message(empty))
    many = PullMessagesResponse(messages_list=[announced], message_object_trees=[tree])
    server, _ = serve([lambda request: proto(many)], monkeypatch, tmp_path)
    assert sum(path.endswith("pull-object") for path in server.asked) == MOST_OBJECTS + 1


def test_a_server_that_redirects_its_nodes_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(Server, "__call__", lambda self, request: NONSENSE["elsewhere"](request))
    with pytest.raises(RunError, match="answers with HTTP 307; a server of fftmoe does not"):
        serve([], monkeypatch, tmp_path)


@given(st.floats(0, 1e6), st.floats(0.01, 5.0))
def test_an_idle_node_polls_less_often_and_never_adds_more_than_a_tenth(idle: float, least: float):
    wait = flower_node.patience(idle, least)
    assert least <= wait <= 30.0 or wait == least
    assert wait <= max(least, 0.1 * idle)
    assert flower_node.patience(2 * idle, least) >= wait


def asked_before_joining(server: Server) -> list[str]:
    names = [path.rpartition("/")[2] for path in server.asked[1:]]
    return names[: names.index("activate-node")]


def test_a_copy_of_a_folder_does_not_end_the_connection_of_the_original(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """After a crash a node ends its own earlier connection; the number in a copied file is that of another place."""
    memory = tmp_path / "node.json"
    memory.write_text(f"7 {flower_line.memory_place(memory)}")
    assert asked_before_joining(serve([], monkeypatch, tmp_path)[0]) == ["deactivate-node"]
    for left in (
        f"7 {flower_line.memory_place(tmp_path / 'original' / 'node.json')}",
        f"7 elsewhere {memory}",
        "7",
        "x",
    ):
        memory.write_text(left)
        assert asked_before_joining(serve([], monkeypatch, tmp_path)[0]) == []


def test_a_key_that_stays_in_use_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    accept = Server.__call__

    def refuse(self: Server, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("activate-node"):
            return httpx.Response(flower_line.KEY_IN_USE)
        return accept(self, request)

    monkeypatch.setattr(Server, "__call__", refuse)
    _, said = serve([], monkeypatch, tmp_path)
    assert flower_line.KEY_TWICE not in said  # a crashed node is still counted for a minute
    monkeypatch.setattr(flower_line, "KEY_SECONDS", -1.0)
    _, said = serve([], monkeypatch, tmp_path)
    assert said.count(flower_line.KEY_TWICE) == 1
