"""Keeps a site's own marks in its ledger: copies of the ledger's head beside the site's state, and outside its folder.

A ledger and its head can both be replaced by older copies of themselves, which fit each other. A mark says how far the
ledger was when the site last answered. It is written when those lines are on the disk, so it is never ahead. The
mark beside the state notices an older ledger; one outside the site's folder also notices an older copy of the folder.
"""

from pathlib import Path

from fftmoe.errors import InputError, looked_up
from fftmoe.shown import quoted
from fftmoe.store.chained_log import ChainedLog
from fftmoe.store.files import disk_errors, make_folder, rewrite, write_atomically
from fftmoe.strict import read_small

MARK = "ledger.mark"  # in the folder of the site's state; no run has such a name


def outside_mark(site: Path, named: str | None) -> Path | None:
    """Return the file outside the folder of a site that its policy names for a mark; None if it names none.

    Raises:
        InputError: it is within the site's folder, which a copy of the folder would replace too; it has no full name;
            or it is no file.
    """
    if named is None:
        return None
    with looked_up(f"`mark` of the policy, {named!r:.200},"):
        mark = Path(named).expanduser()
        is_outside = mark.is_absolute() and not mark.resolve().is_relative_to(site.resolve())
        is_other = mark.exists() and not mark.is_file()
    if is_other or not is_outside:
        raise InputError(
            f"`mark` of the policy is {named!r}; it must be the full name of a file outside {site}, so that it can "
            "notice an older copy of that folder"
        )
    return mark


def check_mark(log: ChainedLog, mark: Path, is_needed: bool = False) -> None:
    """Refuse a ledger that is older than this mark; a site without a mark has answered nothing.

    Args:
        is_needed: the mark must be there if the ledger has any line.

    Raises:
        InputError: the ledger is an older copy or another one, or the mark cannot be read or is missing.
    """
    try:
        is_met = log.holds(read_small(mark))
    except FileNotFoundError as error:
        if not is_needed or not log.read():
            return
        folder = "" if mark.parent.is_dir() else f"mkdir -p {quoted(mark.parent)} && "
        raise InputError(
            f"the policy names the mark {mark}, which is missing although {log.path} has entries; restore it. If the "
            "policy names it for the first time, and the ledger is no older copy: "
            f"{folder}cp {quoted(log.head)} {quoted(mark)}"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{mark} cannot be read: {error}; restore it together with {log.path}. If the ledger is no older copy: "
            f"cp {quoted(log.head)} {quoted(mark)}"
        ) from error
    if not is_met:
        raise InputError(
            f"{log.path} is not the ledger that this site kept, or an older copy of it: {mark} names a line that it "
            "does not have; restore the newest one"
        )


def set_mark(log: ChainedLog, mark: Path) -> None:
    """Move a mark to the end of what is on the disk.

    Raises:
        OutputError: it cannot be written.
    """
    with disk_errors(mark):
        head = log.head.read_bytes()
        if not mark.exists():
            make_folder(mark.parent)
            write_atomically(mark, head)
        elif mark.read_bytes() != head:
            rewrite(mark, head)
