"""A Hugging Face hub on this machine: one data set, whose files a test chooses, and a record of what was asked for."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "a" * 40
HUB_ID = "someone/reviews"


@dataclass
class Hub:
    """A hub with the data set `someone/reviews`.

    Attributes:
        files: contents by name, on its parquet branch. fetched: the names of files that clients downloaded.
    """

    files: Mapping[str, bytes]
    fetched: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[bytes, str] | None:
        """The body and the type of the answer to a request."""
        if f"/datasets/{HUB_ID}" not in path:
            return None
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
                for name, data in self.files.items()
            ]
            return json.dumps(entries).encode(), "application/json"
        if "/resolve/" in path:
            name = path.split("/resolve/")[1].split("/", 1)[1]
            return self.files[name], "application/octet-stream"
        siblings = [{"rfilename": name} for name in self.files]
        return json.dumps({"id": HUB_ID, "sha": COMMIT, "siblings": siblings}).encode(), "application/json"


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def serving(files: Mapping[str, bytes], cache: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Meanwhile this hub is the one that is asked; afterwards none can be reached. Files are cached in `cache`."""
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = hub.answer(self.path)
            self.send_response(200 if found else 404)
            body, kind = found or (b"", "text/plain")
            sent = {"Content-Type": kind, "Content-Length": str(len(body))}
            for name, value in {**sent, "X-Repo-Commit": COMMIT, "ETag": f'"{digest(body)}"'}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                hub.fetched += [self.path.split("/", 6)[-1]] if "/resolve/" in self.path else []
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
