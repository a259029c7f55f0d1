"""Holds the server's end of a SuperLink: Flower's grid for one run, in the process that opened the run.

Flower would start another process for a run, from an app that it unpacks. Here the process that opens the run claims
it and keeps it alive, and the app that Flower requires holds no code.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import Error, Message
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import fab_to_proto, message_from_proto, run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.serverapp import Grid
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fftmoe.deploy.link.control import connect, explained, retries
from fftmoe.deploy.link.objects import put_together
from fftmoe.deploy.link.superlink import Endpoint
from fftmoe.engines.failures import CUT_OFF, LOST, UNREADABLE
from fftmoe.errors import InputError, RunError

APP = b"""\
[project]
name = "fftmoe"
version = "1.0.0"

[tool.flwr.app]
publisher = "fftmoe"

[tool.flwr.app.components]
serverapp = "fftmoe.flower_app:server_app"
clientapp = "fftmoe.flower_app:client_app"

[tool.flwr.app.config]
"""


@contextmanager
def open_grid(endpoint: Endpoint, sites: Mapping[str, bytes]) -> Iterator[tuple[Grid, dict[str, int]]]:
    """Register the sites with the SuperLink, open a run on it, and yield its grid until the context ends.

    The SuperLink accepts nodes from now on. A process can have one grid at a time, because Flower keeps the identity
    of the run in a class.

    Args:
        sites: name -> public key in OpenSSH's format, on a NIST curve. A site that an earlier grid of this SuperLink
            registered stays registered.

    Yields:
        The grid, and the node of each site by its name. After a restart of the SuperLink, nodes have new numbers.

    Raises:
        InputError: a key cannot be used. RunError: the SuperLink failed; calls of the grid raise it as well.
    """
    keys = _load_keys(sites)
    with ExitStack() as stack:
        with explained(endpoint):
            control = stack.enter_context(connect(ControlHttpClient, endpoint))
            nodes = _register(control, keys)
            token = _claim(endpoint, _start_run(control))
            stack.enter_context(_task_heartbeats(endpoint, token))
            grid = LinkGrid(endpoint, token)
            stack.callback(grid.close)
            grid.begin()
        try:
            yield grid, nodes
        except BaseException as error:
            grid.finish(SubStatus.FAILED, f"{type(error).__name__}: {error}")
            raise
        grid.finish(SubStatus.COMPLETED, "")


@dataclass
class _Arriving:
    """Holds an answer that has been announced, and the parts that have arrived so far."""

    header: MessageProto
    object_ids: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)


class LinkGrid(HttpGrid):
    """Gives Flower's grid calls that return soon, even if nodes or the SuperLink fail.

    Flower's own grid waits forever for a SuperLink that has ended, interrupts this process if the SuperLink does not
    know it any more, and delays all answers until the slowest upload among them is complete.
    """

    def __init__(self, endpoint: Endpoint, token: str) -> None:
        super().__init__(endpoint.control, token=token)
        self._endpoint = endpoint
        self._retry_invoker = retries()
        self._arriving: dict[str, _Arriving] = {}  # by the id of the message that it answers

    def begin(self) -> None:
        """Report to the SuperLink that the run has started, and give its identity to Flower's messages."""
        start = self._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = start.task_id, start.run.run_id
        TaskIdentity.node_id = start.context.node_id
        self.set_run(run_from_proto(start.run))

    def finish(self, status: str, details: str) -> None:
        """Report the end of the run to the SuperLink, if it still answers."""
        self._retry_invoker.max_tries = 1
        with suppress(httpx.HTTPError):
            self._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See `Grid`."""
        with explained(self._endpoint):
            return super().get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`; the id of a message that was not accepted is empty."""
        with explained(self._endpoint):
            return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers to these messages that have arrived completely; each is returned once."""
        wanted = set(message_ids)
        with explained(self._endpoint):
            # The SuperLink announces an answer once. To a second request it reports that there is no answer.
            if unannounced := wanted - self._arriving.keys():
                found = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=unannounced))
                for header, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                    object_ids = dict.fromkeys(part.object_id for part in iterate_object_tree(tree))
                    self._arriving[header.metadata.reply_to_message_id] = _Arriving(header, list(object_ids))
            answers = [self._fetch(message_id) for message_id in wanted & self._arriving.keys()]
        return [answer for answer in answers if answer is not None]

    def _fetch(self, message_id: str) -> Message | None:
        """Return the answer to this message; None while its node is still sending it."""
        arriving, run_id = self._arriving[message_id], self.run.run_id
        for object_id in arriving.object_ids[len(arriving.contents) :]:
            request = PullObjectRequest(node=self.node, run_id=run_id, object_id=object_id)
            part = self._runtime_client.PullObject(request)
            if part.object_found and not part.object_available:
                return None
            if not part.object_found:  # the node stopped sending, and the SuperLink has stopped waiting
                del self._arriving[message_id]
                return _error_of(arriving.header, CUT_OFF)
            arriving.contents[object_id] = part.object_content
        del self._arriving[message_id]
        self._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self.node, run_id=run_id, message_object_id=arriving.header.metadata.message_id
            )
        )
        return _message_of(arriving)

    def _connect(self) -> None:
        token = RuntimeTokenHttpInterceptor(self._token)
        self._client = connect(RuntimeHttpClient, self._endpoint, token, retries=self._retry_invoker)


def _message_of(arriving: _Arriving) -> Message:
    """Return the answer as a message; an invalid answer becomes an error of its node."""
    announced = arriving.header.metadata
    try:
        message = put_together(announced.message_id, arriving.contents)
    except Exception:  # invalid bytes can raise anything
        return _error_of(arriving.header, UNREADABLE)
    said = message.metadata
    # The SuperLink has checked sender and request in the header only.
    if (said.src_node_id, said.reply_to_message_id) != (announced.src_node_id, announced.reply_to_message_id):
        return _error_of(arriving.header, UNREADABLE)
    if message.has_error() and message.error.code in LOST:
        return make_message(said, error=Error(message.error.code, LOST[message.error.code]))
    return message


def _error_of(header: MessageProto, reason: str) -> Message:
    return make_message(message_from_proto(header).metadata, error=Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason))


def _load_keys(sites: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the sites' keys in the form that Flower registers."""
    keys: dict[str, bytes] = {}
    for name, text in sites.items():
        try:
            key = load_ssh_public_key(text)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, EllipticCurvePublicKey) or not uses_nist_ec_curve(key):
            raise InputError(
                f"the key of site {name} is not an OpenSSH public key on a NIST curve; use an ECDSA P-384 key"
            )
        keys[name] = public_key_to_bytes(key)
    if len(set(keys.values())) < len(keys):
        raise InputError("two sites have the same key; make a key for each site")
    return keys


