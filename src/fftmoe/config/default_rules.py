"""Lists the defaults of a recipe, key by key: most of them constants, some by a rule over the facts of the data.

A rule sees what stands above it in `RULES`, and what the recipe states. Under differential privacy, and for a run over
sites, nothing may follow from rows: there every rule gives the value that it has without facts.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fftmoe.config.column_rules import chat_template, column, language_column, max_length, targets, task_of
from fftmoe.config.evaluation import BASELINES
from fftmoe.config.facts import Facts
from fftmoe.config.head_rules import CLASSIFIED, HEAD_RULES, if_solved
from fftmoe.config.known import LEFT_OUT, Known, Rule

MODELS = {
    "image-classification": "google/vit-base-patch16-224-in21k",
    "causal-lm": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "preference": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
ENCODER = "builtin:minilm"  # for every other task
LARGEST_POPULATION, ROWS_EACH = 20, 20  # of a population that no column names
SET_ASIDE, ROWS_TO_DIVIDE = 0.1, 10  # of its rows, that a client sets aside, if clients have so many on average
CLIENTS_PER_ROUND = 10
LANGUAGE_RATE = 8e-3  # of local training on texts
PREFERENCE_RATE = 5e-5  # of local training on pairs
FEWEST_STEPS, STEPS, MOST_STEPS = 6, 12, 24  # local batches of a round; `STEPS` where no data has been read
MOST_TRAINED = 40_000  # examples that the rounds of a run train on, up to which training twice more is cheap
OWN_TRAINING, MOST_OWN_PARTS = 0.5, 200  # of a client's steps in a run, that it takes for itself; for so many clients
CLIENTS_ALONE = 20  # clients that train by themselves, at most
PAPER: Mapping[str, Any] = {
    "adapter": {"num_experts": 16, "expert_dim": 16, "shared_rank": 0, "scale": 1.0},
    "federation": {
        "aggregation": "per-expert",
        "server_optimizer": "sgd",
        "learning_rate": 4e-3,
        "schedule": "constant",
    },
}
"""What `adapter: paper` means: a pool of routed experts and nothing else, each averaged over those that trained it."""


def _constant(section: str, **values: Any) -> list[Rule]:
    return [Rule(f"{section}.{name}".lstrip("."), lambda _, value=value: value) for name, value in values.items()]


def _partition_kind(known: Known) -> str:
    named = known.get("partition.by") or (known.facts and known.facts.client_column)
    return "natural" if named else "iid"


def _by(known: Known) -> Any:
    if known.get("partition.kind") != "natural":
        return LEFT_OUT
    return (known.facts and known.facts.client_column) or "client"


def _num_clients(known: Known) -> Any:
    if known.get("partition.kind") == "natural":
        return LEFT_OUT
    return max(2, min(LARGEST_POPULATION, _rows(known, known.facts) // ROWS_EACH)) if known.facts else CLIENTS_PER_ROUND


def _rows(known: Known, facts: Facts) -> int:
    """Return the training rows that a run uses of those that the source has."""
    aside, most = (known.get(f"data.{key}") for key in ("validation_examples", "train_examples"))
    left = facts.rows - (aside if isinstance(aside, int) else 0)
    return min(left, most) if isinstance(most, int) else left


def _only(kind: str, value: Any) -> Callable[[Known], Any]:
    return lambda known: value if known.get("partition.kind") == kind else LEFT_OUT


def _clients(known: Known) -> int | None:
    """Return the number of clients; None where it is not known yet."""
    stated = known.get("partition.num_clients")
    found = stated if isinstance(stated, int) and stated > 0 else (known.facts and known.facts.clients)
    return found or None


def _blocks(known: Known) -> str:
    return "all" if known.is_language else "last-third"


def _budgets(known: Known) -> list[dict[str, Any]]:
    """Return tiers for half of the clients, three tenths and a fifth, with more and more of the pool."""
    pool = known.get("adapter.num_experts")
    pool = pool if isinstance(pool, int) and pool > 0 else 1
    has_shared = known.get("adapter.shared_rank") or known.get("adapter.shared_dim")
    parts, active = ((1 / 32, 9 / 32, 25 / 32), (1, 3, 6)) if has_shared else ((1 / 4, 1 / 2, 1), (1, 2, 4))
    clients = _clients(known)
    # One client, and two, are too few for three tiers.
    fractions = {1: (0.0, 0.0, 1.0), 2: (0.5, 0.0, 0.5)}.get(clients or 0, (0.5, 0.3, 0.2))
    sizes = [max(1, round(pool * part)) for part in parts]
    return [
        {"name": name, "fraction": fraction, "top_k": min(top_k, experts), "experts": experts}
        for name, fraction, top_k, experts in zip(("small", "medium", "large"), fractions, active, sizes, strict=True)
        if fraction
    ]


def _set_aside(known: Known) -> Any:
    read = known.facts_read
    few = read is not None and _rows(known, read) < ROWS_TO_DIVIDE * (_clients(known) or 1)
    return "off" if known.noisy or few or not known.may_read else SET_ASIDE


def _own_training(known: Known) -> Any:
    method = known.method
    able = method is not None and not method.personal and not method.pools_data and method.rounded_uploads
    stated, read = known.get("partition.num_clients"), known.facts_read
    clients = stated if isinstance(stated, int) else read and read.clients
    few = (clients or MOST_OWN_PARTS) <= MOST_OWN_PARTS
    asked = known.is_language and known.asks("data.validation") and not known.asks("privacy")
    return OWN_TRAINING if asked and able and few else "off"


def _every(known: Known) -> int:
    """Return a fifth of the rounds: for a measurement every client that sets rows aside receives the model."""
    rounds = known.get("federation.rounds")
    return max(1, rounds // 5) if isinstance(rounds, int) else 1


def _head_every(known: Known) -> Any:
    """Return all rounds; or those up to the next measurement, where each of them may end the run, and for a task with
    other answers than one label, which gained by it (`benchmarks/solved_heads.py`).
    """
    again = known.asks("federation.patience") or known.task not in CLASSIFIED
    return if_solved(known.get("evaluation.every" if again else "federation.rounds"))(known)


def _best_or_last(known: Known) -> str:
    own_models = known.get("evaluation.personal") or (known.method and known.method.personal)
    return "best" if known.asks("data.validation") and not own_models else "last"


def _preferred(simpo: Any, others: Any) -> Callable[[Known], Any]:
    """Return a value of the section `preference`, which only that task has."""

    def value(known: Known) -> Any:
        if known.task != "preference":
            return LEFT_OUT
        return simpo if known.get("preference.loss") == "simpo" else others

    return value


def _cohort(known: Known) -> int:
    return min(CLIENTS_PER_ROUND, _clients(known) or CLIENTS_PER_ROUND)


def _local_steps(known: Known) -> Any:
    """Return about as many as a pass over the rows of an average client takes."""
    if known.get("federation.local_epochs") is not None:
        return LEFT_OUT
    read, batch = known.facts_read, known.get("federation.batch_size")
    if read is None or not isinstance(batch, int) or batch < 1:
        return STEPS
    return max(FEWEST_STEPS, min(MOST_STEPS, round(_rows(known, read) / (_clients(known) or 1) / batch)))


def _optimizer_of_server(known: Known) -> str:
    able = known.method is not None and known.method.server_optimizer
    return "momentum" if able and not known.is_language else "sgd"


def _rate(known: Known) -> float:
    """Return a lower rate for a loss of pairs, which only compares answers,
    so nothing holds a language model back that moves too far.
    """
    if known.is_language:
        return PREFERENCE_RATE if known.task == "preference" else LANGUAGE_RATE
    return 2e-3 if known.get("federation.server_optimizer") == "momentum" else 4e-3


def _schedule(known: Known) -> str:
    return "constant" if known.task == "preference" else "cosine"


def _momentum(known: Known) -> Any:
    return 0.8 if known.get("federation.server_optimizer") == "momentum" else LEFT_OUT


def _compared(known: Known) -> list[str]:
    """Return all baselines where training is cheap; else the one that needs none."""
    trained = None if known.asks("privacy") or known.is_language else _examples_trained(known)
    return [*BASELINES] if trained is not None and trained <= MOST_TRAINED else ["head_only"]


def _clients_alone(known: Known) -> Any:
    named = known.get("evaluation.baselines")
    return CLIENTS_ALONE if isinstance(named, list) and "alone" in named else LEFT_OUT


def _examples_trained(known: Known) -> float | None:
    """Return the examples that all rounds of a run train on; None where that is not known."""
    federation = [known.get(f"federation.{key}") for key in ("rounds", "clients_per_round", "batch_size")]
    epochs, steps = known.get("federation.local_epochs"), known.get("federation.local_steps")
    if not all(isinstance(value, int) for value in federation):
        return None
    rounds, cohort, batch = federation
    if isinstance(steps, int):
        return rounds * cohort * batch * steps
    clients = _clients(known)
    if not isinstance(epochs, int) or known.facts is None or clients is None:
        return None
    return rounds * cohort * epochs * known.facts.rows / clients


def _aggregation(known: Known) -> str:
    return "per-expert" if known.asks("robustness") or known.get("federation.activation_power") else "fedavg"


def _residents(known: Known) -> str:
    return "balanced" if known.asks("privacy") else "personal"


def _balance(known: Known) -> str:
    return "switch" if known.asks("privacy.examples") else "heterogeneity-aware"


RULES: tuple[Rule, ...] = (
    *_constant("", method="fft-moe"),
    Rule("backbone.task", task_of, "what the named columns are for, else those of the data"),
    Rule("backbone.model", lambda known: MODELS.get(known.task, ENCODER), "by the task"),
    *(column(f"data.{name}") for name in ("image", "tokens", "tags", "label", "text")),
    targets(),
    *(language_column(f"data.{name}") for name in ("chosen", "rejected", "prompt", "completion", "text")),
    Rule(
        "data.chat_template",
        chat_template,
        "true where prompts are named and the model's tokenizer has a chat template that can be used, else false; "
        "false over sites, where the model may be elsewhere",
    ),
    Rule(
        "data.max_length",
        max_length,
        "nine texts in ten are no longer, as the model's tokenizer counts (a language model: 99 in 100); a multiple of "
        "16, at most 128 tokens (a language model: 512), and no more than the model can read",
    ),
    Rule("partition.kind", _partition_kind, "natural where a column names the clients, else iid"),
    Rule("partition.by", _by, "the column `client`, which a folder with a file for each client has by itself"),
    Rule("partition.num_clients", _num_clients, "one client for 20 training rows, at least 2 and at most 20"),
    Rule("partition.alpha", _only("dirichlet", 0.1)),
    Rule("partition.shards_per_client", _only("shards", 2)),
    Rule("partition.holder_fraction", _only("bernoulli-dirichlet", 0.3)),
    *_constant(
        "adapter",
        num_experts=32,
        expert_dim=4,
        shared_rank=8,
        shared_targets="all-linear",
        scale=0.25,
    ),
    Rule("adapter.blocks", _blocks, "last-third, and for a language model all", of_data=False),
    Rule("adapter.residents", _residents),
    Rule("adapter.balance", _balance),
    Rule("budgets", _budgets, "half of the clients, three tenths and a fifth, with a growing part of the pool"),
    *HEAD_RULES,
    Rule("preference.loss", _preferred("dpo", "dpo")),
    Rule("preference.beta", _preferred(2.0, 0.1), "0.1, and 2 for simpo", of_data=False),
    Rule("preference.margin", _preferred(1.0, LEFT_OUT), "1 for simpo", of_data=False),
    *_constant("federation", rounds=10, batch_size=16),
    Rule("federation.clients_per_round", _cohort, "all clients, at most 10"),
    Rule("federation.local_steps", _local_steps, "a pass over an average client's rows: 6 to 24; unread data: 12"),
    Rule(
        "federation.server_optimizer",
        _optimizer_of_server,
        "momentum, and sgd for a language model or a method without it",
        of_data=False,
    ),
    Rule("federation.server_beta1", _momentum),
    Rule(
        "federation.learning_rate",
        _rate,
        "0.002 with the server's momentum, else 0.004; for a language model 0.008, for a preference 0.00005",
        of_data=False,
    ),
    Rule("federation.schedule", _schedule, "cosine, and constant for a preference", of_data=False),
    Rule("federation.aggregation", _aggregation),
    Rule(
        "evaluation.baselines",
        _compared,
        "all where all rounds train on at most 40,000 examples; else head_only",
        of_data=False,
    ),
    Rule("evaluation.local_only_clients", _clients_alone),
    *_constant("lora", targets="all-linear", match="uplink"),
    Rule(
        "data.validation",
        _set_aside,
        "0.1; off with differential privacy, where clients have fewer than 10 rows on average, and over sites, whose "
        "policies must allow it",
    ),
    Rule(
        "federation.own_training",
        _own_training,
        "0.5 for a language model where rows are set aside, for at most 200 clients and a method with a global model; "
        "off with privacy",
        of_data=False,
    ),
    Rule("evaluation.every", _every, "a fifth of the rounds", of_data=False),
    Rule(
        "head.every",
        _head_every,
        "the number of rounds; with federation.patience that of evaluation.every, since a run may end after each, and "
        "so for several labels, tags and numbers",
        of_data=False,
    ),
    Rule("evaluation.keep", _best_or_last, "best where rows are set aside and there is a global model", of_data=False),
    *_constant("engine", workers="auto"),
    Rule(
        "engine.precision",
        lambda known: "auto" if known.is_language else "float32",
        "auto for a language model, else float32",
        of_data=False,
    ),
)
"""The defaults, in the order in which they are given: a rule sees what stands above it."""
