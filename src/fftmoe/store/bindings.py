"""Stores what a run is bound to: the data, model, clients and versions that it began with, in one small file of its
folder.

    bindings.json   {"format": 1, "values": {"labels": ["no", "yes"], "backbone": "3f…", …}, "accepted": [...]}

Values are digests or short lists, so the file holds no row and no weight. Everything that continues or uses a run
compares what it has now with these values (`differences`), and ends at a difference (`require_same`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fftmoe.adapter.bound import BOUND
from fftmoe.errors import InputError
from fftmoe.shown import count_of
from fftmoe.store.files import sha256, write_atomically
from fftmoe.strict import exact_json, json_text, read_small, strict_json

BINDINGS_FORMAT = 1
BINDINGS_FILE = "bindings.json"
MOST_BINDINGS_BYTES = 2**24  # of the file: it may hold the names of many clients
MOST_SHOWN = 3  # keys, labels or clients of one difference
ACCEPT = "--accept-changes"


class Change(NamedTuple):
    """Describes a thing that is not what it was.

    Attributes:
        words: the difference for a person, such as "the training rows have changed (113 rows then, 114 now)".
        acceptable: whether it can be meaningful to continue nevertheless.
    """

    words: str
    acceptable: bool


@dataclass(frozen=True)
class Bindings:
    """States what a run is bound to.

    Attributes:
        values: by the names of `BINDING_KINDS`, JSON values.
        accepted: differences that a person has accepted since, in words, oldest first.
    """

    values: Mapping[str, Any]
    accepted: tuple[str, ...] = field(default=())

    def pack(self) -> bytes:
        """Return the bytes of the file."""
        text = exact_json({"format": BINDINGS_FORMAT, "values": self.values, "accepted": self.accepted}, indent=1)
        return text.encode() + b"\n"

    def with_adapters(self, folder: Path, names: Iterable[str]) -> "Bindings":
        """Return the same, bound to the adapters of these names that were saved in the folder of the run too."""
        saved = {name: sha256((folder / name / BOUND).read_bytes()) for name in names}
        return replace(self, values={**self.values, "adapters": saved})

    def check_adapter(self, adapter: Path) -> None:
        """Refuse an adapter that is another than the one that the run has saved there.

        An adapter is whole in itself (`fftmoe.adapter.bound`), also in the folder of a run to which it does not belong,
        and would then be described as the model of that run. A run of an older version records no adapter, and passes.

        Raises:
            InputError: it is another one, or says no longer what it is.
        """
        saved = self.values.get("adapters", {})
        if not isinstance(saved, dict):
            raise InputError(
                f"{adapter.with_name(BINDINGS_FILE)} is damaged: its adapters are {saved!r:.50}; restore it"
            )
        if adapter.name not in saved:
            return
        path = adapter / BOUND
        if not path.is_file() or sha256(path.read_bytes()) != saved[adapter.name]:
            raise InputError(
                f"the adapter in {adapter} is not the one that this run has saved: {path.name} is missing or another; "
                "restore the folder, or use the run to which this adapter belongs"
            )

    def write(self, folder: Path) -> None:
        """Write the file into a folder."""
        write_atomically(folder / BINDINGS_FILE, self.pack())

    @classmethod
    def read(cls, folder: Path) -> "Bindings | None":
        """Return the bindings in a folder; None if it has none, because an older version of this package wrote it.

        Raises:
            InputError: the file is damaged.
        """
        path = folder / BINDINGS_FILE
        try:
            found = strict_json(read_small(path, MOST_BINDINGS_BYTES))
            values, accepted = found["values"], found["accepted"]
            if found["format"] != BINDINGS_FORMAT or not isinstance(values, dict) or not isinstance(accepted, list):
                raise ValueError(f"it has not the form of format {BINDINGS_FORMAT}")
            return cls(values, tuple(map(str, accepted)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{path} is damaged ({error}), so nobody can tell what {folder} began with; restore the file"
            ) from error


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the differences between two sets of values in those names that both have, in the order of `BINDING_KINDS`.

    Raises:
        InputError: a value of `then` has not the form that this package gives it.
    """
    found = []
    for name, kind in BINDING_KINDS.items():
        if name in then and name in now and then[name] != now[name]:
            try:
                described = kind.describe(then[name], now[name])
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                why = f"its {name} cannot be compared ({type(error).__name__})"
                raise InputError(f"{BINDINGS_FILE} is damaged: {why}; restore the file") from error
            found += [Change(words, kind.acceptable) for words in described]
    return found


def require_same(what: str, found: Sequence[Change], accept: bool | None, remedy: str) -> tuple[str, ...]:
    """Refuse a run that is not what it was; return the words of the differences that are accepted.

    Args:
        what: what is refused, such as "the run in runs/first cannot continue".
        found: the differences.
        accept: whether a person accepts those that can be accepted; None where nobody can, so that no message says so.
        remedy: what to do instead.

    Raises:
        InputError: there is a difference that is not accepted; it names all of them.
    """
    refused = [difference for difference in found if not (accept and difference.acceptable)]
    if refused:
        words = "; ".join(difference.words for difference in refused)
        possible = accept is not None and all(difference.acceptable for difference in refused)
        advice = f", or continue with what is there now: {ACCEPT}" if possible else ""
        raise InputError(f"{what}: {words}; {remedy}{advice}")
    return tuple(difference.words for difference in found)


