"""Every hook that an own method can override is called: beside batches of clients, cached states and workers, too."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe.backbones import check_skipped, enable_resume
from fftmoe.config import parse_recipe
from fftmoe.data import WithPrefix
from fftmoe.errors import InputError, RunError
from fftmoe.methods.base import Defaults, Method, Session, stack_follows_session
from fftmoe.methods.fedit import FedIt
from fftmoe.methods.fft_moe import FftMoe, FftMoeSession
from fftmoe.setup.compose import compose
from fftmoe.setup.plugins import Plugins
from fftmoe.setup.run import run
from fftmoe.setup.stacking import clients_per_batch
from five_clients import five_clients


def hooks_of(protocol: type) -> list[str]:
    return [name for name, value in vars(protocol).items() if callable(value) and not name.startswith("_")]


HOOKS = hooks_of(Method)
CALLS = "FFTMOE_TEST_CALLS"  # the file that counts calls, in worker processes too


def counted(base: type, hook: str, calls: list[str]) -> type:
    """A subclass that overrides this hook only, and counts its calls."""

    def overridden(self: Any, *arguments: Any) -> Any:
        calls.append(hook)
        return getattr(super(made, self), hook)(*arguments)

    made = type("Counted", (base,), {hook: overridden})
    return made


class Counting(FftMoe):
    """Counts its sessions in a file."""

    def session(self, *arguments: Any, **named: Any) -> Any:
        with Path(os.environ[CALLS]).open("a") as file:
            file.write("session\n")
        return super().session(*arguments, **named)


class Noted(FftMoeSession):
    """Counts what is asked of a session."""

    calls: list[str]

    def penalty(self, mask: torch.Tensor | None) -> torch.Tensor:
        self.calls.append("penalty")
        return super().penalty(mask)

    def finish(self, *arguments: Any, **named: Any) -> Any:
        self.calls.append("finish")
        return super().finish(*arguments, **named)


@pytest.fixture
def values(recipe_values: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose clients share batches, with cached states, and with models of the clients."""
    made = five_clients(recipe_values, method="plugin:own", engine__clients_per_batch="auto")
    return made | {"evaluation": {"personal": True, "local_only": True}}


def test_the_recipe_of_these_tests_stacks_clients_and_caches_states(values: dict[str, Any]):
    experiment = compose(parse_recipe(values | {"method": "fft-moe"}, "here"))
    assert clients_per_batch(experiment) > 1
    assert isinstance(experiment.train, WithPrefix)


