"""How many clients train on the backbone at once."""

from fftmoe.backbones import head_parameters
from fftmoe.errors import InputError
from fftmoe.setup.experiment import Experiment
from fftmoe.tasks import LOSSES

# On a CPU (`benchmarks/at_once.py`): a batch of this many tokens keeps a core busy by itself, and beyond so many
# clients nothing more is gained.
BUSY_TOKENS = 128
MOST_CLIENTS = 32


def clients_per_batch(experiment: Experiment) -> int:
    """What the recipe says; for `auto` as many as make one batch of a size that a processor likes.

    It follows from the recipe and the data, not from the number of workers, which must not change results.

    Raises:
        InputError: the recipe asks for several, and the method or the head can only train one.
    """
    wanted = experiment.recipe.engine.clients_per_batch
    reason = "each site trains its own client" if experiment.remote else _not_possible(experiment)
    if wanted == "auto":
        # Natural clients may be sites of their own one day, which train alone and must end with the same bytes.
        natural = experiment.partition.groups is not None
        return 1 if reason or natural else _worthwhile(experiment)
    if wanted > 1 and reason:
        raise InputError(f"engine.clients_per_batch={wanted}: {reason}; set it to 1 or auto")
    return wanted


def _not_possible(experiment: Experiment) -> str | None:
    if experiment.training.example_clip is not None:
        return "privacy.examples takes one example at a time"
    if not experiment.method.capabilities.stacks:
        return f"method {experiment.recipe.method} trains one client at a time"
    if experiment.recipe.backbone.task in LOSSES:
        return f"backbone.task={experiment.recipe.backbone.task} trains one client at a time"
    names = sorted(head_parameters(experiment.model))
    if names != ["bias", "weight"]:
        held = ", ".join(names) or "none"
        return f"the head of {experiment.recipe.backbone.model} is not one linear layer with a bias, but {held}"
    return None


def _worthwhile(experiment: Experiment) -> int:
    federation = experiment.recipe.federation
    typical = experiment.partition.sizes.mean()
    tokens = min(federation.batch_size, typical) * experiment.mean_tokens
    if tokens > BUSY_TOKENS:
        return 1
    # At least two groups, so that two workers have work; it cannot be the number of workers that decides.
    half = -(-federation.clients_per_round // 2)
    return max(1, min(MOST_CLIENTS, half, int(8 * BUSY_TOKENS / tokens)))