class Kind(NamedTuple):
    """Describes one thing that a run is bound to.

    Attributes:
        acceptable: whether it can be meaningful to continue after it has changed.
        describe: makes sentences of the value then and the value now, which differ.
    """

    acceptable: bool
    describe: Callable[[Any, Any], list[str]]


def _text(value: Any) -> str:
    text = json_text(value, ascii_only=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _settings(then: Any, now: Any) -> list[str]:
    """Return one sentence about nested sections, with the first dotted keys that differ."""
    return [f"the recipe has changed ({_keys_shown(then, now)})"]


def _keys_shown(then: Any, now: Any) -> str:
    keys = list(_unequal_keys(then, now))
    shown = "; ".join(f"{key} was {_text(a)} and is now {_text(b)}" for key, a, b in keys[:MOST_SHOWN])
    return f"{shown}; and {count_of(len(keys) - MOST_SHOWN, 'more key')}" if len(keys) > MOST_SHOWN else shown


def _unequal_keys(then: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        then, now = ({str(i): value for i, value in enumerate(values)} for values in (then, now))
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return [] if then == now else [(path, then, now)]
    keys = dict.fromkeys([*then, *now])
    return [
        found
        for key in keys
        for found in _unequal_keys(then.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    ]


def _label_changes(then: Any, now: Any) -> list[str]:
    if sorted(then) == sorted(now):
        return [f"the labels are in another order ({_named_in_part(then)} then, {_named_in_part(now)} now)"]
    return [f"the labels are others ({_named_in_part(then)} then, {_named_in_part(now)} now)"]


def _named_in_part(names: Sequence[Any]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > 2 * MOST_SHOWN else ""
    return ", ".join(map(str, names[: 2 * MOST_SHOWN])) + more


def _population(then: Any, now: Any) -> list[str]:
    before, after = then.get("names"), now.get("names")
    if before is None or after is None:
        return [f"the clients are others ({then.get('clients')} then, {now.get('clients')} now)"]
    changes = [f"{name} has joined" for name in after if name not in set(before)]
    changes += [f"{name} is missing" for name in before if name not in set(after)]
    places = {name: place for place, name in enumerate(after)}
    changes += [
        f"{name} was client {place} and would be client {places[name]}"
        for place, name in enumerate(before)
        if name in places and places[name] != place
    ]
    more = f", and {count_of(len(changes) - MOST_SHOWN, 'more change')}" if len(changes) > MOST_SHOWN else ""
    return [f"the clients are others ({', '.join(changes[:MOST_SHOWN])}{more})"]


def _keys(then: Any, now: Any) -> list[str]:
    changed = [name for name in then if name in now and then[name] != now[name]]
    return [
        f"{', '.join(changed)} has another key than at the beginning, so the state that it kept for this run lies in "
        "its former folder, or somebody else has taken its name"
    ] * bool(changed)


def _row_changes(split: str, then: Any, now: Any) -> list[str]:
    if then["rows"] != now["rows"]:
        return [f"the {split} rows have changed ({count_of(then['rows'], 'row')} then, {now['rows']:,} now)"]
    return [f"the {split} rows have changed (as many as then, {now['rows']}, but others, or in another order)"]


def _versions(then: Any, now: Any) -> list[str]:
    changed = [f"{key} {then.get(key)} then, {now.get(key)} now" for key in then if then.get(key) != now.get(key)]
    return [f"the versions of the software have changed ({', '.join(changed)})"] * bool(changed)


def _digest(what: str) -> Callable[[Any, Any], list[str]]:
    return lambda then, now: [f"{what} ({_text(then)} then, {_text(now)} now)"]


BINDING_KINDS: dict[str, Kind] = {
    "recipe": Kind(True, _settings),
    "arithmetic": Kind(True, lambda then, now: [f"the numbers are computed in another way ({_keys_shown(then, now)})"]),
    # What one kind has counted says nothing of rounds that are made with another.
    "privacy": Kind(False, lambda then, now: [f"the kind of privacy has changed ({then} then, {now} now)"]),
    # The rows of a head stand for the labels, and what clients keep belongs to their numbers: nothing continues those.
    "labels": Kind(False, _label_changes),
    "population": Kind(False, _population),
    "division": Kind(False, lambda *_: ["the training rows are divided among the clients in another way"]),
    "keys": Kind(True, _keys),
    "training rows": Kind(True, partial(_row_changes, "training")),
    "test rows": Kind(True, partial(_row_changes, "test")),
    "owners of test rows": Kind(True, lambda *_: ["the test rows belong to other clients than then"]),
    "tokenizer": Kind(True, _digest("the tokenizer, or how images are prepared, has changed")),
    "backbone": Kind(True, _digest("the backbone has changed, in its weights or its configuration")),
    "start": Kind(True, _digest("the adapter that the run starts from has changed")),
    "versions": Kind(True, _versions),
}
"""What a run can be bound to, in the order in which messages name differences."""
