"""Puts fftmoe's messages into Flower's messages and takes them out again.

A node gets one message for a client, or for several clients that train together, and sends one answer. Each holds
fftmoe's safetensors messages as arrays of bytes under the client ids; Flower cuts the arrays into chunks.
"""

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fftmoe.engines.base import Handler
from fftmoe.engines.failures import CodedError, Failure, failing_as, words_for
from fftmoe.engines.memory import peak_rss_mib
from fftmoe.errors import FftmoeError
from fftmoe.shown import count_of
from fftmoe.strict import exact_json, strict_json

STYPE = "fftmoe.message"
JOB, CLIENTS, COST, FAILURE, PROFILE_RECORD = "job", "clients", "cost", "failure", "profile"
MOST_COST = 1e9  # seconds, or MiB
MOST_PROFILE = 2000  # characters
MOST_JOB = 2**21  # characters; a recipe has at most 128 KiB, and names of labels 1 MiB
MOST_LOGGED = 2000  # characters of a failure in a node's log
MOST_FAILURES = 1000  # a day in a node's log, so that no server can fill the disk with it
DAY_SECONDS = 86_400.0
LOGGER = logging.getLogger("fftmoe")
JobValues = Mapping[str, Any]
"""What a node must know to serve a run, as JSON values."""


class AnswerCost(NamedTuple):
    """Holds the cost of an answer: its seconds, and the peak resident memory so far of the process that gave it.

    A site of another organisation does not tell its process and memory; they are 0.
    """

    seconds: float
    process: int
    peak_rss_mib: float


def pack_request(job: JobValues, group: Iterable[tuple[int, bytes]]) -> RecordDict:
    """Return the content of a message to a node; `group` holds the id and the message of one or several clients."""
    return RecordDict({JOB: ConfigRecord({"json": exact_json(job)}), CLIENTS: _arrays(group)})


def unpack_request(content: RecordDict) -> tuple[JobValues, list[tuple[int, bytes]]]:
    """Invert `pack_request`."""
    return unpack_job(content), _client_messages(content)


def pack_reply(replies: Iterable[tuple[int, bytes]], seconds: float, own: bool = False) -> RecordDict:
    """Return the content of a node's answer, with its seconds.

    Args:
        own: the server is the same person's, who may also know the process and its peak resident memory.
    """
    cost = AnswerCost(seconds, os.getpid(), peak_rss_mib()) if own else AnswerCost(seconds, 0, 0.0)
    return RecordDict({CLIENTS: _arrays(replies), COST: ConfigRecord(cost._asdict())})


def unpack_reply(content: RecordDict) -> tuple[list[tuple[int, bytes]], AnswerCost]:
    """Invert `pack_reply`: the clients' messages, and their cost.

    Raises:
        KeyError, TypeError, ValueError: the content is not a reply.
    """
    fields = content.config_records[COST]
    cost = AnswerCost(
        float(fields["seconds"]),  # type: ignore[arg-type]
        int(fields["process"]),  # type: ignore[arg-type]
        float(fields["peak_rss_mib"]),  # type: ignore[arg-type]
    )
    if not (0 <= cost.seconds <= MOST_COST and 0 <= cost.peak_rss_mib <= MOST_COST):  # NaN fails both comparisons
        raise ValueError(f"{cost} is out of range")
    return _client_messages(content), cost


def pack_query(job: JobValues) -> RecordDict:
    """Return the content of a message that asks a node for its profile."""
    return RecordDict({JOB: ConfigRecord({"json": exact_json(job)})})


def unpack_job(content: RecordDict) -> JobValues:
    """Return the job in a request or a query.

    Raises:
        KeyError, ValueError: the content holds no job.
    """
    text = str(content.config_records[JOB]["json"])
    if len(text) > MOST_JOB:
        raise ValueError(f"the job has {count_of(len(text), 'character')}; at most {MOST_JOB:,} are read")
    return strict_json(text)


def unpack_profile(content: RecordDict) -> Mapping[str, Any]:
    """Return a node's profile, not validated.

    Raises:
        KeyError, ValueError: the content holds no profile.
    """
    text = str(content.config_records[PROFILE_RECORD]["json"])
    if len(text) > MOST_PROFILE:
        raise ValueError(f"it has {count_of(len(text), 'character')}; at most {MOST_PROFILE:,} are read")
    return strict_json(text)


