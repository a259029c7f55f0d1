"""Runs a site's node: a long-lived process that answers the server's messages with a given app.

It speaks Flower's Fleet API itself. Flower's own node fetches, installs and imports code from the server, and ends
when a call fails. This node asks for messages only, and keeps running while the server is away.
"""

import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Context, Error, Message, MessageType, RecordDict, UserConfigValue
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import HEARTBEAT_CALL_TIMEOUT, HEARTBEAT_DEFAULT_INTERVAL, ErrorCode
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

from fftmoe.deploy.link.background import OneAtATime, ended_within, in_background
from fftmoe.deploy.link.http import Proxy, new_client, proxy_for
from fftmoe.deploy.link.line import ServerLine, Stopped
from fftmoe.deploy.link.objects import MOST_MESSAGE_BYTES, MOST_OBJECTS, bound, put_together
from fftmoe.engines.failures import APP_FAILED, Failure
from fftmoe.engines.flower_messages import FailureLog

SILENCE_SECONDS = 60.0  # without any byte, after which a call fails; an object of 5 MiB may need long on a slow line
LEAVE_SECONDS = 5.0  # for the whole of the last call, because somebody waits for the end of this process
IDLE_FRACTION = 0.1  # fraction of the idle time that a node waits, so polling adds at most this fraction to a round
MOST_PATIENCE_SECONDS = 30.0
PART_SECONDS = 0.05  # between two looks for a part of a message that the server is still writing
SEND_TRIES = 3  # for one answer, in case the server loses parts of it


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
    """Answer the server's messages until `stop`, and wait for the server whenever it is away.

    Nothing that the server sends is executed or stored. Messages of the types train and query go to `app`.

    Args:
        address: host:port of the server.
        ca: PEM certificate of the authority that signed the server's.
        node_config: the configuration in the context of `app`.
        memory: a file with the number of this node while it is connected, for a restart after a crash.
        stop: whether to stop; called often, but not while `app` runs.
        say: shows a line to a person when the server is awaited, reached, lost or back.
        poll_seconds: the shortest time between two requests for messages; an idle node waits longer.

    Raises:
        RunError: the server that was reached first is the wrong one, or refused this node's key. InputError: the
            environment names a proxy that cannot be used.
    """
    proxy = proxy_for(address)
    with _fleet_client(address, ca, key, proxy) as client:
        through = "" if proxy is None else f" (through {proxy})"
        link = ServerLine(client, f"{address}{through}", stop, say, poll_seconds)
        node, log = None, FailureLog()
        try:
            while not stop():
                node = link.join(public_key_to_bytes(key.public_key()), memory)
                with _node_heartbeats(client, node):
                    _serve_messages(link, node, app, node_config, log)
        except Stopped:
            pass
        finally:
            if node is not None:
                _leave(client, node, memory)


def _leave(client: FleetHttpClient, node: Node, memory: Path) -> None:
    """Tell the server that this node is gone; without an answer its number stays in `memory`."""
    leaving = in_background(lambda: client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id)))
    if ended_within(leaving, LEAVE_SECONDS) and leaving.exception() is None:
        memory.unlink(missing_ok=True)


def _fleet_client(
    address: str, ca: bytes, key: EllipticCurvePrivateKey, proxy: Proxy | None
) -> AbstractContextManager[FleetHttpClient]:
    """Return Flower's client of the Fleet API, which signs with `key` and accepts limited responses only.

    It follows no redirects, because the server must not choose another one.
    """
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.load_verify_locations(cadata=ca.decode("ascii"))
    signature = NodeAuthHttpInterceptor(key, key.public_key())
    client = new_client(FleetHttpClient, address, [signature], trust, SILENCE_SECONDS, proxy=proxy)
    client._client.headers["accept-encoding"] = "identity"
    client._client.event_hooks = {"response": [bound]}
    return client


def patience(idle_seconds: float, least: float) -> float:
    """Return the seconds until the next request for messages: longer for an idle node,
    so that idle nodes are a small load.
    """
    return min(MOST_PATIENCE_SECONDS, max(least, IDLE_FRACTION * idle_seconds))


