"""Which combinations are refused, and why, as it follows from what the code declares.

A rule reads declared capabilities (of methods, tasks, heads, kinds of partition, formats) and never a name, except for
those of the choices of a key. Nothing is tried here: `test_crossing.py` tries, and compares.
"""

import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from crossed_features import ABSENT, OWN, PRIVACY, TIERS
from crossed_inputs import OWN_METHODS, OWN_TASK
from fftmoe.backbones.load import POOLED
from fftmoe.config.declared import LABELLED
from fftmoe.config.plugins import PLUGIN_PREFIX, is_plugin
from fftmoe.config.preference import IMITATING
from fftmoe.config.rules import OWN_LOSS
from fftmoe.data.partition import KINDS
from fftmoe.data.roles import LANGUAGE_TASKS
from fftmoe.methods.merge.robust import min_contributors
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.tasks import LOSSES

COHORT = 3


@dataclass(frozen=True)
class Rule:
    """A reason to refuse.

    Attributes:
        words: a regular expression of the message.
        applies: a function of the values of axes, which are named by its parameters (`a__b` is `a.b`).
    """

    words: str
    applies: Callable[..., bool]

    @cached_property
    def axes(self) -> tuple[str, ...]:
        return tuple(name.replace("__", ".") for name in inspect.signature(self.applies).parameters)


def can(method: str) -> Capabilities:
    """The capabilities that a method of the package or a plug-in declares."""
    spec = METHODS.get(method)
    return OWN_METHODS[method.removeprefix(PLUGIN_PREFIX)].capabilities if spec is None else spec.capabilities


def noisy(privacy: str) -> bool:
    settings = PRIVACY[privacy]
    return isinstance(settings, dict) and bool(settings.keys() & {"noise_multiplier", "epsilon"})


def by_examples(privacy: str) -> bool:
    settings = PRIVACY[privacy]
    return isinstance(settings, dict) and "examples" in settings


def private(privacy: str) -> bool:
    return privacy != "off"


def differential(privacy: str) -> bool:
    return noisy(privacy) or by_examples(privacy)


def language(task: str) -> bool:
    return task in LANGUAGE_TASKS


def own_loss(task: str) -> bool:
    return task in LOSSES


def by_example(task: str, head: str) -> bool:
    """Whether each example has a loss of its own."""
    if head == "closed-form":
        return task != "token-classification"
    return task == "causal-lm" or not own_loss(task)


def solved(head: str, update: str) -> bool:
    """Whether the server computes the head and clients never train it."""
    return head == "closed-form" and update != "trained"


