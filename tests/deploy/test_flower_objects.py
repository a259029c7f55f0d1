"""What Flower's messages are made of cannot be more than a message, in either direction."""

import hashlib
import resource
from collections.abc import Callable, Iterator

import httpx
import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.superlink.federation import NoOpFederationManager

from fftmoe.deploy.link import objects as flower_objects
from fftmoe.deploy.link.link_state import MOST_OBJECT_BYTES, LeanLinkState
from fftmoe.deploy.link.objects import MOST_OBJECTS, bound, put_together
from fftmoe.engines.flower_messages import pack_reply, pack_request, unpack_request

CHUNK = 5 * 2**20
GROUP = [(0, b"a" * 17), (1, b"b" * (2 * CHUNK + 3)), (2, bytes(3 * CHUNK))]


pytestmark = pytest.mark.usefixtures("in_a_flower_run")


def taken_apart(content: RecordDict) -> tuple[str, dict[str, bytes]]:
    message = Message(content, dst_node_id=3, message_type="train")
    parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return message.object_id, parts


def renamed(root: str, parts: dict[str, bytes], old: str, new: bytes) -> tuple[str, dict[str, bytes]]:
    """The objects with another in the place of one, and of all that name it."""
    parts = {name: content for name, content in parts.items() if name != old}
    name = hashlib.sha256(new).hexdigest()
    parts[name] = new
    for parent, content in list(parts.items()):
        if old.encode() in content:
            return renamed(root if parent != root else "", parts, parent, content.replace(old.encode(), name.encode()))
    return (name if root == "" else root), parts


def test_a_message_is_put_together_as_it_was():
    """One client's bytes are one chunk, another's three, and of the third all chunks are the same."""
    root, parts = taken_apart(pack_request({"run": "a"}, GROUP))
    assert len(parts) < MOST_OBJECTS
    assert unpack_request(put_together(root, parts).content) == ({"run": "a"}, GROUP)


def test_a_chunk_that_is_asked_for_very_often_is_not_unfolded():
    """5 MiB on the line that would be 5 TiB in memory."""
    root, parts = taken_apart(pack_reply([(0, bytes(2 * CHUNK))], 0.1))
    array = next(name for name, content in parts.items() if content.startswith(b"Array "))
    body = parts[array].partition(b"\0")[2]
    assert b"[0, 0]" in body
    bomb = body.replace(b"[0, 0]", b"[" + b"0," * 10**6 + b"0]")
    head = parts[array].partition(b"\0")[0].rsplit(b" ", 1)[0] + b" " + str(len(bomb)).encode()
    root, parts = renamed(root, parts, array, head + b"\0" + bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a message of 5,24[\d,]{13} bytes"):
        put_together(root, parts)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 2**10


def test_too_many_objects_and_other_kinds_are_refused(monkeypatch: pytest.MonkeyPatch):
    root, parts = taken_apart(pack_reply(GROUP[:1], 0.1))
    monkeypatch.setattr(flower_objects, "MOST_OBJECTS", len(parts) - 1)
    with pytest.raises(ValueError, match=r"a message of \d objects"):
        put_together(root, dict(parts))
    monkeypatch.undo()
    array = next(name for name, content in parts.items() if content.startswith(b"Array "))
    other = parts[array].replace(b"Array ", b"MetricRecord ", 1)
    with pytest.raises(ValueError, match="an object of kind MetricRecord"):
        put_together(*renamed(root, parts, array, other))
    with pytest.raises(TypeError, match="ArrayRecord instead of a message"):
        put_together(next(n for n, c in parts.items() if c.startswith(b"ArrayRecord ")), dict(parts))


def name(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_the_superlink_takes_no_message_that_unfolds(monkeypatch: pytest.MonkeyPatch):
    """Each message names that before it twice, so that the thirtieth would be of a thousand million objects."""
    store = InMemoryObjectStore()
    state = LeanLinkState(NoOpFederationManager(), store)
    taken: list[int] = []
    monkeypatch.setattr(
        "flwr.server.superlink.linkstate.in_memory_linkstate.InMemoryLinkState.preregister_object_tree",
        lambda self, tree, session_id: taken.append(1) or store.preregister(7, tree),
    )
    state.preregister_object_tree(ObjectTree(object_id=name(0)), "")

    def tower(height: int) -> None:
        for level in range(1, height):
            below = ObjectTree(object_id=name(level - 1))
            state.preregister_object_tree(ObjectTree(object_id=name(level), children=[below, below]), "")

    with pytest.raises(ValueError, match="a message of more than 256 objects"):
        tower(30)
    assert sum(taken) == 8  # 2^8 - 1 objects at the most
    root = ObjectTree(object_id=name(100), children=[ObjectTree(object_id=name(n)) for n in range(200, 500)])
    with pytest.raises(ValueError, match="a message of more than 256 objects"):
        state.preregister_object_tree(root, "")
    with pytest.raises(ValueError, match="an object of 6,291,457 bytes"):
        state.store_object(7, "", name(0), bytes(MOST_OBJECT_BYTES + 1))


def test_the_superlink_takes_a_message_of_ours_once_and_again(monkeypatch: pytest.MonkeyPatch):
    store = InMemoryObjectStore()
    state = LeanLinkState(NoOpFederationManager(), store)
    monkeypatch.setattr(
        "flwr.server.superlink.linkstate.in_memory_linkstate.InMemoryLinkState.preregister_object_tree",
        lambda self, tree, session_id: store.preregister(7, tree),
    )
    message = Message(pack_request({}, GROUP), dst_node_id=SUPERLINK_NODE_ID, message_type="train")
    tree = get_object_tree(message)
    wanted = state.preregister_object_tree(tree, "")
    assert len(wanted) > 6
    assert state.preregister_object_tree(tree, "") == wanted


# What a server answers a node


def client(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(answer), event_hooks={"response": [bound]})


class Endless(httpx.SyncByteStream):
    taken = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.taken += 1
            yield bytes(2**20)


def test_an_answer_without_end_is_cut_off():
    stream = Endless()
    with pytest.raises(httpx.ReadError, match="its response is longer than 67108864 bytes"):
        client(lambda request: httpx.Response(200, stream=stream)).post("https://a/")
    assert stream.taken == 65


def test_an_answer_that_would_unfold_is_not_read():
    def packed(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Endless())

    with pytest.raises(httpx.RemoteProtocolError, match="its response is compressed"):
        client(packed).post("https://a/")


def test_a_usual_answer_passes():
    assert client(lambda request: httpx.Response(200, content=b"abc")).post("https://a/").content == b"abc"
    assert issubclass(httpx.RemoteProtocolError, httpx.TransportError)  # after which a node tries again
    assert issubclass(httpx.ReadError, httpx.TransportError)
