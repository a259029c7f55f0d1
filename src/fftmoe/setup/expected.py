"""Says what the clients of an experiment may answer, from its recipe."""

import math

from fftmoe.backbones import fingerprint
from fftmoe.config import Recipe
from fftmoe.records import ClientPlan, Tensors
from fftmoe.rounds.before_and_after import WRITTEN
from fftmoe.rounds.exchange import Expect
from fftmoe.server.expectation import Expectation, Validated
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.judged import make_answers
from fftmoe.setup.load import longest_example


def compares_updates(recipe: Recipe) -> bool:
    """Return whether the server may look at single updates, and nothing else bounds them.

    Robust means do. Private sums clip each update to `privacy.clip_norm`, and whom a server would leave out depends on
    data that noise on the sums does not hide. Noise that a site has added to its own examples hides them here too.
    """
    own = recipe.privacy is None or recipe.privacy.examples is not None
    return own and recipe.robustness is None


def expectations(experiment: Experiment) -> Expect:
    """Return what clients of this experiment may answer, as a function of what they are sent."""
    # Padding is no token. Images have more tokens than `max_length` says, and all have the same number.
    max_tokens = max(longest_example(experiment.recipe), math.ceil(experiment.mean_tokens))
    backbone, bound = fingerprint(experiment.model), experiment.recipe.federation.max_update_norm
    max_norm = None if isinstance(bound, str) else bound
    compared = bound == "auto" and compares_updates(experiment.recipe)
    answers = make_answers(experiment.recipe)
    measured = {experiment.task.metric: experiment.task.bounds}
    written: dict[str, tuple[float, float]] = (
        {} if experiment.recipe.evaluation.generate is None else {name: (0.0, 1.0) for name in WRITTEN}
    )

    def expect(client: ClientPlan, tensors: Tensors) -> Expectation:
        num_examples = int(experiment.sizes[client.client_id])  # of a site, as it said when the run began
        method = experiment.method
        validated = _validated(experiment, client.client_id, max_tokens) if client.task == "validate" else None
        return Expectation.of(
            client,
            tensors,
            method,
            backbone,
            num_examples,
            max_tokens,
            max_norm,
            measured,
            compared,
            validated,
            written,
            answers,
        )

    return expect


def _validated(experiment: Experiment, client_id: int, max_tokens: int) -> Validated:
    """Return what a client's statistics of its validation rows can be."""
    task, num_rows = experiment.task, int(experiment.held_out.numbers[client_id])
    least, most = task.limits(len(experiment.label_names), num_rows, max_tokens)
    return Validated(num_rows, least, most, lambda sums: float(task.metrics(sums)[task.metric]), task.bounds)
