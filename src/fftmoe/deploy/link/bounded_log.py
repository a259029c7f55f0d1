"""Keeps the log of a process that strangers can make talk: bounded, rotated, with times, and harmless to a terminal."""

import logging
import threading
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from fftmoe.shown import shown_on_a_line

MOST_FILE_BYTES = 4 * 2**20  # of a file
OLD_FILES = 3  # that are kept beside the newest one: superlink.log.1 is the newest of them
MOST_LINE_CHARACTERS = 1000  # of a line


def keep_log(stream: IO[bytes], path: Path) -> threading.Thread:
    """Write the lines of a process's output to a log until the process ends, in a thread of this process.

    The log takes at most (1 + `OLD_FILES`) * `MOST_FILE_BYTES`, whatever the process writes.
    """
    handler = RotatingFileHandler(path, maxBytes=MOST_FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    thread = threading.Thread(target=_copy, args=(stream, handler), name="log", daemon=True)
    thread.start()
    return thread


def _copy(stream: IO[bytes], handler: RotatingFileHandler) -> None:
    with stream:
        for line in iter(lambda: stream.readline(4 * MOST_LINE_CHARACTERS), b""):
            text = shown_on_a_line(line.decode(errors="replace").rstrip("\r\n"))
            handler.emit(logging.LogRecord("superlink", logging.INFO, "", 0, text[:MOST_LINE_CHARACTERS], None, None))
    handler.close()