RULES: tuple[Rule, ...] = (
    # Heads
    Rule("no head, remove the section|and no head", lambda task, head: language(task) and head != ABSENT),
    Rule("missing key 'head'", lambda task, head: not language(task) and head == ABSENT),
    Rule(
        "is for single-label classification",
        lambda task, head: task in OWN_LOSS and head == "one-vs-all",
    ),
    Rule("language model has none", lambda task, method: language(task) and can(method).trains == "head"),
    Rule(
        "shares no feature statistics",
        lambda method, head: head == "closed-form" and not can(method).shares_statistics,
    ),
    Rule(
        "computed once: set head.update=frozen",
        lambda method, head, head__update: (
            head == "closed-form" and can(method).trains == "head" and head__update == "recomputed"
        ),
    ),
    # Languages and data
    Rule("is for language models", lambda task, evaluation__generate: evaluation__generate and not language(task)),
    Rule(
        "evaluation.generate continues prompts",
        lambda task, prompt, evaluation__generate: evaluation__generate and prompt == "text" and task != "preference",
    ),
    Rule(
        "own_training=0.5 is for language models",
        lambda task, federation__own_training: federation__own_training != ABSENT and not language(task),
    ),
    Rule(
        "own_training=0.5 is kept where rows",
        lambda federation__own_training, data__validation: (
            federation__own_training != ABSENT and data__validation == ABSENT
        ),
    ),
    Rule(
        "own_training=0.5 measures single clients",
        lambda federation__own_training, privacy: federation__own_training != ABSENT and private(privacy),
    ),
    Rule(
        "own_training=0.5 trains copies of the global model",
        lambda federation__own_training, method: (
            federation__own_training != ABSENT
            and (can(method).personal or can(method).pools_data or not can(method).rounded_uploads)
        ),
    ),
    Rule(
        "data.chat_template writes a prompt",
        lambda task, data__chat_template: data__chat_template and not language(task),
    ),
    Rule(
        "data.chat_template writes a prompt",
        lambda task, prompt, data__chat_template: data__chat_template and prompt == "text" and task != "preference",
    ),
    Rule("and a preference has none", lambda task, evaluation__generate: evaluation__generate and task == "preference"),
    Rule(
        "weighs the parts of a step by their pairs",
        lambda task, preference__loss, engine__micro_batch_size: (
            task == "preference" and preference__loss in IMITATING and engine__micro_batch_size != ABSENT
        ),
    ),
    Rule(
        "is for preference.loss=simpo",
        lambda task, preference__margin, preference__loss: (
            task == "preference" and preference__margin != ABSENT and preference__loss != "simpo"
        ),
    ),
    Rule(
        "pairs for 0 data.targets",
        lambda task, data__target_scales: data__target_scales == "stated" and task != "regression",
    ),
    Rule(
        "divides the examples by their labels",
        lambda task, partition: (
            task == "multi-label-classification" and partition in KINDS and KINDS[partition].by_label
        ),
    ),
    # The best round
    Rule(
        "compares rounds on rows that clients set aside",
        lambda evaluation__keep, data__validation: evaluation__keep == "best" and data__validation == ABSENT,
    ),
    Rule(
        "compares rounds on rows that clients set aside",
        lambda federation__patience, data__validation: federation__patience != ABSENT and data__validation == ABSENT,
    ),
    Rule(
        "clients' own models exist only for the last one",
        lambda method, evaluation__keep: evaluation__keep == "best" and can(method).personal,
    ),
    Rule(
        "clients' own models exist only for the last one",
        lambda evaluation__personal, evaluation__keep: evaluation__keep == "best" and evaluation__personal,
    ),
    # Methods and the server
    Rule(
        "has no server optimizer",
        lambda method, federation__server_optimizer: (
            federation__server_optimizer != "sgd" and not can(method).server_optimizer
        ),
    ),
    Rule(
        "what rounding left out",
        lambda method, federation__upload: federation__upload != "float32" and not can(method).rounded_uploads,
    ),
    Rule(
        "does not aggregate by averaging",
        lambda method, federation__aggregation: federation__aggregation == OWN and not can(method).averages,
    ),
    Rule(
        "does not aggregate by averaging",
        lambda method, robustness: robustness != "off" and not can(method).averages,
    ),
    Rule(
        "counts each client that trained an expert as one",
        lambda robustness, federation__aggregation: robustness != "off" and federation__aggregation != "per-expert",
    ),
    Rule(
        "counts each client that trained an expert as one",
        lambda robustness, federation__activation_power: robustness != "off" and federation__activation_power != ABSENT,
    ),
    Rule(
        "needs .* updates, of which",
        lambda robustness: robustness != "off" and min_contributors(robustness, 0) > COHORT,
    ),
    Rule(
        "`experts` is not stated in",
        lambda method, tiers: can(method).whole_pool and any("experts" not in tier for tier in TIERS[tiers]),
    ),
    Rule("is a plug-in", lambda method, robustness: robustness != "off" and is_plugin(method)),
    # Privacy
    Rule("is a plug-in", lambda method, privacy: private(privacy) and is_plugin(method)),
    Rule(
        "is a plug-in",
        lambda privacy, federation__aggregation: private(privacy) and is_plugin(federation__aggregation),
    ),
    Rule(
        "a run can have one of the two",
        lambda privacy, robustness: private(privacy) and robustness != "off",
    ),
    Rule(
        "privacy shows the server only sums",
        lambda method, privacy: private(privacy) and bool(can(method).why_not_private),
    ),
    Rule(
        "follows from each client's routing",
        lambda method, privacy, adapter__residents: (
            private(privacy) and can(method).trains == "experts" and adapter__residents != "balanced"
        ),
    ),
    Rule(
        "weighs clients by their routing",
        lambda privacy, federation__activation_power: private(privacy) and federation__activation_power != ABSENT,
    ),
    Rule(
        "names of the labels must not come",
        lambda task, privacy, data__labels: (
            differential(privacy) and data__labels == ABSENT and (task == OWN_TASK or task in LABELLED)
        ),
    ),
    Rule(
        "scales of the targets must not come",
        lambda task, privacy, data__target_scales: (
            differential(privacy) and task == "regression" and data__target_scales == "auto"
        ),
    ),
    Rule("has no global model", lambda method, privacy: differential(privacy) and can(method).personal),
    Rule(
        "evaluation.personal measures clients' own models",
        lambda privacy, evaluation__personal: differential(privacy) and evaluation__personal,
    ),
    Rule(
        "evaluation.local_only measures clients' own models",
        lambda privacy, evaluation__local_only: differential(privacy) and evaluation__local_only,
    ),
    Rule(
        "data.validation_examples measures exactly on rows of clients",
        lambda privacy, partition, data__validation_examples: (
            differential(privacy) and partition == "natural" and data__validation_examples != ABSENT
        ),
    ),
    Rule(
        "limit on compute",
        lambda privacy, tiers, local: differential(privacy) and tiers == "compute" and local == "epochs",
    ),
    Rule(
        "closed-form head is computed from exact",
        lambda privacy, head: differential(privacy) and head == "closed-form",
    ),
    Rule(
        "none can be in reserve",
        lambda privacy, federation__over_selection: noisy(privacy) and federation__over_selection != ABSENT,
    ),
    Rule(
        "would clip the noise too",
        lambda privacy, federation__clip_gradients: by_examples(privacy) and federation__clip_gradients != ABSENT,
    ),
    Rule(
        "data.validation measures exactly on rows of clients",
        lambda privacy, data__validation: differential(privacy) and data__validation != ABSENT,
    ),
    Rule("privacy.examples counts local steps", lambda privacy, local: by_examples(privacy) and local == "epochs"),
    Rule(
        "uses the routing of all of a client's examples",
        lambda method, privacy, adapter__balance: (
            by_examples(privacy) and can(method).trains == "experts" and adapter__balance == "heterogeneity-aware"
        ),
    ),
    # Engines and machines
    Rule(
        "needs the package bitsandbytes",
        lambda backbone__quantization: (
            backbone__quantization != "none" and importlib.util.find_spec("bitsandbytes") is None
        ),
    ),
    Rule(
        "cannot be changed",
        lambda method, backbone__quantization: backbone__quantization != "none" and can(method).changes_backbone,
    ),
    Rule(
        "torch finds no CUDA GPU",
        lambda engine__device: engine__device == "cuda" and not torch.cuda.is_available(),
    ),
    Rule(
        "trains one client at a time",
        lambda method, task, head, engine__clients_per_batch: (
            engine__clients_per_batch != "auto" and (not can(method).stacks or not by_example(task, head))
        ),
    ),
    Rule(
        "computes a few examples of one client at a time",
        lambda engine__clients_per_batch, engine__micro_batch_size: (
            engine__clients_per_batch != "auto" and engine__micro_batch_size != ABSENT
        ),
    ),
    Rule(
        "gradient of one example at a time",
        lambda privacy, engine__clients_per_batch: by_examples(privacy) and engine__clients_per_batch != "auto",
    ),
)
OWN_PARTS = "no global model|clients keep their own part of the model only for the last one"
"""Why no personal model is exported; with a global model only if an earlier round is kept."""
WHOLE = ("export merged", "export gguf")  # the backbone with a LoRA in its weights
# What is refused after training, when a finished run is used.
LATER: tuple[Rule, ...] = (
    Rule(
        "has no experts",
        lambda method, use: (
            (use in ("export personal", "export lora") and can(method).trains != "experts")
            or (use in WHOLE and can(method).trains == "head")
        ),
    ),
    Rule("exported as it is", lambda method, use: use == "export lora" and can(method).trains == "low-rank"),
    Rule(
        OWN_PARTS,
        lambda method, use, evaluation__keep: (
            use == "export personal" and evaluation__keep == "best" and can(method).trains == "experts"
        ),
    ),
    Rule(
        "without the noise of differential privacy",
        lambda privacy, use: use in ("export lora", *WHOLE) and differential(privacy),
    ),
    Rule(
        "head on pooled features",
        lambda task, use, backbone__pooling: use in WHOLE and task in POOLED and backbone__pooling == "mean",
    ),
    Rule(
        "head of this run reads random features",
        lambda use, head, head__features: use in WHOLE and head == "closed-form" and head__features == "fourier",
    ),
    Rule("writes language models", lambda task, use: use == "export gguf" and not language(task)),
    Rule("no byte-level BPE", lambda task, use: use == "export gguf" and language(task)),
)


def reasons(rules: tuple[Rule, ...], c: Mapping[str, Any]) -> list[str]:
    """The words of every rule that applies to these values; rules on other axes say nothing yet."""
    return [
        rule.words
        for rule in rules
        if all(name in c for name in rule.axes) and rule.applies(*(c[name] for name in rule.axes))
    ]


def refused_at_once(c: Mapping[str, Any]) -> bool:
    return bool(reasons(RULES, c))


def matches(words: list[str], message: str) -> bool:
    return any(re.search(pattern, message) for pattern in words)
