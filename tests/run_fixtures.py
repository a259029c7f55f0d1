"""Fixtures of whole runs: of the tiny recipe, of five clients, and of a language model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from finished import Finished
from five_clients import changed, five_clients
from shared_fixtures import Cli

if TYPE_CHECKING:
    from fftmoe.setup.experiment import Experiment


class Planned(NamedTuple):
    """The output of `fftmoe plan`."""

    values: dict[str, Any]  # for programs
    shown: str  # for people


RunTiny = Callable[..., Finished]
PlanTiny = Callable[..., Planned]
RunValues = Callable[[dict[str, Any]], Finished]
FiveRecipe = Callable[..., dict[str, Any]]
RunFive = Callable[..., Finished]
RunLanguage = Callable[..., Finished]
ComposeFive = Callable[..., "Experiment"]


@pytest.fixture
def shrunk_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink closed-form heads so much that they are well-conditioned: rounding is then not multiplied by thousands.

    The test must use a seed that no other test uses, because equal recipes run once.
    """
    monkeypatch.setattr("fftmoe.head.closed_form.STRENGTHS", (1.0,))


@pytest.fixture(scope="session")
def run_tiny(cli: Cli, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunTiny:
    """`run_tiny("seed=1", …)` runs the tiny recipe with these overrides into a new folder."""

    def call(*overrides: str, flags: tuple[str, ...] = ()) -> Finished:
        folder = tmp_path_factory.mktemp("runs") / "run"
        outcome = cli("run", recipe_file, "--output", folder, *as_options(*overrides), *flags)
        assert outcome.status == 0, outcome.err
        return Finished(folder, outcome)

    return call


@pytest.fixture(scope="session")
def run_values(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> RunValues:
    """`run_values(values)` runs a recipe of these values through the command line, without further measurements."""

    def call(values: dict[str, Any]) -> Finished:
        folder = tmp_path_factory.mktemp("values")
        (folder / "tiny.yaml").write_text(
            yaml.safe_dump({**values, "trackers": [], "evaluation": {"baselines": "off"}})
        )
        outcome = cli("run", folder / "tiny.yaml", "--output", folder / "run")
        assert (outcome.status, outcome.err) == (0, "")
        return Finished(folder / "run", outcome)

    return call


def as_options(*overrides: str) -> list[str]:
    """The overrides as options of the command line."""
    return [part for override in overrides for part in ("--set", override)]


@pytest.fixture(scope="session")
def tiny_run(run_tiny: RunTiny) -> Finished:
    """The tiny recipe, run as it is; no test changes it."""
    return run_tiny()


@pytest.fixture(scope="session")
def plan_tiny(cli: Cli, recipe_file: Path) -> PlanTiny:
    """`plan_tiny("seed=1", …)` is the plan of the tiny recipe with these overrides."""

    def call(*overrides: str) -> Planned:
        outcome, shown = (cli("plan", recipe_file, *flags, *as_options(*overrides)) for flags in (("--json",), ()))
        for output in (outcome, shown):
            assert (output.status, output.err) == (0, "")
        return Planned(json.loads(outcome.out), shown.out)

    return call


@pytest.fixture(scope="session")
def five_recipe(recipe_values: dict[str, Any]) -> FiveRecipe:
    """`five_recipe("fedit", head, **{"federation.rounds": 1})`: a recipe of five clients."""
    return lambda *arguments, **changes: five_clients(recipe_values, *arguments, **changes)


@pytest.fixture(scope="session")
def run_five(five_recipe: FiveRecipe, tmp_path_factory: pytest.TempPathFactory) -> RunFive:
    """Runs such a recipe; equal recipes run once."""
    run = _run_once(tmp_path_factory)
    return lambda *arguments, **changes: run(five_recipe(*arguments, **changes))


@pytest.fixture(scope="session")
def language_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of a tiny language model and its prompts; see `language_recipe`."""
    from language import language_recipe, save_language_model, save_prompts

    folder = tmp_path_factory.mktemp("language")
    return language_recipe(save_language_model(folder / "model"), save_prompts(folder / "data"))


@pytest.fixture(scope="session")
def run_language(language_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunLanguage:
    """`run_language(federation__rounds=1)` runs that recipe with changes; equal recipes run once."""
    run = _run_once(tmp_path_factory)
    return lambda **changes: run(changed(language_values, **changes))


@pytest.fixture(scope="session")
def preference_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of a tiny language model and its pairs of answers; see `preference_recipe`."""
    from language import CHAT, preference_recipe, save_language_model, save_pairs

    folder = tmp_path_factory.mktemp("pairs")
    return preference_recipe(save_language_model(folder / "model", chat_template=CHAT), save_pairs(folder / "data"))


@pytest.fixture(scope="session")
def run_preference(preference_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunLanguage:
    """`run_preference(federation__rounds=1)` runs that recipe with changes; equal recipes run once."""
    run = _run_once(tmp_path_factory)
    return lambda **changes: run(changed(preference_values, **changes))


def _run_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Finished]:
    """Runs a recipe into a new folder, or returns the run of an equal recipe."""
    from fftmoe.config import parse_recipe
    from fftmoe.setup.run import run

    done: dict[str, Finished] = {}

    def call(recipe: dict[str, Any]) -> Finished:
        key = json.dumps(recipe, sort_keys=True)
        if key not in done:
            folder = tmp_path_factory.mktemp("runs") / "run"
            run(parse_recipe(recipe, "tiny"), folder)
            done[key] = Finished(folder)
        return done[key]

    return call


@pytest.fixture(scope="session")
def compose_five(five_recipe: FiveRecipe) -> ComposeFive:
    """`compose_five("fedit", head)`: the parts of such a run."""
    from fftmoe.config import parse_recipe
    from fftmoe.setup.compose import compose

    return lambda *arguments, **changes: compose(parse_recipe(five_recipe(*arguments, **changes), "tiny"))