def failure_of(content: RecordDict, own: bool) -> str | None:
    """Return why the node failed, if it reports that it did.

    Args:
        own: the node is the same person's, so its words are shown; otherwise only its code counts.
    """
    if FAILURE not in content.config_records:
        return None
    fields = content.config_records[FAILURE]
    return str(fields["reason"]) if own else words_for(str(fields["code"]))


Serve = Callable[[JobValues, Context], Handler]
Describe = Callable[[JobValues, Context], Mapping[str, Any]]


def make_client_app(serve: Serve, describe: Describe, own: bool = False) -> ClientApp:
    """Return a Flower ClientApp that answers with fftmoe's handlers.

    Args:
        serve: returns the handler for a job on this node. It is called for every message and should cache its result.
        describe: returns the node's profile for a job, as JSON values.
        own: the server is the same person's, as in a simulation. Its answers then hold the words of errors, and the
            process and its memory; otherwise a code, and neither.
    """
    app, log = ClientApp(), FailureLog()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(guarded(lambda: _train(serve, message.content, context, own), own, log), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(guarded(lambda: _describe(describe, message.content, context), own, log), reply_to=message)

    return app


class FailureLog:
    """Writes the words of failures to this node's log; of equal ones in a row, only the first, and few in a day.

    Args:
        clock: returns seconds since any fixed moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, ("", "")
        self._began, self._written = clock(), 0

    def write(self, code: str, cause: BaseException) -> None:
        """Write a failure; of an unforeseen one also where it was raised."""
        words = str(cause) if isinstance(cause, FftmoeError) else "".join(traceback.format_exception(cause))
        said = (code, words)
        if self._clock() - self._began > DAY_SECONDS:
            self._began, self._written = self._clock(), 0
        if said != self._last and self._written < MOST_FAILURES:
            self._written += 1
            cut = f"{words[: MOST_LOGGED // 2]} … {words[-MOST_LOGGED // 2 :]}" if len(words) > MOST_LOGGED else words
            LOGGER.error("cannot answer (code %s): %s", code, cut)
            if self._written == MOST_FAILURES:
                LOGGER.error("no more failures of this day are written")
        self._last = said


def guarded(work: Callable[[], RecordDict], own: bool, log: FailureLog) -> RecordDict:
    """Return the result of `work`, or the code of its failure, whose words go to this node's log."""
    try:
        with failing_as(Failure.INTERNAL):
            return work()
    except CodedError as error:
        cause = error.__cause__ or error
        log.write(str(error.code), cause)
        failure = ConfigRecord({"code": str(error.code)})
        if own:
            failure["reason"] = _words(cause)
        return RecordDict({FAILURE: failure})


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, FftmoeError) else f"{type(error).__name__}; the node's log has the rest"


def _train(serve: Serve, content: RecordDict, context: Context, own: bool) -> RecordDict:
    torch.set_num_threads(1)  # the same bytes on every node, for every number of cores
    with failing_as(Failure.REQUEST):
        job, group = unpack_request(content)
    handler = serve(job, context)
    started = time.perf_counter()
    with failing_as(Failure.TRAINING):
        replies = handler([message for _, message in group])
    seconds = time.perf_counter() - started
    return pack_reply(((client_id, reply) for (client_id, _), reply in zip(group, replies, strict=True)), seconds, own)


def _describe(describe: Describe, content: RecordDict, context: Context) -> RecordDict:
    with failing_as(Failure.REQUEST):
        job = unpack_job(content)
    return RecordDict({PROFILE_RECORD: ConfigRecord({"json": exact_json(describe(job, context))})})


def _arrays(group: Iterable[tuple[int, bytes]]) -> ArrayRecord:
    return ArrayRecord({str(c): Array(dtype="uint8", shape=(len(m),), stype=STYPE, data=m) for c, m in group})


def _client_messages(content: RecordDict) -> list[tuple[int, bytes]]:
    return [(int(client_id), array.data) for client_id, array in content.array_records[CLIENTS].items()]
