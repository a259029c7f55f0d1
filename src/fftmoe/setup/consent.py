"""Compares what a recipe asks of a site with what the site's policy allows."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from fftmoe.setup.policy import SitePolicy
from fftmoe.setup.site_request import ColumnsRead, SiteRequest
from fftmoe.shown import count_of
from fftmoe.strict import is_number

OWN_RULE = (
    "backbone.model",
    "data.text",
    "data.image",
    "data.label",
    "data.labels",
    "data.prompt",
    "data.completion",
    "data.chosen",
    "data.rejected",
    "data.tokens",
    "data.tags",
    "data.targets",
    "partition.by",
    "federation.rounds",
    "privacy.epsilon",
    "privacy.delta",
    "privacy.examples.epsilon",
    "privacy.examples.delta",
)
"""Keys that another part of a policy bounds, so that `fields` need not list them."""


def objections(policy: SitePolicy, request: SiteRequest, *, own_model: bool) -> list[str]:
    """Return why this policy does not allow this recipe, each reason with what an operator could change; none if it
    does.

    Args:
        own_model: the site was started with a backbone of its own.
    """
    return [*_to_recipe(policy, request), *limits_exceeded(policy, request, own_model=own_model)]


def limits_exceeded(policy: SitePolicy, request: SiteRequest, *, own_model: bool) -> list[str]:
    """Return the objections that hold for an approved recipe too."""
    return [
        *_to_columns(policy, request.columns),
        *(
            f"it asks for the task {task}, and `tasks` has {_joined(policy.tasks)}"
            for task in request.tasks
            if task not in policy.tasks
        ),
        *_to_privacy(policy, request),
        *_to_backbone(policy, request, own_model),
        *_to_numbers(policy, request),
    ]


def label_objection(policy: SitePolicy, request: SiteRequest, sent: Sequence[str]) -> str | None:
    """Return why these names of classes may not be asked for; None if they may.

    Names that nobody has agreed to would tell a server which labels a site has, one question after another.
    """
    allowed = [] if policy.labels is None else [tuple(policy.labels)]
    if request.labels is not None and (not request.labels_in_rows or request.digest in policy.recipes):
        allowed.append(request.labels)
    if tuple(sent) in allowed:
        return None
    return (
        f"the server lists {count_of(len(sent), 'label')}: this is not, in this order, data.labels of an approved "
        "recipe, nor `labels`; have data.labels added to the recipe, or write `labels`"
    )


def _to_recipe(policy: SitePolicy, request: SiteRequest) -> list[str]:
    """Object to a recipe that is not approved by its digest, and has values that `fields` does not allow."""
    if request.digest in policy.recipes:
        return []
    unlisted = sorted(key for key in request.own if key not in OWN_RULE and not _field_allowed(policy, request, key))
    if policy.fields and not unlisted:
        return []
    reason = f"recipe {request.name!r} ({request.digest}) is not approved"
    return [f"{reason}, and `fields` does not allow its {', '.join(unlisted)}" if policy.fields else reason]


def _field_allowed(policy: SitePolicy, request: SiteRequest, key: str) -> bool:
    rule, value = policy.fields.get(key), request.values[key]
    if isinstance(rule, dict):
        within = set(rule) <= {"least", "most"} and all(map(is_number, (value, *rule.values())))
        return bool(rule) and within and rule.get("least", value) <= value <= rule.get("most", value)
    return rule == "any" or _same(rule, value) or (isinstance(rule, list) and any(_same(one, value) for one in rule))


def _same(rule: Any, value: Any) -> bool:
    """Return whether two values are the same; in Python True equals 1."""
    return rule is not None and rule == value and isinstance(rule, bool) == isinstance(value, bool)


def _to_columns(policy: SitePolicy, columns: ColumnsRead) -> Iterator[str]:
    for use in fields(ColumnsRead):
        allowed = getattr(policy.columns, use.name)
        for column in getattr(columns, use.name):
            if column not in allowed:
                yield f"it reads column {column!r} as {use.name}, and `columns.{use.name}` has {_joined(allowed)}"


def _to_privacy(policy: SitePolicy, request: SiteRequest) -> Iterator[str]:
    asked, rights = request.privacy, policy.privacy
    if asked.mode not in rights.modes:
        yield f"its privacy is {asked.mode!r}, and `privacy.modes` has {_joined(rights.modes)}"
        return
    if asked.mode == "clients" and rights.epsilon is not None and asked.epsilon is None:
        yield "it states no privacy.epsilon, so the site cannot hold it to one"
    for name, value, most in (("epsilon", asked.epsilon, rights.epsilon), ("delta", asked.delta, rights.delta)):
        if value is not None and most is not None and value > most:
            yield f"its {name} is {value:g}, and `privacy.{name}` is {most:g}"


def _to_backbone(policy: SitePolicy, request: SiteRequest, own_model: bool) -> Iterator[str]:
    if request.backbone not in policy.backbones and not (request.is_folder and own_model):
        yield f"its backbone is {request.backbone!r}, and `backbones` has {_joined(policy.backbones)}"


def _to_numbers(policy: SitePolicy, request: SiteRequest) -> Iterator[str]:
    if request.rounds > policy.most_rounds:
        yield f"it has {count_of(request.rounds, 'round')}, and `most_rounds` is {policy.most_rounds}"
    if policy.fewest_rows is None:
        yield "`fewest_rows` is not stated"
    if request.sums_by_label and policy.fewest_rows_of_label is None:
        yield (
            f"its answers have sums for each label ({_joined(request.sums_by_label)}), and `fewest_rows_of_label` is "
            "not stated"
        )
    if request.sends_counts and not policy.name_counts:
        yield (
            "its answers say how many rows the site has (a recipe with `privacy` and without a closed-form head does "
            "not), and `name_counts` is false"
        )


def _joined(values: Sequence[str]) -> str:
    return ", ".join(values) or "nothing"
