"""Chooses how many clients share one batch on the backbone."""

from fftmoe.backbones import head_parameters
from fftmoe.errors import InputError
from fftmoe.methods.base import stack_follows_session
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.judged import make_loss
from fftmoe.tasks import LossByExample

# Measured on a CPU (`benchmarks/at_once.py`): a batch of BUSY_TOKENS keeps a core busy, and more than MOST_CLIENTS in
# one batch bring no further speed.
BUSY_TOKENS = 128
MOST_CLIENTS = 32


def clients_per_batch(experiment: Experiment) -> int:
    """Return the number of clients per batch that the recipe states; for `auto`, the number that fills a batch.

    The number follows from the recipe and the data. It does not depend on the number of workers, which must not change
    results.

    Raises:
        InputError: the recipe states several clients, but its method or its head supports only one.
    """
    stated = experiment.recipe.engine.clients_per_batch
    obstacle = "each site trains its own client" if experiment.remote else _obstacle(experiment)
    if stated == "auto":
        # Natural clients may later be deployed as sites. A site trains one client and must produce the same bytes.
        natural = experiment.partition.groups is not None
        return 1 if obstacle or natural else _clients_that_fill_a_batch(experiment)
    if stated > 1 and obstacle:
        raise InputError(f"engine.clients_per_batch={stated}: {obstacle}; set it to 1 or auto")
    return stated


def _obstacle(experiment: Experiment) -> str | None:
    """Return why clients cannot share a batch; None if they can."""
    if experiment.training.example_clip is not None:
        return "privacy.examples computes the gradient of one example at a time"
    if experiment.recipe.engine.micro_batch_size is not None:
        return "engine.micro_batch_size computes a few examples of one client at a time"
    if not experiment.method.capabilities.stacks:
        return f"method {experiment.recipe.method} trains one client at a time"
    if not stack_follows_session(experiment.method):
        return (
            f"method {experiment.recipe.method} has a session of its own, and batches of several clients are trained "
            "by `stack`, which does not call it"
        )
    if not isinstance(make_loss(experiment.recipe), LossByExample):
        return f"backbone.task={experiment.recipe.backbone.task} trains one client at a time"
    if experiment.recipe.backbone.is_language:
        return None  # there is no head
    names = sorted(head_parameters(experiment.model))
    if names != ["bias", "weight"]:
        found = ", ".join(names) or "none"
        return (
            "batches of several clients need a head that is one linear layer with a bias, but the head of "
            f"{experiment.recipe.backbone.model} has the parameters {found}"
        )
    return None


def _clients_that_fill_a_batch(experiment: Experiment) -> int:
    """Return the number of clients whose examples fill a batch that keeps a processor busy."""
    federation = experiment.recipe.federation
    typical = experiment.partition.sizes.mean()
    tokens = min(federation.batch_size, typical) * experiment.mean_tokens
    if tokens > BUSY_TOKENS:
        return 1
    # A round has at least two groups, so that two workers have work. The actual number of workers must not matter.
    half = -(-federation.clients_per_round // 2)
    return max(1, min(MOST_CLIENTS, half, int(8 * BUSY_TOKENS / tokens)))
