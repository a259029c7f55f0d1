"""Builds a Flower message from its objects, within limits on its size.

Objects refer to one another. An array refers to its chunks by number, so a few bytes could name one chunk a million
times.
"""

import json
from collections.abc import Iterator, Mapping

import httpx
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_object_body, get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry, inflate_object_from_contents

from fftmoe.shown import count_of

MOST_MESSAGE_BYTES = 2**30  # of a message
MOST_OBJECTS = 256  # of a message; each chunk of an array holds 5 MiB, except the last one
MOST_BODY = 64 * 2**20  # bytes of the server's response to a node
OBJECT_KINDS = {"Message", "RecordDict", "ArrayRecord", "Array", "ArrayChunk", "ConfigRecord"}


def put_together(message_id: str, contents: dict[str, bytes]) -> Message:
    """Return the message that these objects form; `contents` is empty afterwards.

    Raises:
        Exception: of any kind, if the objects are invalid.
    """
    if len(contents) > MOST_OBJECTS:
        raise ValueError(f"a message of {count_of(len(contents), 'object')}; at most {MOST_OBJECTS:,} are allowed")
    unfolded = sum(_unfolded(content, contents) for content in contents.values())
    if unfolded > MOST_MESSAGE_BYTES:
        raise ValueError(f"a message of {count_of(unfolded, 'byte')}; at most {MOST_MESSAGE_BYTES:,} are allowed")
    message = inflate_object_from_contents(message_id, contents)
    if not isinstance(message, Message):
        raise TypeError(f"{type(message).__name__} instead of a message")
    return message


def _unfolded(content: bytes, contents: Mapping[str, bytes]) -> int:
    """Return the bytes of an object once it is built, without its children, but with every chunk of an array."""
    kind, children, _ = get_object_head_values_from_object_content(content)
    if kind not in OBJECT_KINDS:
        raise ValueError(f"an object of kind {kind}")
    if kind != "Array":
        return len(content)
    numbers = json.loads(get_object_body(content, inflatable_class_registry[kind]).decode())["arraychunk_ids"]
    return len(content) + sum(len(contents[children[number]]) for number in numbers)


def bound(response: httpx.Response) -> None:
    """Refuse compressed responses, and limit the length of all others, as a response hook of httpx."""
    if response.headers.get("content-encoding", "identity") != "identity":  # decompression could make it large
        raise httpx.RemoteProtocolError("its response is compressed", request=response.request)
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
                raise httpx.ReadError(f"its response is longer than {MOST_BODY} bytes", request=self._request)
            yield part

    def close(self) -> None:
        """See httpx."""
        assert isinstance(self._inner, httpx.SyncByteStream)
        self._inner.close()