def _register(control: ControlHttpClient, keys: Mapping[str, bytes]) -> dict[str, int]:
    known = {node.public_key: node.node_id for node in control.ListNodes(ListNodesRequest()).nodes_info}
    return {
        name: known.get(key) or control.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id
        for name, key in keys.items()
    }


def _start_run(control: ControlHttpClient) -> int:
    """Start a run with the Flower App Bundle that Flower requires; `flwr build` would make the same one."""
    bundle = io.BytesIO()
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.writestr("pyproject.toml", APP)
        archive.writestr(".info/CONTENT", f"pyproject.toml,{hashlib.sha256(APP).hexdigest()},{len(APP) * 8}")
    content = bundle.getvalue()
    app = Fab(hashlib.sha256(content).hexdigest(), content, {})
    return control.StartRun(StartRunRequest(fab=fab_to_proto(app))).run_id


def _claim(endpoint: Endpoint, run_id: int) -> str:
    """Claim the run for this process; returns the token of the claim."""
    secret = SuperExecAuthHttpInterceptor(
        master_secret=bytes.fromhex(endpoint.secret), protected_methods={"/flwr.proto.Runtime/AcquireTask"}
    )
    with connect(RuntimeHttpClient, endpoint, secret) as client:
        while True:  # skips runs that were started and never claimed
            claim = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
            if claim.task.run_id == run_id:
                return claim.token
            if not claim.token:
                raise RunError(f"the SuperLink at {endpoint.control} gave this run to another process; start it again")


@contextmanager
def _task_heartbeats(endpoint: Endpoint, token: str) -> Iterator[None]:
    """Send heartbeats; the token expires a minute after the last one."""
    with connect(RuntimeHttpClient, endpoint, RuntimeTokenHttpInterceptor(token)) as client:

        def beat() -> bool:
            try:
                return client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
            except httpx.HTTPError:
                return False  # it is repeated soon, and the next call of the grid reports the cause

        sender = HeartbeatSender(beat)
        sender.start()
        try:
            yield
        finally:
            sender.stop()
