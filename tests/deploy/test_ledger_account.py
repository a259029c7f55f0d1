"""The running account of a ledger is that of all its entries, and adds up each entry once."""

from collections.abc import Iterable, Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.deploy.ledger_account import Account, RunningAccount

Entry = Mapping[str, Any]
NAMES = st.sampled_from(["a", "b", "c"])
RUNS = {"server": NAMES, "run": NAMES, "recipe": NAMES}
TASKS = st.sampled_from(["training", "evaluation"])
RELEASE = st.fixed_dictionaries(
    {"sampling_rate": st.sampled_from([0.1, 0.3]), "noise_multiplier": st.just(1.0), "times": st.integers(1, 3)}
)
ENTRIES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"event": st.just("opened"), **RUNS}),
        st.fixed_dictionaries({"event": st.sampled_from(["answered", "refused", "failed"])}),
        st.fixed_dictionaries({"event": st.just("asked"), "mode": st.just("none"), "task": TASKS, **RUNS}),
        st.fixed_dictionaries(
            {"event": st.just("asked"), "mode": st.just("examples"), "task": TASKS, "release": RELEASE, **RUNS}
        ),
        st.fixed_dictionaries(
            {
                "event": st.just("asked"),
                "mode": st.just("clients"),
                "task": TASKS,
                "epsilon": st.sampled_from([1.0, 2.0]),
                "delta": st.just(1e-5),
                **RUNS,
            }
        ),
    ),
    max_size=13,
)


def first_recipes(entries: Iterable[Entry]) -> dict[tuple[str, str], str]:
    """By server and run, the recipe of the first entry that opened the run."""
    return {
        (entry["server"], entry["run"]): entry["recipe"]
        for entry in reversed(list(entries))
        if entry["event"] == "opened"
    }


@settings(max_examples=40)
@given(entries=ENTRIES, others=ENTRIES, data=st.data())
def test_it_is_the_account_of_all_entries_however_they_come(entries: list[Entry], others: list[Entry], data: Any):
    running, ledger = RunningAccount(), list[Entry]()
    for entry in entries:
        ledger.append(entry)
        if data.draw(st.booleans()):
            assert running.of(ledger) == (Account.of(ledger), first_recipes(ledger))
    assert running.of(ledger) == (Account.of(entries), first_recipes(entries))
    # The file was read again, and has other lines.
    assert running.of(others) == (Account.of(others), first_recipes(others))


class Counted(dict[str, Any]):
    """An entry that counts how often its cost is read."""

    reads = 0

    def __getitem__(self, key: str) -> Any:
        self.reads += key == "mode"
        return super().__getitem__(key)


def test_each_entry_is_added_up_once():
    running, ledger = RunningAccount(), list[Counted]()
    for number in range(1, 12):
        ledger.append(Counted(event="asked", mode="none", task="training", server="a", run="b", recipe="c"))
        account, _ = running.of(ledger)
        assert (account.times, account.bare) == ({"training": number}, number)
    assert [entry.reads for entry in ledger] == [1] * 11
