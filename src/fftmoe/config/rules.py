"""Checks the rules of a recipe that concern more than one of its sections."""

from fftmoe.config.backbone import READS_LISTS
from fftmoe.config.declared import check_declared
from fftmoe.config.own_training import check_can_train_on, check_own_training
from fftmoe.config.plugins import is_plugin
from fftmoe.config.preference import IMITATING
from fftmoe.config.privacy import PrivacySection
from fftmoe.config.schema import Recipe
from fftmoe.methods.registry import METHODS, Capabilities

AVERAGING = tuple(name for name, spec in METHODS.items() if spec.capabilities.averages)
"""The methods whose server only averages deltas, so that another aggregation can replace the mean."""

OWN_LOSS = ("token-classification", "multi-label-classification", "regression")
"""The tasks with a head whose loss does not depend on its kind (`fftmoe.tasks.LOSSES`, which needs torch)."""


def _capabilities(recipe: Recipe) -> Capabilities | None:
    """Return the capabilities of the recipe's method; None for a plug-in,
    which is known only where the recipe is run.
    """
    return METHODS[recipe.method].capabilities if recipe.method in METHODS else None


def check_rules(recipe: Recipe) -> None:
    """Check what concerns more than one section; each section has checked its own values.

    Raises:
        ValueError: a rule is broken; the message says which, with which values, and what to change.
    """
    _check_task(recipe)
    _check_plugins(recipe)
    _check_best_round(recipe)
    check_own_training(recipe)
    if (method := _capabilities(recipe)) is not None:
        check_capabilities(recipe, method)
    _check_robustness(recipe)
    if recipe.privacy is not None:
        _check_privacy(recipe, recipe.privacy)
    _check_clients(recipe)


def _check_task(recipe: Recipe) -> None:
    task, data, evaluation = recipe.backbone.task, recipe.data, recipe.evaluation
    language = recipe.backbone.is_language
    _check_pairs(recipe)
    if not language and (data.prompt or evaluation.generate):
        key = "data.prompt" if data.prompt else "evaluation.generate"
        raise ValueError(f"{key} is for language models; set backbone.task=causal-lm, or leave it out")
    if task in OWN_LOSS and recipe.head and recipe.head.kind == "one-vs-all":
        raise ValueError(
            f"head.kind=one-vs-all is for single-label classification, and backbone.task={task} has another loss; use "
            "head.kind=closed-form or averaged"
        )
    content, answer = ("image", data.image) if task == "image-classification" else ("text", data.text)
    if task.endswith("-classification") and task != "token-classification" and answer == data.label:
        raise ValueError(
            f"data.{content} and data.label both name column {answer!r}; a model would read what it is to answer: name "
            "another column in one of them"
        )
    if (task == "regression") != (data.targets is not None):
        raise ValueError(
            f"backbone.task={task} and data.targets={data.targets} do not fit: a regression needs data.targets, the "
            "columns with the numbers, and no other task has them; change one of the two"
        )
    if data.list_separator is not None and task not in READS_LISTS:
        raise ValueError(
            f"data.list_separator={data.list_separator!r} divides cells into lists, which backbone.task={task} does "
            f"not read; set backbone.task to {' or '.join(READS_LISTS)}, or leave it out"
        )
    if evaluation.generate and data.prompt is None:
        raise ValueError(
            "evaluation.generate continues prompts; name their columns with data.prompt and data.completion"
        )


def _check_pairs(recipe: Recipe) -> None:
    """Check that a preference, and nothing else, is about pairs of answers."""
    task, data = recipe.backbone.task, recipe.data
    if (task == "preference") != (data.chosen is not None):
        raise ValueError(
            f"backbone.task={task} and data.chosen={data.chosen} do not fit: a preference needs data.prompt, "
            "data.chosen and data.rejected, and no other task has the last two; change one of the two"
        )
    if task == "preference" and recipe.evaluation.generate:
        raise ValueError(
            "evaluation.generate compares what a model writes with completions, and a preference has none; leave it out"
        )
    loss, part = recipe.preference and recipe.preference.loss, recipe.engine.micro_batch_size
    if loss in IMITATING and part is not None:
        raise ValueError(
            f"engine.micro_batch_size={part} weighs the parts of a step by their pairs, and preference.loss={loss} is "
            "also a mean over tokens; leave engine.micro_batch_size out, or use dpo, ipo or simpo"
        )


