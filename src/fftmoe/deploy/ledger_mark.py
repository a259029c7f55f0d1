"""A site's own mark in its ledger: a copy of the ledger's head beside the site's state.

A ledger and its head can both be replaced by older copies of themselves, which fit each other. The mark says how far
the ledger was when the site last answered. It is written after the head has reached the disk, so it is never ahead.
"""

import os
from pathlib import Path

from fftmoe.errors import InputError
from fftmoe.store.chained_log import ChainedLog
from fftmoe.store.files import disk_errors, make_folder, write_atomically
from fftmoe.strict import read_small

MARK = "ledger.mark"  # in the folder of the site's state; no run has such a name


def check_mark(log: ChainedLog, state: Path) -> None:
    """Refuse a ledger that is older than the mark in the folder `state`; a site without a mark has answered nothing.

    Raises:
        InputError: the ledger is an older copy or another one, or the mark cannot be read.
    """
    mark = state / MARK
    try:
        is_met = log.holds(read_small(mark))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(f"{mark} cannot be read: {error}; restore it together with {log.path}") from error
    if not is_met:
        raise InputError(
            f"{log.path} is not the ledger that this site kept, or an older copy of it: {mark} names a line that it "
            "does not have; restore the newest one"
        )


def set_mark(log: ChainedLog, state: Path) -> None:
    """Move the mark to the end of what is on the disk.

    Raises:
        OutputError: it cannot be written.
    """
    mark = state / MARK
    with disk_errors(mark):
        head = log.head.read_bytes()
        if not mark.exists():
            make_folder(state)
            write_atomically(mark, head)
        elif mark.read_bytes() != head:
            handle = os.open(mark, os.O_WRONLY)  # in place, so that a loss of power leaves this mark or the last one
            try:
                os.pwrite(handle, head, 0)
            finally:
                os.close(handle)
