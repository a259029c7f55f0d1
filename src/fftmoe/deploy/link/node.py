"""A site's end of a SuperLink: a long-lived process that answers with the app that it was given.

It speaks Flower's Fleet API itself. Flower's own node would fetch, install and import what the server ships, and ends
its process when a call fails; this one asks for messages and nothing else, and outlives the server.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Context, Error, Message, MessageType, RecordDict, UserConfigValue
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    ErrorCode,
)
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fftmoe.deploy.link.line import ServerLine, Stopped
from fftmoe.deploy.link.objects import MOST_BYTES, MOST_OBJECTS, bound, put_together

CALL_SECONDS = 60.0  # without a byte, after which a call has failed; an object of 5 MiB may go over a slow line
LEAVE_SECONDS = 5.0  # the same, for the last call, as somebody waits for this process to end
PATIENCE = 0.1  # of the time without a message, so that waiting for one adds at most this part to a round
MOST_PATIENCE_SECONDS = 30.0
PART_SECONDS = 0.05  # between looks for a part of a message that the server is still writing
SEND_TRIES = 3  # of one answer, should the server lose parts of it


def serve_node(
    address: str,
    ca: bytes,
    key: EllipticCurvePrivateKey,
    app: ClientApp,
    node_config: Mapping[str, UserConfigValue],
    *,
    memory: Path,
    stop: Callable[[], bool],
    say: Callable[[str], None],
    poll_seconds: float = 0.2,
) -> None:
    """Answer the server's messages until `stop`, for ever trying again while the server is away.

    Nothing that the server sends is executed or stored: messages go to `app`, if they are to train or a query.

    Args:
        address: host:port of the server.
        ca: PEM certificate of the authority that signed the server's.
        node_config: what `app` finds in its context.
        memory: a file of this node's own, where a crashed node finds what it has to take back.
        stop: looked at often, but not while `app` runs.
        say: takes a line for a person: that the server is waited for, reached, lost, and back.
        poll_seconds: between two questions for messages, at the least; longer when there have been none for a while.

    Raises:
        RunError: the first time that the server was reached it was the wrong one, or refused this node's key.
    """
    signature = NodeAuthHttpInterceptor(key, key.public_key())
    with FleetHttpClient.from_server_address(address, False, ca, [signature]) as client:
        client._client.timeout = httpx.Timeout(CALL_SECONDS)  # Flower has no argument for these
        client._client.follow_redirects = False  # to whom, the server has no say in
        client._client.headers["accept-encoding"] = "identity"
        client._client.event_hooks = {"response": [bound]}
        link = ServerLine(client, address, stop, say, poll_seconds)
        node = None
        try:
            while not stop():
                node = link.join(public_key_to_bytes(key.public_key()), memory)
                with _heartbeats(client, node):
                    _work(link, node, app, node_config)
        except Stopped:
            pass
        finally:
            if node is not None:
                client._client.timeout = httpx.Timeout(LEAVE_SECONDS)
                with suppress(httpx.HTTPError):
                    client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
                    memory.unlink(missing_ok=True)


def patience(idle_seconds: float, least: float) -> float:
    """Seconds to the next look: a part of how long there has been nothing, so that idle nodes leave a server alone."""
    return min(MOST_PATIENCE_SECONDS, max(least, PATIENCE * idle_seconds))


def _work(link: ServerLine, node: Node, app: ClientApp, node_config: Mapping[str, UserConfigValue]) -> None:
    """Answer messages until `stop`, or until the server does not know this node any more, as it was started again."""
    context = Context(run_id=0, node_id=node.node_id, node_config={}, state=RecordDict(), run_config={})
    last = time.monotonic()
    while not link.stop():
        try:
            found = link.call(link.client.PullMessages, PullMessagesRequest(node=node))
            if not found.messages_list:
                link.pause(patience(time.monotonic() - last, link.poll_seconds))
                continue
            try:
                announced, tree = message_from_proto(found.messages_list[0]), found.message_object_trees[0]
            except (LookupError, TypeError, ValueError):
                link.wait("its message cannot be read")
                continue
            run_id, message_id = announced.metadata.run_id, announced.metadata.message_id
            contents = _fetch(link, node, run_id, tree)
            if contents is None:
                continue
            link.call(
                link.client.ConfirmMessageReceived,
                ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=message_id),
            )
            if context.run_id != run_id:  # what an app keeps in its context, it keeps for a run
                context = Context(run_id, node.node_id, dict(node_config), RecordDict(), {})
            _send(link, node, _answer(app, announced, contents, context))
            last = time.monotonic()
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                return
            link.wait(f"it answered with HTTP {error.response.status_code}")  # a run that is over, most likely


def _fetch(link: ServerLine, node: Node, run_id: int, tree: ObjectTree) -> dict[str, bytes] | None:
    """A message's parts, as many as a message has at most; None when the server has withdrawn it."""
    contents: dict[str, bytes] = {}
    for object_id in list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))[: MOST_OBJECTS + 1]:
        if sum(map(len, contents.values())) > MOST_BYTES:
            break  # what is there will not do
        request = PullObjectRequest(node=node, run_id=run_id, object_id=object_id)
        while not (part := link.call(link.client.PullObject, request)).object_available:
            if not part.object_found:
                return None
            link.pause(PART_SECONDS)
        contents[object_id] = part.object_content
    return contents


def _answer(app: ClientApp, announced: Message, contents: dict[str, bytes], context: Context) -> Message:
    """The app's answer; of what it raises the name alone, as its text may hold data."""
    message_id = announced.metadata.message_id
    try:
        message = put_together(message_id, contents)
        if message.metadata.message_type not in (MessageType.TRAIN, MessageType.QUERY):
            return Message(Error(ErrorCode.UNKNOWN, "this node trains and says what it is"), reply_to=announced)
        message.metadata.__dict__["_message_id"] = message_id  # as Flower does; it has no setter
        answer = app(message, context)
        if not isinstance(answer, Message):
            raise TypeError(f"the app answered with {type(answer).__name__}, not with a message")
        return answer
    except Exception as error:
        logging.getLogger("fftmoe").exception("this node failed to answer")
        reason = f"{type(error).__name__}; the node's log has the rest"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=announced)


def _send(link: ServerLine, node: Node, answer: Message) -> None:
    """Announce the answer, then send those of its parts that the server has not got."""
    with no_object_id_recompute():
        answer.metadata.__dict__["_message_id"] = answer.object_id
        parts = get_all_nested_objects(answer)
        request = PushMessagesRequest(
            node=node,
            messages_list=[message_to_proto(remove_content_from_message(answer))],
            message_object_trees=[get_object_tree(answer)],
        )
        for _ in range(SEND_TRIES):
            wanted = link.call(link.client.PushMessages, request)  # nothing, once nobody waits for the answer
            pushes = (
                PushObjectRequest(
                    node=node,
                    run_id=answer.metadata.run_id,
                    session_id=wanted.session_id,
                    object_id=object_id,
                    object_content=parts[object_id].deflate(),
                )
                for object_id in wanted.objects_to_push
            )
            if all(link.call(link.client.PushObject, push).stored for push in pushes):
                return


@contextmanager
def _heartbeats(client: FleetHttpClient, node: Node) -> Iterator[None]:
    """Stay connected, in the server's eyes, while the app runs for hours."""
    request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)

    def beat() -> bool:
        try:
            return client.SendNodeHeartbeat(request).success
        except httpx.HTTPError:
            return False  # it is tried again soon; what was wrong, the next message will tell

    sender = HeartbeatSender(beat)
    sender.start()
    try:
        yield
    finally:
        sender.stop()
