"""Reads data sets of the Hugging Face hub: parquet files by fixed names, and nothing that a data set's own files name.

The hub keeps a copy of every public data set in parquet, on the branch `refs/convert/parquet`. Only that copy is read:
no card, no loading script, no archive, and no address that a data set gives. The library `datasets` would choose among
its readers by names in the data set, and some of its readers run code.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from fftmoe.data.parquet_files import read_parquet_parts
from fftmoe.data.reach import why_unreachable
from fftmoe.data.read import REQUIRED_SPLITS, SPLITS, SUFFIXES, require_splits
from fftmoe.data.table import Table
from fftmoe.errors import InputError

PARQUET_BRANCH = "refs/convert/parquet"
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_CONFIGURATION = r"[A-Za-z0-9_][A-Za-z0-9._+@-]{0,200}"
_HUB_ID = re.compile(rf"({_PART}/)?{_PART}(:{_CONFIGURATION})?")
_FILE = re.compile(rf"(?P<configuration>{_CONFIGURATION})/({'|'.join(SPLITS)})/[^/]+\.parquet")

# Names of the readers in the library `datasets`, which that library prefers to data sets of the same name.
READERS = frozenset(
    "csv json pandas parquet arrow text imagefolder audiofolder videofolder pdffolder niftifolder webdataset xml hdf5 "
    "eval lance sql spark generator cache folder_based_builder buckets "
    "conll fasta fastq genbank harbor iceberg meshfolder mmcif pdb tsfile vortex".split()
)


def read_hub(source: str, required: Sequence[str] = REQUIRED_SPLITS) -> dict[str, Table]:
    """Return the splits of a data set on the Hugging Face hub (or in its local cache): `id` or `id:configuration`.

    Raises:
        InputError: it is no such name, the hub cannot be reached or has no such data set, or a required split is
            missing.
    """
    name, _, configuration = source.partition(":")
    if name.split("/")[0] in READERS or not _HUB_ID.fullmatch(source) or ".." in source:
        raise InputError(
            f"data.source={source!r} is neither a local folder nor the name of a data set on the Hugging Face hub, "
            "such as fancyzhx/ag_news; give a local folder that holds train.* and test.* "
            f"({', '.join(SUFFIXES)}), or such a name"
        )
    try:
        with _no_progress_bars():
            files = _fetch_files(name, configuration)
            tables = {split: _table(f"{source} ({split})", own) for split, own in files.items()}
    except InputError:
        raise
    # The hub's client can raise anything, from a failed name lookup to a changed file layout; the remedy is the same.
    except Exception as error:
        raise InputError(
            f"data.source={source!r} is not a local folder (looked for {Path(source).absolute()}), and loading it from "
            f"the Hugging Face hub failed ({type(error).__name__}: {' '.join(str(error).split()):.500}); check the "
            "spelling and the network, or give a local folder that holds train.* and test.* "
            f"({', '.join(SUFFIXES)})"
        ) from error
    require_splits(required, tables, f"the data set {source}")
    return tables


def _fetch_files(name: str, configuration: str) -> dict[str, list[Path]]:
    """Return the files of a data set by split, in order, fetched into the hub's local cache if they are not there."""
    chosen = _configuration(name, file_names(name), configuration)
    folder = snapshot(name, [f"{chosen}/{split}/*.parquet" for split in SPLITS])
    files = {split: sorted((folder / chosen / split).glob("*.parquet")) for split in SPLITS}
    return {split: own for split, own in files.items() if own}


def snapshot(name: str, patterns: list[str], offline: bool = False) -> Path:
    """Return the folder that holds all files of a data set with such names; an error if one of them cannot be had."""
    offline = offline or why_unreachable() is not None
    return Path(
        huggingface_hub.snapshot_download(
            name, repo_type="dataset", revision=PARQUET_BRANCH, allow_patterns=patterns, local_files_only=offline
        )
    )


def file_names(name: str) -> list[str]:
    """Return the names of a data set's files; those that were fetched before if the hub cannot be reached."""
    try:
        if (reason := why_unreachable()) is not None:
            raise ConnectionError(reason)
        return huggingface_hub.HfApi().list_repo_files(name, repo_type="dataset", revision=PARQUET_BRANCH)
    except Exception as error:
        try:
            folder = snapshot(name, [], offline=True)
        except Exception:
            raise error from None
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")]


def _configuration(name: str, listed: Sequence[str], asked: str) -> str:
    """Return the configuration whose files are read."""
    found = sorted({match["configuration"] for match in map(_FILE.fullmatch, listed) if match})
    usual = found if len(found) == 1 else [name for name in found if name == "default"]
    chosen = [asked] if asked else usual
    if not set(chosen) & set(found):
        raise InputError(
            f"data.source={name!r}: the Hugging Face hub has it in the configurations {', '.join(found) or '(none)'}; "
            f"name one of them, as in {name}:{found[0] if found else 'configuration'}"
        )
    return chosen[0]


def _table(where: str, files: Sequence[Path]) -> Table:
    return Table(where, *read_parquet_parts(where, files))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            enable_progress_bars()
