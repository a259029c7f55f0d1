"""Keeps Flower's state in memory, with limits: what a node may store, under whose name, and when its memory is freed.

Used by the SuperLink's process, which must not load torch.
"""

from collections import defaultdict
from contextlib import suppress
from contextvars import ContextVar

from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStore
from flwr.superlink.federation import FederationManager

from fftmoe.deploy.link.objects import MOST_MESSAGE_BYTES, MOST_OBJECTS
from fftmoe.shown import count_of

MOST_OBJECT_BYTES = 6 * 2**20
MOST_STORED_BYTES = MOST_MESSAGE_BYTES  # of all answers of a node that are not fetched yet

CALLER: ContextVar[int | None] = ContextVar("caller", default=None)
"""The node whose key has been proved for the request that is carried out; None for the server's own process."""


class Refused(ValueError):
    """Reports that a node sent what no node of this package sends. The message is for the log of the SuperLink."""


class LeanLinkState(InMemoryLinkState):
    """Keeps Flower's state for runs that last days: it frees the memory of objects that will not be fetched any more.

    A node stores one answer to each request to it, of the objects that it announced first, and at most
    `MOST_STORED_BYTES` in all. Flower itself takes an answer again with other objects each time, and keeps a note of
    every attempt.
    """

    def __init__(self, federation_manager: FederationManager, object_store: ObjectStore) -> None:
        super().__init__(federation_manager, object_store)
        # If an upload is cut off, Flower takes these two locks in either order, which can be a deadlock.
        self._lock_object_push_sessions = self.lock
        self._stored: defaultdict[int, dict[str, int]] = defaultdict(dict)  # node -> object -> its bytes

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        """Delete requests and their answers; Flower would keep a request that its node never fetched."""
        with self.lock:
            for request in message_ins_ids:
                self.object_store.delete(request)
                answer = self.message_res_store.get(self.message_ins_id_to_message_res_id.get(request, ""))
                if answer is not None and not answer.metadata.delivered_at:  # otherwise the server is about to fetch it
                    self.object_store.delete(answer.metadata.message_id)
            super().delete_messages(message_ins_ids)

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """Store a message and announce its objects; what is refused leaves no trace."""
        stored, wanted = False, list[str]()
        with self.lock:
            try:
                self._check_announced(message, object_tree)
                if self._is_fetched(message):
                    return True, []
                stored, wanted = super().store_message_and_object_tree(message, object_tree, session_id)
            finally:
                if not wanted:  # nothing will be sent in this session
                    self._cleanup_push_session(session_id, cleanup_messages=False)
        return stored, wanted

    def _is_fetched(self, message: Message) -> bool:
        """Return whether the server has this answer already: its objects would never be fetched again."""
        known = self.message_res_store.get(message.metadata.message_id)
        return known is not None and bool(known.metadata.delivered_at)

    def _check_announced(self, message: Message, tree: ObjectTree) -> None:
        """Check an answer before anything of it is stored.

        Raises:
            Refused: it is another node's, has too many parts, or was announced with other objects before.
        """
        own, caller = message.metadata, CALLER.get()
        if caller is not None and (own.src_node_id != caller or not own.reply_to_message_id):
            raise Refused(f"node {caller} sent what is no answer of its own")
        if tree.object_id != own.message_id:
            raise Refused("a message that is not the root of its objects")
        self._check_number(tree)
        with suppress(NoObjectInStoreError):
            if self.object_store.get_object_tree(tree.object_id) != tree:
                raise Refused("a message that was announced with other objects before")

    def preregister_object_tree(self, object_tree: ObjectTree, session_id: str) -> list[str]:
        """Refuse a message of too many parts; parts that are stored already count as often as they are named."""
        with self.lock:
            self._check_number(object_tree)
            return super().preregister_object_tree(object_tree, session_id)

    def _check_number(self, tree: ObjectTree) -> None:
        if self._count(tree) > MOST_OBJECTS:
            raise Refused(f"a message of more than {MOST_OBJECTS} objects")

    def _count(self, tree: ObjectTree) -> int:
        with suppress(NoObjectInStoreError):
            tree = self.object_store.get_object_tree(tree.object_id)
            return sum(1 for _ in iterate_object_tree(tree))
        return 1 + sum(self._count(child) for child in tree.children)

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """Refuse an object that is larger than any part of a message, or that is one too many of its node."""
        size, caller = len(object_content), CALLER.get()
        if size > MOST_OBJECT_BYTES:
            raise Refused(f"an object of {count_of(size, 'byte')}")
        if caller is None:
            return super().store_object(run_id, session_id, object_id, object_content)
        with self.lock:
            own = self._stored[caller]
            for gone in [name for name in own if name not in self.object_store]:
                del own[gone]
            if sum(own.values()) + size > MOST_STORED_BYTES:
                raise Refused(f"node {caller} has more than {MOST_STORED_BYTES} bytes stored")
            stored = super().store_object(run_id, session_id, object_id, object_content)
            if stored:
                own[object_id] = size
            return stored

    def deactivate_node(self, node_id: int) -> bool:
        """Drop the node's messages: it has ended or starts again, and Flower delivers a message only once."""
        with self.lock:
            begun = {i for i, m in self.message_ins_store.items() if m.metadata.dst_node_id == node_id}
            self.delete_messages(begun - self.message_ins_id_to_message_res_id.keys())
            return super().deactivate_node(node_id)
