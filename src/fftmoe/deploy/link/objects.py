"""Flower's messages travel as objects that name one another; whoever made them, nothing large is put together of them.

An array names its chunks by number, so that a few bytes can ask for one chunk a million times.
"""

import json
from collections.abc import Iterator, Mapping

import httpx
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_object_body, get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry, inflate_object_from_contents

MOST_BYTES = 2**30  # of a message
MOST_OBJECTS = 256  # of a message; the last of an array's chunks apart, each holds 5 MiB
MOST_BODY = 64 * 2**20  # bytes of an answer of the server to a node
KINDS = {"Message", "RecordDict", "ArrayRecord", "Array", "ArrayChunk", "ConfigRecord"}


def put_together(message_id: str, contents: dict[str, bytes]) -> Message:
    """The message of these objects, which are used up.

    Raises:
        Exception: of whatever kind, where somebody made them up.
    """
    if len(contents) > MOST_OBJECTS:
        raise ValueError(f"a message of {len(contents)} objects")
    unfolded = sum(_unfolded(content, contents) for content in contents.values())
    if unfolded > MOST_BYTES:
        raise ValueError(f"a message of {unfolded} bytes")
    message = inflate_object_from_contents(message_id, contents)
    if not isinstance(message, Message):
        raise TypeError(f"{type(message).__name__} in the place of a message")
    return message


def _unfolded(content: bytes, contents: Mapping[str, bytes]) -> int:
    """Bytes of what is made of an object, its children apart."""
    kind, children, _ = get_object_head_values_from_object_content(content)
    if kind not in KINDS:
        raise ValueError(f"an object of kind {kind}")
    if kind != "Array":
        return len(content)
    numbers = json.loads(get_object_body(content, inflatable_class_registry[kind]).decode())["arraychunk_ids"]
    return len(content) + sum(len(contents[children[number]]) for number in numbers)


def bound(response: httpx.Response) -> None:
    """A hook of an httpx client: an answer as it is on the line, and no more of it than is ever sent."""
    if response.headers.get("content-encoding", "identity") != "identity":  # which might unfold
        raise httpx.RemoteProtocolError("it packs its answers", request=response.request)
    response.stream = _Bounded(response)


class _Bounded(httpx.SyncByteStream):
    def __init__(self, response: httpx.Response) -> None:
        self._inner, self._request = response.stream, response.request

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        assert isinstance(self._inner, httpx.SyncByteStream)
        for part in self._inner:
            size += len(part)
            if size > MOST_BODY:
                raise httpx.ReadError(f"its answer is longer than {MOST_BODY} bytes", request=self._request)
            yield part

    def close(self) -> None:
        """See httpx."""
        assert isinstance(self._inner, httpx.SyncByteStream)
        self._inner.close()
