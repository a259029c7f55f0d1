"""What the code declares that a recipe may combine: every choice of every key, every method, task, format and so on.

Nothing here is a list of names: a new method, task, kind of partition, export format or choice of a key is crossed as
soon as it is declared. Keys whose values are numbers have no choices; `FURTHER` gives them a second value, and a test
refuses a key that is neither there nor among `STATED`.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from crossed_inputs import COLOURS, DECLARED, OF_OWN_TASK, OWN_METHODS, OWN_TASK, Inputs
from fftmoe.config import Recipe
from fftmoe.config.plugins import PLUGIN_PREFIX, OwnOrPlugin
from fftmoe.data.partition import KINDS
from fftmoe.methods.registry import METHODS
from fftmoe.setup.export import FORMATS
from fftmoe.tasks import TASKS

Combination = Mapping[str, Any]
OWN = f"{PLUGIN_PREFIX}own"
ABSENT = "absent"  # a section or a key that is not written

# What the inputs of the crossing state, and what follows from other axes.
STATED = frozenset(
    {
        *("name", "seed", "start_from", "trackers", "backbone.model", "backbone.task", "method"),
        *("data.source", "data.text", "data.image", "data.label", "data.tokens", "data.tags", "data.targets"),
        "data.list_separator",
        *(
            "data.prompt",
            "data.completion",
            "data.chosen",
            "data.rejected",
            "data.max_length",
            "data.train_examples",
            "data.test_examples",
        ),
        *(
            "adapter.num_experts",
            "adapter.expert_dim",
            "adapter.target_modules",
            "head.kind",
            "head.learning_rate",
            "head.num_features",
        ),
        *("partition.kind", "partition.num_clients", "partition.alpha", "partition.shards_per_client"),
        *("partition.holder_fraction", "partition.by", "partition.min_examples"),
        *("federation.rounds", "federation.clients_per_round", "federation.batch_size", "federation.learning_rate"),
        *("federation.local_epochs", "federation.local_steps", "federation.quorum", "federation.deadline_seconds"),
        *("federation.server_beta1", "federation.server_beta2", "federation.server_epsilon"),
        *("robustness.malicious_fraction", "engine.ray_address", "engine.prefix_cache_mib"),
        *(
            "evaluation.generate.examples",
            "evaluation.generate.max_new_tokens",
            "evaluation.generate.samples",
            "evaluation.personal_examples",
        ),
        *("evaluation.local_only_examples", "evaluation.baselines"),
    }
)
FURTHER: dict[str, tuple[Any, ...]] = {
    "data.validation_examples": (5,),
    "data.labels": ("declared",),
    "data.encoding": ("windows-1252",),
    "data.target_scales": ("stated",),
    "adapter.shared_dim": (2,),
    "adapter.shared_rank": (2,),
    "adapter.blocks": ("last-1",),
    "engine.micro_batch_size": (2,),
    "engine.checkpointing": (True,),
    "adapter.scale": (0.5,),
    "adapter.personal_fraction": (1.0,),
    "adapter.balance_strength": (0.0,),
    "adapter.balance_beta": (0.0,),
    "adapter.balance_epsilon": (0.5,),
    "adapter.z_strength": (0.0,),
    "adapter.load_decay": (0.0,),
    "lora.scale": (1.0,),
    "preference.beta": (2.0,),
    "preference.margin": (0.5,),
    "head.every": (2,),
    "federation.over_selection": (1,),
    "federation.weight_decay": (0.01,),
    "federation.proximal": (0.1,),
    "federation.clip_gradients": (0.5,),
    "federation.warmup_rounds": (1,),
    "data.validation": (0.2,),
    "federation.activation_power": (1.0,),
    "federation.patience": (1,),
    "federation.own_training": (0.5,),
    "federation.max_update_norm": (1e6,),
    "federation.server_learning_rate": (0.5,),
    "federation.ema_decay": (0.5,),
    "evaluation.every": (2,),
    "evaluation.max_examples": (7,),
    "evaluation.personal_clients": (2,),
    "evaluation.local_only_clients": (2,),
}
PRIVACY: dict[str, dict[str, Any] | str] = {
    "off": "off",
    "sums": {"min_contributors": 1},
    "clipped sums": {"min_contributors": 1, "clip_norm": 0.5},
    "clients": {"min_contributors": 1, "clip_norm": 0.5, "noise_multiplier": 0.4, "delta": 1e-3},
    "clients' quantile": {
        **{"min_contributors": 1, "clip_norm": 0.5, "clip_quantile": 0.5},
        **{"epsilon": 50.0, "delta": 1e-3},
    },
    "examples": {
        "min_contributors": 1,
        "examples": {"clip_norm": 0.5, "noise_multiplier": 0.4, "delta": 1e-3, "epsilon": 500.0},
    },
}
PARAMETERS: dict[str, Any] = {"alpha": 5.0, "shards_per_client": 2, "holder_fraction": 0.9, "groups": "author"}
TIERS: dict[str, list[dict[str, Any]]] = {
    "stated": [{"top_k": 1, "experts": 2}, {"top_k": 2, "experts": 3}],
    "some blocks": [{"top_k": 1, "experts": 2, "blocks": "last-1"}, {"top_k": 2, "experts": 3}],
    "memory": [{"top_k": 1, "memory_mib": 1.0}, {"top_k": 1, "uplink_mib": 1.0}],
    "compute": [{"experts": 2, "gflops": 1.0}, {"gflops_per_second": 1.0, "deadline_seconds": 9.0}],
}
LOCAL = {"steps": {"local_steps": 2}, "epochs": {"local_epochs": 1}}
USES = ("resume", "compare", *(f"export {name}" for name in FORMATS))


def keys(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every key of a recipe with its declared choices, which are none for numbers and texts; not those of lists."""
    for name, field in section.model_fields.items():
        parts = list(_parts(field.annotation))
        below = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        if name in ("budgets", "privacy"):
            continue  # `TIERS`, `PRIVACY`
        for inner in below:
            yield from keys(inner, f"{prefix}{name}.")
        if not below:
            validators = [getattr(data, "func", None) for data in field.metadata]
            own = [value for check in validators if isinstance(check, OwnOrPlugin) for value in (*check.names, OWN)]
            yield f"{prefix}{name}", _default_first((*own, *_choices(parts)), field.default)


