"""Tests that the registry describes every method correctly, and that no code branches on a method's name."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe import adapter
from fftmoe.backbones.lora import lora_modules
from fftmoe.config import parse_recipe
from fftmoe.methods.base import Method
from fftmoe.methods.registry import METHODS
from fftmoe.records import ClientUpdate, names
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.method import method_class

SOURCE = Path(__file__).parents[2] / "src" / "fftmoe"
MEMBERS = {name for name in vars(Method) if not name.startswith("_")} | set(Method.__annotations__)

Compose = Callable[..., Experiment]


@pytest.fixture(scope="module")
def composed(recipe_values: dict[str, Any]) -> Compose:
    made: dict[str, Experiment] = {}

    def make(method: str) -> Experiment:
        if method not in made:
            head = {"kind": "averaged", "learning_rate": 0.5}
            changes = {"method": method, "head": head, "evaluation": {"baselines": "off"}, "trackers": []}
            made[method] = compose(parse_recipe({**recipe_values, **changes}, "tiny"))
        return made[method]

    return make


def trained(experiment: Experiment) -> list[ClientUpdate]:
    """Return the largest updates of two clients in the first round."""
    method, state = experiment.method, experiment.method.init(experiment.model)
    cohort = range(min(2, experiment.num_clients))
    plan = plan_round(method, state, 1, cohort, experiment.budgets, experiment.training, 0)
    return [method.widest_update(client, method.download(state, client)) for client in plan.clients]


def test_importing_the_registry_does_not_import_torch():
    code = "import sys, fftmoe.methods.registry, fftmoe.config; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_the_protocol_has_twelve_members():
    assert len(MEMBERS) == 12


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_every_member_and_the_registered_capabilities(name: str, composed: Compose):
    method = composed(name).method
    assert all(hasattr(method, member) for member in MEMBERS)
    spec = METHODS[name]
    assert isinstance(method, spec.load())
    assert method_class(composed(name).recipe) is spec.load()
    if not spec.capabilities.pools_data:  # pooled data is FFT-MoE with a transformed recipe
        assert method.capabilities == spec.capabilities


@pytest.mark.parametrize("name", METHODS)
def test_models_and_updates_contain_what_the_registry_says_is_trained(name: str, composed: Compose):
    experiment, capabilities = composed(name), METHODS[name].capabilities
    assert bool(lora_modules(experiment.model)) is (capabilities.trains == "low-rank")
    assert bool(adapter.blocks(experiment.model)) is (capabilities.trains != "low-rank")
    families = {names.parse(tensor).family for update in trained(experiment) for tensor in update.tensors}
    expected = {"experts": {"blocks"}, "low-rank": {"lora"}, "head": set()}[capabilities.trains] | {"head"}
    assert families == (set() if not capabilities.shares_statistics else expected)
    parameters = experiment.method.parameters(experiment.largest)
    assert (parameters == 0) is (capabilities.trains == "head")


@pytest.mark.parametrize("name", METHODS)
def test_clients_hold_the_whole_pool_if_the_registry_says_so(name: str, composed: Compose):
    experiment = composed(name)
    method, pools = experiment.method, adapter.blocks(experiment.model)
    state = method.init(experiment.model)
    assigned = method.assign(state, range(experiment.num_clients))
    for client, experts in assigned.items():
        budget = experiment.budgets[client]
        for block, ids in experts.items():
            size = pools[block].num_experts if METHODS[name].capabilities.whole_pool else budget.experts
            assert len(ids) == size


@pytest.mark.parametrize("name", METHODS)
def test_several_clients_train_in_one_batch_if_the_registry_says_so(name: str, composed: Compose):
    experiment = composed(name)
    method, state = experiment.method, experiment.method.init(experiment.model)
    plan = plan_round(method, state, 1, [0], experiment.budgets, experiment.training, 0).clients[0]
    arguments = (experiment.model, [plan], [method.download(state, plan)], [{}])
    if method.capabilities.stacks:
        with method.stack(*arguments) as stack:
            assert all(parameter.shape[0] == 1 for parameter in stack.parameters.values())
    else:
        with pytest.raises(TypeError, match="one client at a time"):
            method.stack(*arguments)


class Nothing:
    """`Nothing` is an aggregator that changes no tensor."""

    def __init__(self, shapes: Any) -> None:
        self.seen = 0

    def add(self, update: ClientUpdate) -> None:
        self.seen += 1

    def mean(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return {}, {}


@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if spec.capabilities.averages])
def test_another_aggregator_can_replace_the_mean_if_the_registry_says_so(name: str, recipe_values: dict[str, Any]):
    from fftmoe.setup.plugins import Plugins

    federation = {**recipe_values["federation"], "aggregation": "plugin:nothing"}
    values = {
        **recipe_values,
        "method": name,
        "federation": federation,
        "evaluation": {"baselines": "off"},
        "trackers": [],
    }
    experiment = compose(parse_recipe(values, "tiny"), Plugins(aggregators={"nothing": Nothing}))
    state = experiment.method.init(experiment.model)
    after, _ = experiment.method.aggregate(state, trained(experiment))
    assert all(torch.equal(after.tensors[tensor], value) for tensor, value in state.tensors.items())


def names_in_conditions(source: str) -> list[str]:
    """Return comparisons with a method's name, and `isinstance` checks of a method's class."""
    classes = {spec.cls for spec in METHODS.values()} | {"LoraMethod"}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            found += [ast.unparse(node)] * bool(METHODS.keys() & texts)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            found += [ast.unparse(node)] * bool(classes & {n.id for n in ast.walk(node) if isinstance(n, ast.Name)})
    return found


def test_no_code_branches_on_the_name_of_a_method():
    found = {str(p.relative_to(SOURCE)): names_in_conditions(p.read_text()) for p in SOURCE.rglob("*.py")}
    assert {path: places for path, places in found.items() if places} == {}


@pytest.mark.parametrize(
    "line", ['recipe.method == "flame"', 'm in ("local-only", "fedsa-lora")', "isinstance(method, LoraMethod)"]
)
def test_the_search_finds_a_branch_on_a_name(line: str):
    assert names_in_conditions(f"x = {line}\n")
