"""Shows a person what a recipe asks of a site, and writes the person's approval into the site's policy."""

import os
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from fftmoe.data.chats import CHATS, PRODUCED
from fftmoe.data.contexts import ANSWER_COLUMNS, CONTEXTS, INSTRUCTIONS
from fftmoe.deploy.door import POLICY_FILE, read_policy
from fftmoe.deploy.files import PRIVATE_FILE, write_new
from fftmoe.deploy.ledger import ledger_in
from fftmoe.errors import InputError
from fftmoe.setup.consent import limits_exceeded
from fftmoe.setup.policy import NOISY, SitePolicy, parse_policy
from fftmoe.setup.site_request import EVALUATION, SUMS, ColumnsRead, PrivacyAsked, SiteRequest
from fftmoe.shown import count_of
from fftmoe.store.files import disk_errors, sync

FEWEST_ROWS = 10  # in a first policy; an update of fewer rows says much about each of them
FEWEST_ROWS_OF_LABEL = 5  # in a first policy; fewer would show rows nearly as they are, more would lose rare labels
TIMES_ROUNDS = 2  # most_rounds of a first policy: one run, and what a restarted server repeats
PROMISES = {
    "none": "none: the server sees each update of this site as it is",
    "sums": "the server promises to keep sums over sites only, without noise; it sees each update",
    "clients": "the server promises to add noise to sums over sites; it sees each update before that",
    "examples": "this site adds noise to its own update, which hides each of its rows from the server too",
}
NUMBERS_TIMES = "times the numbers that are to be predicted, exact"
RARE_LABELS = " (but for labels with fewer rows than `fewest_rows_of_label` of the policy)"

FIRST_POLICY = """# What a server may ask of this site. What this file does not allow is refused.
# Written by `fftmoe deploy site review` for the recipe {name}; change it with an editor. It is read again for
# every request, and docs/deploy.md explains every key.

# The columns of the site's rows that a recipe may read: as input, as answers, as the natural client, as strata.
columns:
  text: {text}
  label: {label}
  client: {client}
  strata: {strata}

# What may be asked for: profile, training, feature-sums (exact statistics for a closed-form head), evaluation
# (sums of how well the model answers rows that the site never trains on).
tasks: {tasks}

# {promise}.
privacy:
  modes: [{mode}]
{budget}
# The foundation models that a recipe may name.
backbones: {backbones}

# With fewer rows the site takes no part, and it gives no answer that depends on fewer rows: not on those that it sets
# aside for evaluation, and not on the few that a round of few steps draws.
fewest_rows: {fewest_rows}

# Some answers have a sum for each label: feature sums, and evaluation where a text has several labels or words have
# labels. The sum over a label's only row is that row. Rows of a label with fewer rows than this are in no feature sum,
# and its counts are in no evaluation: then this site adds nothing to what the model knows of that label's features.
fewest_rows_of_label: {fewest_rows_of_label}

# How often the site trains, over all runs and servers: twice the {rounds} rounds of this recipe, because a server
# that restarts repeats a round.
most_rounds: {most_rounds}

# Whether the server may know the number of rows. If not, the site states `fewest_rows` in its place.
name_counts: {name_counts}

# The folder of the ledger. Sites with the same rows must share one, also in a later deployment.
ledger: .

# A file elsewhere, at best on another disk, that says how far the ledger was. With it an older copy of this whole
# folder is noticed, such as one that a backup brings back. Name it in full, before the site answers:
# mark: /var/lib/fftmoe/this-site.mark

# Recipes that a person has reviewed. `fftmoe deploy site review` adds a line, so keep this the last key.
recipes:
"""
BUDGET_TEMPLATE = """  # What any row may lose in all runs together, as the site's own ledger counts it.
  epsilon: {epsilon}
  delta: {delta}
"""


def describe_request(request: SiteRequest) -> list[str]:
    """Return what a recipe asks of a site, for a person. Words of the recipe are quoted,
    so they cannot act on a terminal.
    """
    columns = [
        f"{', '.join(map(repr, getattr(request.columns, use.name)))} as {use.name}"
        for use in fields(ColumnsRead)
        if getattr(request.columns, use.name)
    ]
    return [
        f"recipe {request.name!r}, {request.digest}",
        f"  asks for  {', '.join(request.tasks)}; {count_of(request.rounds, 'round')}",
        f"  reads     column {', '.join(columns)}{_conversations_read(request.columns)}",
        f"  labels    {_labels_asked(request)}",
        f"  backbone  {request.backbone!r}"
        + (", a folder: start the site with --model to use its own" if request.is_folder else ""),
        f"  trains    {request.values['method']!r}, {_steps(request)}",
        f"  privacy   {PROMISES[request.privacy.mode]}{_privacy_shown(request.privacy)}",
        f"  sends     {_sent(request)}",
    ]


def _conversations_read(columns: ColumnsRead) -> str:
    """Return what is read under the names of other columns: these are made where a table has none."""
    asked = PRODUCED & {name for use in fields(ColumnsRead) for name in getattr(columns, use.name)}
    if not asked:
        return ""
    return (
        f"; in a table without {' or '.join(sorted(asked))} the conversations in its column {', '.join(CHATS)}, or its "
        f"column {', '.join((*INSTRUCTIONS, *CONTEXTS, *ANSWER_COLUMNS))}"
    )


