"""Our messages inside Flower's: bytes in, bytes out, and what went wrong as a sentence.

One message goes to a node for a client, or for several that train together, and one comes back. Each carries our
safetensors messages as arrays of bytes, which Flower cuts into chunks, under the number of the client.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fftmoe.engines.base import Handler
from fftmoe.engines.memory import peak_rss_mib
from fftmoe.errors import FftmoeError
from fftmoe.strict import strict_json

STYPE = "fftmoe.message"
JOB, CLIENTS, COST, FAILURE, PROFILE = "job", "clients", "cost", "failure", "profile"
MOST = 1e9  # seconds, or MiB
Job = Mapping[str, Any]
"""What a node must know to serve a run, as JSON has it."""


class Cost(NamedTuple):
    """What an answer took: seconds, and the peak of memory so far of the process that gave it."""

    seconds: float
    process: int
    peak_rss_mib: float


def pack_request(job: Job, group: Iterable[tuple[int, bytes]]) -> RecordDict:
    """The content of a message to a node: `group` is client_id and our message, of one or several clients."""
    return RecordDict({JOB: ConfigRecord({"json": json.dumps(job)}), CLIENTS: _arrays(group)})


def unpack_request(content: RecordDict) -> tuple[Job, list[tuple[int, bytes]]]:
    """Inverse of `pack_request`."""
    return unpack_job(content), _messages(content)


def pack_reply(replies: Iterable[tuple[int, bytes]], seconds: float) -> RecordDict:
    """The content of a node's answer, with the seconds that it took and this process's peak of memory."""
    cost = Cost(seconds, os.getpid(), peak_rss_mib())
    return RecordDict({CLIENTS: _arrays(replies), COST: ConfigRecord(cost._asdict())})


def unpack_reply(content: RecordDict) -> tuple[list[tuple[int, bytes]], Cost]:
    """Inverse of `pack_reply`: the clients' messages, and what they took.

    Raises:
        KeyError, TypeError, ValueError: a node made it up.
    """
    told = content.config_records[COST]
    cost = Cost(float(told["seconds"]), int(told["process"]), float(told["peak_rss_mib"]))  # type: ignore[arg-type]
    if not (0 <= cost.seconds <= MOST and 0 <= cost.peak_rss_mib <= MOST):  # not a number is neither
        raise ValueError(f"nothing takes {cost}")
    return _messages(content), cost


def pack_query(job: Job) -> RecordDict:
    """The content of a message that asks a node what it is."""
    return RecordDict({JOB: ConfigRecord({"json": json.dumps(job)})})


def unpack_job(content: RecordDict) -> Job:
    """The job in a request or a query.

    Raises:
        KeyError, ValueError: there is none.
    """
    return strict_json(str(content.config_records[JOB]["json"]))


def unpack_profile(content: RecordDict) -> Mapping[str, Any]:
    """What a node says of itself, of which nothing has been checked.

    Raises:
        KeyError, ValueError: a node made it up.
    """
    return strict_json(str(content.config_records[PROFILE]["json"]))


def failure_of(content: RecordDict) -> str | None:
    """Why the node could not, if it says so."""
    return str(content.config_records[FAILURE]["reason"]) if FAILURE in content.config_records else None


def make_client_app(
    serve: Callable[[Job, Context], Handler], profile: Callable[[Job, Context], Mapping[str, Any]]
) -> ClientApp:
    """A Flower ClientApp around our handlers.

    Args:
        serve: the handler for this job on this node; called for every message, so it should remember what it made.
        profile: what the node says of itself when it is asked, as JSON has it.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(_guarded(lambda: _train(serve, message.content, context)), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(_guarded(lambda: _profile(profile, message.content, context)), reply_to=message)

    return app


def _train(serve: Callable[[Job, Context], Handler], content: RecordDict, context: Context) -> RecordDict:
    torch.set_num_threads(1)  # the same bytes on every node, whatever its number of cores
    job, group = unpack_request(content)
    handler = serve(job, context)
    started = time.perf_counter()
    replies = handler([message for _, message in group])
    seconds = time.perf_counter() - started
    return pack_reply(((client_id, reply) for (client_id, _), reply in zip(group, replies, strict=True)), seconds)


def _profile(profile: Callable[[Job, Context], Mapping[str, Any]], content: RecordDict, context: Context) -> RecordDict:
    return RecordDict({PROFILE: ConfigRecord({"json": json.dumps(profile(unpack_job(content), context))})})


def _guarded(work: Callable[[], RecordDict]) -> RecordDict:
    """The node's answer, or why there is none; of an unforeseen error its name alone, as its text may hold data."""
    try:
        return work()
    except FftmoeError as error:
        reason = str(error)
    except Exception as error:
        logging.getLogger("fftmoe").exception("this node could not do what it was asked")
        reason = f"{type(error).__name__}; the node's log has the rest"
    return RecordDict({FAILURE: ConfigRecord({"reason": reason})})


def _arrays(group: Iterable[tuple[int, bytes]]) -> ArrayRecord:
    return ArrayRecord({str(c): Array(dtype="uint8", shape=(len(m),), stype=STYPE, data=m) for c, m in group})


def _messages(content: RecordDict) -> list[tuple[int, bytes]]:
    return [(int(client_id), array.data) for client_id, array in content.array_records[CLIENTS].items()]