@pytest.mark.parametrize(
    ("base", "hook"),
    [(FftMoe, hook) for hook in HOOKS] + [(FedIt, hook) for hook in HOOKS if hook != "stack"],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_a_hook_that_is_overridden_alone_is_called(base: type, hook: str, values: dict[str, Any], tmp_path: Path):
    calls: list[str] = []
    run(parse_recipe(values, "here"), tmp_path / "run", plugins=Plugins(methods={"own": counted(base, hook, calls)}))
    assert calls


def test_what_a_session_of_ones_own_does_happens_in_every_step(values: dict[str, Any], tmp_path: Path):
    calls: list[str] = []

    class Own(FftMoe):
        def session(self, model: Any, plan: Any, tensors: Any, client_state: Any) -> Any:
            made = Noted(model, plan, tensors, client_state, self.local, self.num_experts)
            made.calls = calls
            return made

    asked = values | {"evaluation": {}}
    run(parse_recipe(asked, "here"), tmp_path / "run", plugins=Plugins(methods={"own": Own}))
    rounds, cohort, steps = 2, 3, 2
    assert calls.count("penalty") == rounds * cohort * steps
    assert calls.count("finish") == rounds * cohort
    assert {name for name in hooks_of(Session)} == {"penalty", "finish"}


class Mixin:
    """Changes local training of the method that it is mixed into."""

    def session(self, *arguments: Any, **named: Any) -> Any:
        return super().session(*arguments, **named)  # type: ignore[misc]


class Mixed(Mixin, FftMoe):
    pass


class Both(FftMoe):
    def session(self, *arguments: Any, **named: Any) -> Any:
        return super().session(*arguments, **named)

    def stack(self, *arguments: Any, **named: Any) -> Any:
        return super().stack(*arguments, **named)


class StackOnly(FftMoe):
    def stack(self, *arguments: Any, **named: Any) -> Any:
        return super().stack(*arguments, **named)


class SessionAfterStack(Both):
    def session(self, *arguments: Any, **named: Any) -> Any:
        return super().session(*arguments, **named)


class Wrapper(Defaults):
    """Hands on what it does not do itself."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Handing:
    """Hands on everything."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class HandingWithSession(Handing):
    def session(self, *arguments: Any, **named: Any) -> Any:
        return self.inner.session(*arguments, **named)


def on_the_object(method: Any) -> Any:
    made = Handing(method)
    vars(made)["session"] = method.session
    return made


@pytest.mark.parametrize(
    ("make", "follows"),
    [
        (lambda method: method, True),
        (Handing, True),
        (lambda method: Handing(Handing(method)), True),
        (HandingWithSession, False),
        (lambda method: Handing(HandingWithSession(method)), False),
        (Wrapper, False),
        (on_the_object, False),
        *[
            (lambda method, cls=cls: cls(method.budgets, method.shape, method.num_experts), follows)
            for cls, follows in (
                (Counting, False),
                (Mixed, False),
                (SessionAfterStack, False),
                (Both, True),
                (StackOnly, True),
            )
        ],
    ],
)
def test_clients_share_a_batch_only_where_that_does_what_the_session_does(
    make: Callable[[Any], Any], follows: bool, values: dict[str, Any]
):
    experiment = compose(parse_recipe(values, "here"), Plugins(methods={"own": make}))
    assert stack_follows_session(experiment.method) is follows
    assert (clients_per_batch(experiment) > 1) is follows


def test_several_clients_a_batch_are_refused_with_a_session_of_ones_own(values: dict[str, Any]):
    values["engine"]["clients_per_batch"] = 3
    experiment = compose(parse_recipe(values, "here"), Plugins(methods={"own": Counting}))
    with pytest.raises(InputError, match=r"clients_per_batch=3: method plugin:own has a session of its own.*set it"):
        clients_per_batch(experiment)


def hooked(model: Any) -> None:
    model.get_submodule("base_model.model.backbone.encoder.layer.0").register_forward_hook(lambda *_: None)


def trained(model: Any) -> None:
    next(model.get_submodule("base_model.model.backbone.encoder.layer.0").parameters()).requires_grad_(True)


def overwritten(model: Any) -> None:
    with torch.no_grad():
        next(model.get_submodule("base_model.model.backbone.encoder.layer.0").parameters()).mul_(2)


@pytest.mark.parametrize("touch", [hooked, trained, overwritten])
def test_a_session_that_touches_blocks_whose_states_are_cached_is_refused(
    touch: Callable[[Any], None], values: dict[str, Any], tmp_path: Path
):
    class Touching(FftMoe):
        def session(self, model: Any, *arguments: Any, **named: Any) -> Any:
            touch(model)
            return super().session(model, *arguments, **named)

    plugins = Plugins(methods={"own": Touching})
    with pytest.raises((InputError, RunError), match=r"blocks 0 to 0, and these do not run.*prefix_cache=off"):
        run(parse_recipe(values, "here"), tmp_path / "run", plugins=plugins)
    values["engine"]["prefix_cache"] = "off"
    run(parse_recipe(values | {"evaluation": {}}, "here"), tmp_path / "off", plugins=plugins)


def test_an_untouched_model_passes(moe_model: Any):
    check_skipped(moe_model)
    enable_resume(moe_model, 1)
    check_skipped(moe_model)
    hooked(moe_model)
    with pytest.raises(InputError, match="do not run"):
        check_skipped(moe_model)


@pytest.mark.slow
def test_a_session_of_ones_own_is_called_in_worker_processes(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(CALLS, str(tmp_path / "calls"))
    values["engine"]["workers"] = 2
    asked = values | {"evaluation": {}}
    run(parse_recipe(asked, "here"), tmp_path / "run", plugins=Plugins(methods={"own": Counting}))
    assert (tmp_path / "calls").read_text().count("session") == 2 * 3
