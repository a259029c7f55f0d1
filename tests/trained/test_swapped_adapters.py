"""The adapter of another run in the folder of a run: whole in itself, and not this run's."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fftmoe.errors import InputError
from fftmoe.setup.finished import finished_run
from fftmoe.store import LAST_ROUND
from fftmoe.store.bindings import Bindings
from run_fixtures import RunTiny
from shared_fixtures import Cli

OTHERS = {"seed": ("seed=11",), "method": ("seed=13", "method=fedit"), "head": ("seed=13", "head.kind=averaged")}
USES: Sequence[tuple[str, Callable[[Path, Path], tuple[object, ...]]]] = (
    ("evaluate", lambda run, to: ("evaluate", run)),
    ("predict", lambda run, to: ("predict", run, "red")),
    ("export", lambda run, to: ("export", run, "--to", "peft", "--output", to)),
    ("a client's model", lambda run, to: ("predict", run, "red", "--client", 3)),
)


@pytest.fixture
def own(run_tiny: RunTiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_tiny("seed=13").folder, tmp_path / "run"))


@pytest.mark.parametrize("other", OTHERS)
def test_the_adapter_of_another_run_is_not_used(
    cli: Cli, run_tiny: RunTiny, own: Path, recipe_file: Path, tmp_path: Path, other: str
):
    foreign = run_tiny(*OTHERS[other]).folder
    shutil.rmtree(own / "adapter")
    shutil.copytree(foreign / "adapter", own / "adapter")
    for use, words in USES:
        refused = cli(*words(own, tmp_path / "exported"))
        assert refused.status == 2, use
        assert "is not the one that this run has saved" in refused.err
        assert refused.err.count("\n") == 1
    assert not (tmp_path / "exported").exists()
    started = cli("run", recipe_file, "--output", tmp_path / "later", "--set", f"start_from={own}")
    assert started.status == 2
    assert "is not the one that this run has saved" in started.err


def test_an_adapter_that_says_no_longer_what_it_is_is_not_used(cli: Cli, own: Path):
    """Without its record it would pass for one that PEFT has saved."""
    assert cli("evaluate", own).status == 0
    (own / "adapter" / "bound.json").unlink()
    assert "bound.json is missing or another" in cli("evaluate", own).err


def test_the_adapter_of_the_last_round_is_recorded_too(own: Path):
    began = Bindings.read(own)
    assert began is not None
    shutil.copytree(own / "adapter", own / "adapter-last")
    began.with_adapters(own, ["adapter", "adapter-last"]).write(own)
    finished_run(own, round=LAST_ROUND)
    (own / "adapter-last" / "bound.json").write_text("{}")
    finished_run(own)
    with pytest.raises(InputError, match=r"the adapter in .*adapter-last is not the one"):
        finished_run(own, round=LAST_ROUND)


def test_a_run_of_an_older_version_records_no_adapter(own: Path):
    began = Bindings.read(own)
    assert began is not None
    Bindings({name: value for name, value in began.values.items() if name != "adapters"}).write(own)
    (own / "adapter" / "bound.json").unlink()
    finished_run(own)
    Bindings({**began.values, "adapters": 7}).write(own)
    with pytest.raises(InputError, match=r"bindings\.json is damaged"):
        finished_run(own)