def _serve_messages(
    link: ServerLine, node: Node, app: ClientApp, node_config: Mapping[str, UserConfigValue], log: FailureLog
) -> None:
    """Answer messages until `stop`, or until the server does not know this node because it was restarted."""
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
            contents = _fetch_parts(link, node, run_id, tree)
            if contents is None:
                continue
            link.call(
                link.client.ConfirmMessageReceived,
                ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=message_id),
            )
            if context.run_id != run_id:  # what an app keeps in its context, it keeps for a run
                context = Context(run_id, node.node_id, dict(node_config), RecordDict(), {})
            _send(link, node, _answer_to(app, announced, contents, context, log))
            last = time.monotonic()
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                return
            link.wait(f"it answered with HTTP {error.response.status_code}")  # a run that is over, most likely


def _fetch_parts(link: ServerLine, node: Node, run_id: int, tree: ObjectTree) -> dict[str, bytes] | None:
    """Return the parts of a message, up to the limits of a message; None if the server has withdrawn it."""
    contents: dict[str, bytes] = {}
    for object_id in list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))[: MOST_OBJECTS + 1]:
        if sum(map(len, contents.values())) > MOST_MESSAGE_BYTES:
            break  # too large: `put_together` will refuse it
        request = PullObjectRequest(node=node, run_id=run_id, object_id=object_id)
        while not (part := link.call(link.client.PullObject, request)).object_available:
            if not part.object_found:
                return None
            link.pause(PART_SECONDS)
        contents[object_id] = part.object_content
    return contents


def _answer_to(
    app: ClientApp, announced: Message, contents: dict[str, bytes], context: Context, log: FailureLog
) -> Message:
    """Return the app's answer; of an error no word, because it may hold data."""
    message_id = announced.metadata.message_id
    try:
        message = put_together(message_id, contents)
        if message.metadata.message_type not in (MessageType.TRAIN, MessageType.QUERY):
            return Message(
                Error(ErrorCode.UNKNOWN, "this node answers messages of the types train and query only"),
                reply_to=announced,
            )
        message.metadata.__dict__["_message_id"] = message_id  # as Flower does, because there is no setter
        answer = app(message, context)
        if not isinstance(answer, Message):
            raise TypeError(f"the app answered with {type(answer).__name__} instead of a message")
        return answer
    except Exception as error:
        log.write(Failure.REQUEST, error)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, APP_FAILED), reply_to=announced)


def _send(link: ServerLine, node: Node, answer: Message) -> None:
    """Announce the answer, then send the parts that the server does not have."""
    with no_object_id_recompute():
        answer.metadata.__dict__["_message_id"] = answer.object_id
        parts = get_all_nested_objects(answer)
        request = PushMessagesRequest(
            node=node,
            messages_list=[message_to_proto(remove_content_from_message(answer))],
            message_object_trees=[get_object_tree(answer)],
        )
        for _ in range(SEND_TRIES):
            wanted = link.call(link.client.PushMessages, request)  # no parts if the answer is not awaited any more
            asked = set(wanted.objects_to_push)
            pushes = (
                PushObjectRequest(
                    node=node,
                    run_id=answer.metadata.run_id,
                    session_id=wanted.session_id,
                    object_id=object_id,
                    object_content=part.deflate(),
                )
                for object_id, part in parts.items()  # each once, and none that the answer does not have
                if object_id in asked
            )
            if all(link.call(link.client.PushObject, push).stored for push in pushes):
                return


@contextmanager
def _node_heartbeats(client: FleetHttpClient, node: Node) -> Iterator[None]:
    """Send heartbeats, so that the node counts as connected while the app runs for hours."""
    request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)

    send = OneAtATime(lambda: client.SendNodeHeartbeat(request), HEARTBEAT_CALL_TIMEOUT)

    def beat() -> bool:
        try:
            return send().success
        except (httpx.HTTPError, TimeoutError):
            return False  # it is repeated soon, and the next call reports the cause

    sender = HeartbeatSender(beat)
    sender.start()
    try:
        yield
    finally:
        sender.stop()