def _check_plugins(recipe: Recipe) -> None:
    used = [name for name in (recipe.method, recipe.federation.aggregation) if is_plugin(name)]
    if used and recipe.privacy is not None:
        raise ValueError(
            f"the guarantees of privacy hold only for the methods and aggregations of fftmoe, and {used[0]} is a "
            "plug-in; leave privacy out, or use another"
        )
    if is_plugin(recipe.method) and recipe.robustness is not None:
        raise ValueError(
            f"the guarantees of robustness hold only for the methods of fftmoe, and {recipe.method} is a plug-in; "
            "leave robustness out, or use another method"
        )


def check_capabilities(recipe: Recipe, method: Capabilities) -> None:
    """Check what a recipe asks against what its method can do; for a plug-in, as soon as it has been found.

    Raises:
        ValueError: as `check_rules`.
    """
    if recipe.backbone.is_language and method.trains == "head":
        raise ValueError(
            f"method {recipe.method} trains a classification head, and a language model has none; choose another"
        )
    _check_method(recipe, method)
    if not method.averages:
        _check_mean(recipe)


def _check_mean(recipe: Recipe) -> None:
    """Refuse another aggregation for a method that has no mean to replace."""
    aggregation = recipe.federation.aggregation
    if is_plugin(aggregation):
        asked, remedy = f"federation.aggregation={aggregation}", "use another aggregation"
    elif recipe.robustness is not None:
        asked, remedy = f"robustness.aggregator={recipe.robustness.aggregator}", "leave robustness out"
    else:
        return
    raise ValueError(
        f"method {recipe.method} does not aggregate by averaging, so {asked} cannot be used; "
        f"use one of {', '.join(AVERAGING)}, or {remedy}"
    )


def _check_method(recipe: Recipe, method: Capabilities) -> None:
    name, head, federation = recipe.method, recipe.head, recipe.federation
    if recipe.closed_form and not method.shares_statistics:
        raise ValueError(
            f"method {name} shares no feature statistics to compute a closed-form head from; use head.kind=averaged"
        )
    if federation.server_optimizer != "sgd" and not method.server_optimizer:
        raise ValueError(f"method {name} has no server optimizer; use federation.server_optimizer=sgd")
    if federation.upload != "float32" and not method.rounded_uploads:
        raise ValueError(
            f"method {name} starts each round with new factors, so a client cannot add what rounding left out to its "
            "next update; use federation.upload=float32"
        )
    if head and not head.trained and method.trains == "head" and head.update != "frozen":
        raise ValueError(
            f"method {name} changes no features, so its closed-form head is computed once: set head.update=frozen "
            "(or trained)"
        )
    check_can_train_on(recipe, method)
    if recipe.evaluation.keep == "best" and method.personal:
        raise ValueError(_NO_BEST)


_NO_BEST = (
    "evaluation.keep=best keeps the global model of an earlier round, and clients' own models exist only for the last "
    "one; set evaluation.keep=last, or evaluation.personal=false with a method that has a global model"
)


def _check_best_round(recipe: Recipe) -> None:
    keeps = recipe.evaluation.keep == "best"
    asked = "evaluation.keep=best" if keeps else "federation.patience" if recipe.federation.patience else None
    if asked and recipe.data.validation is None:
        raise ValueError(
            f"{asked} compares rounds on rows that clients set aside; set data.validation, for example to 0.1"
        )
    if keeps and recipe.evaluation.personal:
        raise ValueError(_NO_BEST)


def _check_robustness(recipe: Recipe) -> None:
    if recipe.robustness is None:
        return
    asked, federation = f"robustness.aggregator={recipe.robustness.aggregator}", recipe.federation
    if federation.aggregation != "per-expert" or federation.activation_power:
        raise ValueError(
            f"{asked} counts each client that trained an expert as one, which excludes federation.aggregation="
            f"{federation.aggregation} with federation.activation_power={federation.activation_power:g}; leave both out"
        )