def _parts(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of, without `Annotated` and `Union`; a list is one type."""
    if get_origin(annotation) in (Literal, list, dict) or not get_args(annotation):
        yield annotation
    else:
        kinds = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
        for kind in kinds:
            yield from _parts(kind)


def _choices(parts: list[Any]) -> tuple[Any, ...]:
    literals = [value for part in parts if get_origin(part) is Literal for value in get_args(part)]
    return (*literals, *((False, True) if bool in parts else ()))


def _default_first(choices: tuple[Any, ...], default: Any) -> tuple[Any, ...]:
    return tuple(sorted(choices, key=lambda value: value != default))


def axes() -> dict[str, tuple[Any, ...]]:
    """Every feature with its values, the plainest first."""
    found: dict[str, tuple[Any, ...]] = {
        "task": (*TASKS, OWN_TASK),
        "method": (*METHODS, *(f"{PLUGIN_PREFIX}{name}" for name in OWN_METHODS)),
        "head": (*_of("head.kind"), ABSENT),
        "partition": (*KINDS, OWN),
        "privacy": tuple(PRIVACY),
        "robustness": ("off", *_of("robustness.aggregator")),
        "tiers": tuple(TIERS),
        "local": tuple(LOCAL),
        "prompt": ("prompt", "text"),
        "evaluation.generate": (False, True),
        "engine.workers": (1, 2),
        "engine.clients_per_batch": ("auto", 2),
        "use": USES,
    }
    for key, choices in keys():
        if key not in STATED and not key.startswith(("robustness.aggregator",)) and key not in found:
            further = FURTHER.get(key, ())
            found[key] = (*choices, *further) if choices else (ABSENT, *further)
    return found


def _of(key: str) -> tuple[Any, ...]:
    return dict(keys())[key]


def plainest(found: Mapping[str, tuple[Any, ...]]) -> Combination:
    """The first value of every axis."""
    return MappingProxyType({name: choices[0] for name, choices in found.items()})


def task_of(c: Combination) -> str:
    """The task that the recipe names."""
    return OF_OWN_TASK if c["task"] == OWN_TASK else c["task"]


def recipe_values(c: Combination, inputs: Inputs) -> dict[str, Any]:
    """The recipe of a combination."""
    values = inputs.recipe(task_of(c))
    values["method"] = c["method"]
    values["partition"] = _partition(c["partition"])
    tiers = zip(("small", "large"), TIERS[c["tiers"]], strict=True)
    values["budgets"] = [{"name": name, "fraction": 0.5, **tier} for name, tier in tiers]
    values["federation"] |= LOCAL[c["local"]]
    if c["head"] != ABSENT:
        values["head"] = {"kind": c["head"], "learning_rate": 0.1, "num_features": 5}
    if c["privacy"] != "off":
        values["privacy"] = PRIVACY[c["privacy"]]
    if c["robustness"] != "off":
        values["robustness"] = {"aggregator": c["robustness"], "malicious_fraction": 0.0}
    if c["evaluation.generate"]:
        values["evaluation"]["generate"] = {"examples": 3, "max_new_tokens": 2, "samples": 2}
    if task_of(c) == "causal-lm" and c["prompt"] == "text":
        del values["data"]["prompt"], values["data"]["completion"]
    for key, value in c.items():
        section, _, name = key.partition(".")
        if name and value != ABSENT and key != "evaluation.generate" and section in values:
            values[section][name] = _written(key, value, c)
    return values


def _written(key: str, value: Any, c: Combination) -> Any:
    if key == "data.labels":
        return list(DECLARED.get(task_of(c), COLOURS))
    if (key, value) == ("data.target_scales", "stated"):
        return [[1.0, 2.0], [3.0, 500.0]]
    return value


def _partition(kind: str) -> dict[str, Any]:
    names = KINDS[kind].parameters if kind in KINDS else ()
    given = {"by" if name == "groups" else name: PARAMETERS[name] for name in names}
    return {"kind": kind, "num_clients": 3, **given}
