"""A request as a SuperLink stores it, for tests of its state."""

import time

from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID

from flower_link import SOON


def stored_message(run: int, receiver: int) -> Message:
    metadata = Metadata(
        run_id=run,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=receiver,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=SOON,
        message_type="train",
    )
    message = make_message(metadata, RecordDict())
    message.metadata.__dict__["_message_id"] = message.object_id
    return message