def _check_privacy(recipe: Recipe, privacy: PrivacySection) -> None:
    federation, method = recipe.federation, _capabilities(recipe)
    assert method is not None, "`_check_plugins` refuses plug-ins"
    if recipe.robustness is not None:
        raise ValueError(
            "privacy hides single updates and robustness compares them, so a run can have one of the two: leave "
            "privacy or robustness out (privacy.clip_norm bounds what one client can do)"
        )
    if method.why_not_private:
        others = [name for name, spec in METHODS.items() if not spec.capabilities.why_not_private]
        raise ValueError(
            f"method {recipe.method} {method.why_not_private}, and privacy shows the server only sums; "
            f"use {', '.join(others[:-1])} or {others[-1]}, or leave privacy out"
        )
    if method.trains == "experts" and recipe.adapter.residents != "balanced":
        raise ValueError(
            f"adapter.residents={recipe.adapter.residents} follows from each client's routing, which privacy hides; "
            "use adapter.residents=balanced"
        )
    if federation.activation_power:
        raise ValueError(
            f"federation.activation_power={federation.activation_power:g} weighs clients by their routing, which "
            "privacy hides; leave it out"
        )
    if privacy.min_contributors > federation.clients_per_round:
        raise ValueError(
            f"privacy.min_contributors={privacy.min_contributors} is above federation.clients_per_round="
            f"{federation.clients_per_round}, so no round could change anything; lower the first or raise the second"
        )
    check_declared(recipe, privacy, method)
    if privacy.noisy:
        _check_client_privacy(recipe)
    if privacy.examples is not None:
        _check_example_privacy(recipe, privacy, method)


def _check_client_privacy(recipe: Recipe) -> None:
    if recipe.closed_form:
        raise ValueError(
            "a closed-form head is computed from exact feature statistics, without noise; with differential privacy "
            "use head.kind=averaged or one-vs-all"
        )
    if recipe.federation.over_selection:
        raise ValueError(
            "with differential privacy each round's clients are drawn by chance only, so none can be in reserve; "
            "leave federation.over_selection out"
        )


def _check_example_privacy(recipe: Recipe, privacy: PrivacySection, method: Capabilities) -> None:
    if privacy.noisy:
        raise ValueError(
            "privacy.examples protects single examples, while privacy.noise_multiplier and privacy.epsilon protect "
            "whole clients; use one of the two"
        )
    if recipe.federation.local_steps is None:
        raise ValueError(
            "privacy.examples counts local steps, which draw examples by chance; set federation.local_steps instead "
            "of local_epochs"
        )
    if recipe.federation.clip_gradients is not None:
        raise ValueError(
            "privacy.examples clips the gradient of every example (privacy.examples.clip_norm), and "
            "federation.clip_gradients would clip the noise too; set federation.clip_gradients=off"
        )
    if method.trains == "experts" and recipe.adapter.balance == "heterogeneity-aware":
        raise ValueError(
            "adapter.balance=heterogeneity-aware uses the routing of all of a client's examples, so one example "
            "changes the weight of the others; with privacy.examples use adapter.balance=switch or none"
        )
    if recipe.closed_form:
        raise ValueError(
            "a closed-form head is computed from exact feature statistics of a client's examples; with "
            "privacy.examples use head.kind=averaged or one-vs-all"
        )


def _check_clients(recipe: Recipe) -> None:
    clients, cohort = recipe.partition.num_clients, recipe.federation.clients_per_round
    if clients is not None and cohort > clients:
        raise ValueError(
            f"federation.clients_per_round={cohort} is above partition.num_clients={clients}; lower it to {clients}"
        )
    names = [budget.name for budget in recipe.budgets]
    if len(set(names)) < len(names):
        raise ValueError(f"two tiers of `budgets` have the same name ({', '.join(names)}); rename one of them")