def approve(site: Path, request: SiteRequest, epsilon: float | None) -> str:
    """Write an approval into the policy of the site; a site without a policy gets one, and a ledger if it has none.

    Args:
        epsilon: what the rows may lose, in a first policy; None for what the recipe states.

    Returns:
        what was done, for a person.

    Raises:
        InputError: the policy does not allow what the recipe asks, or cannot be extended; nothing has been changed.
        OutputError: the policy or the ledger cannot be written.
    """
    path = site / POLICY_FILE
    if not os.path.lexists(path):
        _check_labels_known(request, None)
        text = first_policy(request, epsilon)
        is_new = ledger_in(site, site).begin_or_keep()
        _replace_policy(path, text.encode())
        done = "began the site's ledger" if is_new else "kept the site's ledger"
        return f"wrote {path}, which allows this recipe and nothing else, and {done}; read the policy now"
    policy = read_policy(site)
    _check_labels_known(request, policy.labels)
    if request.digest in policy.recipes:
        return f"{path} has approved this recipe before"
    if reasons := limits_exceeded(policy, request, own_model=request.is_folder):
        raise InputError(f"{path} does not allow this recipe: {'; '.join(reasons)}; change the policy first, or do not")
    _extend(path, policy, request)
    return f"added the recipe to {path}"


def first_policy(request: SiteRequest, epsilon: float | None) -> str:
    """Return a policy with comments that allows this recipe and nothing else.

    Raises:
        InputError: the recipe promises noise without saying how much privacy it leaves.
    """
    asked = request.privacy
    budget = ""
    if asked.mode in NOISY:
        granted = asked.epsilon if epsilon is None else epsilon
        if granted is None or asked.delta is None:
            raise InputError(
                f"the recipe {request.name!r} states no epsilon that its rounds stay within; have it added "
                "(privacy.epsilon or privacy.examples.epsilon), or say what the rows may lose: --epsilon"
            )
        budget = BUDGET_TEMPLATE.format(epsilon=granted, delta=asked.delta)
    text = FIRST_POLICY.format(
        name=ascii(request.name),
        tasks=_flow(list(request.tasks)),
        promise=PROMISES[asked.mode],
        mode=asked.mode,
        budget=budget,
        backbones=_flow([request.backbone]),
        fewest_rows=FEWEST_ROWS,
        fewest_rows_of_label=FEWEST_ROWS_OF_LABEL,
        rounds=request.rounds,
        most_rounds=TIMES_ROUNDS * request.rounds,
        # With noise of its own, a site's epsilon depends on its rows, so the server has to know them.
        name_counts=str(request.sends_counts or asked.mode == "examples").lower(),
        **{use.name: _flow(list(getattr(request.columns, use.name))) for use in fields(ColumnsRead)},
    )
    return text + _policy_line(request)


def _check_labels_known(request: SiteRequest, own: Sequence[str] | None) -> None:
    if request.labels is None and own is None:
        raise InputError(
            f"the recipe {request.name!r} states no data.labels, so a server could ask which labels this site has, one "
            "after another; have data.labels added to the recipe, or write the names as `labels` into the policy"
        )


def _extend(path: Path, policy: SitePolicy, request: SiteRequest) -> None:
    """Add a line to the end of the policy, if this adds the digest and changes nothing else."""
    text = path.read_bytes()
    longer = text + (b"" if text.endswith(b"\n") else b"\n") + _policy_line(request).encode()
    wanted = policy.model_copy(update={"recipes": [*policy.recipes, request.digest]})
    try:
        fits = parse_policy(longer, str(path)) == wanted
    except InputError:
        fits = False
    if not fits:
        raise InputError(
            f"{path} does not end with a list of `recipes`, one on each line; add this under `recipes` yourself: "
            f"{_policy_line(request).strip()}"
        )
    _replace_policy(path, longer)


def _replace_policy(path: Path, data: bytes) -> None:
    """Replace the policy as a whole; nobody else may change it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            write_new(temporary, data, PRIVATE_FILE)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _policy_line(request: SiteRequest) -> str:
    return f"  - {request.digest}  # {request.name!a}, approved {datetime.now(UTC):%Y-%m-%d}\n"


def _flow(values: list[str]) -> str:
    """Return a list of texts on one line of YAML."""
    return yaml.safe_dump(values, default_flow_style=True, width=float("inf")).strip()


def _labels_asked(request: SiteRequest) -> str:
    if request.labels is None:
        return "not stated, so the server chooses what this site must have; ask for data.labels in the recipe"
    return ", ".join(map(repr, request.labels)) or "none"


def _steps(request: SiteRequest) -> str:
    epochs, steps = (request.values[f"federation.local_{kind}"] for kind in ("epochs", "steps"))
    times = count_of(steps, "step") if epochs is None else count_of(epochs, "epoch")
    return f"{times} in batches of {request.values['federation.batch_size']} in each round"


def _privacy_shown(asked: PrivacyAsked) -> str:
    stated: dict[str, Any] = {"epsilon": asked.epsilon, "delta": asked.delta}
    text = ", ".join(f"{name} {value:g}" for name, value in stated.items() if value is not None)
    noise = (
        f"; noise {asked.noise_multiplier:g} in each of {count_of(asked.steps, 'step')} a round" if asked.steps else ""
    )
    return f" ({text}{noise})" if text else ""


def _sent(request: SiteRequest) -> str:
    parts = ["its budget", "the changes of what it trained"]
    if request.privacy.mode == "none":
        parts.append("how many tokens each expert got, its loss")
    if SUMS in request.tasks:
        by = f"over those of each label, exact{RARE_LABELS}" if SUMS in request.sums_by_label else NUMBERS_TIMES
        parts.append(f"feature statistics summed over its rows and {by}")
    if EVALUATION in request.tasks:
        by_label = f" and counted for each label{RARE_LABELS}" if EVALUATION in request.sums_by_label else ""
        parts.append(f"how well the model answers the rows it sets aside, summed over them{by_label}")
    return ", ".join([*parts, "the number of its rows" if request.sends_counts else "no number of rows in an answer"])
