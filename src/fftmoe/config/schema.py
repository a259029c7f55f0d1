"""What a recipe may say: one strict section a class, each value checked where it is declared."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fftmoe.config.data import Backbone, Data, check_task
from fftmoe.config.evaluation import Evaluation
from fftmoe.config.fields import Blocks, Count, Fraction, NotNegative, Number, Positive, Section
from fftmoe.config.head import Head
from fftmoe.config.plugins import check_plugins, own_or_plugin
from fftmoe.config.privacy import PrivacySection
from fftmoe.config.robustness import RobustnessSection

METHODS = Literal[
    "fft-moe",
    "fedit",
    "ffa-lora",
    "fedsa-lora",
    "hetlora",
    "flora",
    "flexlora",
    "flame",
    "head-only",
    "local-only",
    "centralized",
]


class PartitionSection(Section):
    """Who holds which training example; each kind needs its own parameters."""

    kind: Annotated[str, own_or_plugin("iid", "dirichlet", "shards", "bernoulli-dirichlet", "natural")]
    num_clients: Count | None = None
    alpha: Positive | None = None
    shards_per_client: Count | None = None
    holder_fraction: Fraction | None = None
    by: str | None = None
    min_examples: Count | None = None


class Adapter(Section):
    """The pool of experts and what the method does with it; the ablations of docs/math.md are switched here."""

    num_experts: Count
    expert_dim: Count
    shared_dim: Annotated[int, Field(ge=0)] = 0
    shared_rank: Annotated[int, Field(ge=0)] = 0
    shared_targets: Literal["query-value", "all-linear"] = "query-value"
    blocks: Blocks = "all"
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    gates: Literal["detached", "renormalized", "softmax"] = "detached"
    scale: Positive = 1.0
    compute: Literal["auto", "loop", "wide", "grouped"] = "auto"
    router: Literal["shared", "personal", "shared+personal"] = "shared"
    personal_fraction: Fraction = 0.5
    residents: Literal["personal", "balanced"] = "personal"
    explore: bool = True
    balance: Literal["heterogeneity-aware", "switch", "none"] = "heterogeneity-aware"
    balance_strength: NotNegative = 0.01
    balance_beta: NotNegative = 1.0
    balance_epsilon: Positive = 0.01
    z_strength: NotNegative = 0.001
    load_decay: Fraction = 0.5


class Lora(Section):
    """What the LoRA methods adapt; a tier's rank follows from the cost of its experts.

    `match: parameters` gives a tier as many trainable parameters as its experts have, `uplink` as many bytes to send.
    """

    targets: Literal["query-value", "attention", "feed-forward", "all-linear"] = "query-value"
    scale: Positive = 2.0
    match: Literal["parameters", "uplink"] = "parameters"


class BudgetSection(Section):
    """A tier of clients: stated `top_k` and `experts`, or limits from which they follow."""

    name: str
    fraction: Fraction
    top_k: Count | None = None
    experts: Count | None = None
    blocks: Blocks | None = None
    memory_mib: Positive | None = None
    uplink_mib: Positive | None = None
    gflops: Positive | None = None
    gflops_per_second: Positive | None = None
    deadline_seconds: Positive | None = None

    @model_validator(mode="after")
    def _whole(self) -> "BudgetSection":
        if (self.gflops_per_second is None) != (self.deadline_seconds is None):
            raise ValueError("gflops_per_second and deadline_seconds belong together; give both or neither")
        limits = (self.memory_mib, self.uplink_mib, self.deadline_seconds)
        if self.experts is None and all(limit is None for limit in limits):
            raise ValueError("say `experts`, or a limit to derive it from (memory_mib, uplink_mib, deadline_seconds)")
        if self.top_k is None and self.gflops is None and self.deadline_seconds is None:
            raise ValueError(
                "say `top_k`, or a limit to derive it from (gflops, or deadline_seconds with gflops_per_second)"
            )
        return self


class Federation(Section):
    """Rounds, local training and aggregation.

    `group_by_length` puts texts of like length in one batch, so that little of it is padding; without it batches are
    drawn from all of a client's texts alike.
    `upload` says in which numbers clients send their changes; what rounding leaves out goes with their next ones.
    `average_decay` above 0 serves a moving average of the global model over the rounds; 0.7 weighs about three.

    Where clients can be lost (not on one machine): a round ends when `clients_per_round` have answered or after
    `deadline_seconds`, asks `spare_clients` more than it needs, and changes nothing if fewer than the fraction `quorum`
    of `clients_per_round` have answered by then.

    `max_update_norm` refuses a client's changes whose Euclidean norm, over all of them, is above it.
    """

    rounds: Count
    clients_per_round: Count
    quorum: Fraction = 0.5
    spare_clients: Annotated[int, Field(ge=0)] = 0
    deadline_seconds: Positive = 3600.0
    batch_size: Count
    learning_rate: Positive
    local_epochs: Count | None = None
    local_steps: Count | None = None
    group_by_length: bool = True
    weight_decay: NotNegative = 0.0
    proximal: NotNegative = 0.0
    aggregation: Annotated[str, own_or_plugin("per-expert", "fedavg")] = "per-expert"
    activation_power: NotNegative = 0.0
    upload: Literal["float32", "bfloat16", "int8"] = "float32"
    max_update_norm: Positive | None = None
    server_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    server_learning_rate: Positive = 1.0
    server_beta1: Fraction = 0.9
    server_beta2: Fraction = 0.99
    server_epsilon: Positive = 1e-3
    average_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _one_length(self) -> "Federation":
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("say exactly one of local_epochs and local_steps")
        return self


def _off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class EngineSection(Section):
    """Where clients run: `workers: 1` is this process, `auto` one worker per core.

    `kind: flower` is Flower's simulation, in `workers` processes of Ray here or on the cluster at `ray_address`.
    `clients_at_once` of one tier are trained on the backbone together; `auto` does so where their batches are small.
    `device: auto` is a GPU where there is one. `precision: bfloat16` multiplies in half the bits, which most GPUs and
    some processors do faster; `auto` asks the device. Everything trained, summed and sent stays float32.
    `prefix_cache: auto` computes what lies below the first adapted block once per example and keeps it on disk,
    unless that takes more than `prefix_cache_mib`.
    """

    kind: Literal["local", "flower"] = "local"
    workers: Literal["auto"] | Count = 1
    ray_address: str | None = None
    clients_at_once: Literal["auto"] | Count = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    prefix_cache: Annotated[Literal["auto", "off"], BeforeValidator(_off)] = "auto"
    prefix_cache_mib: Count = 4096


class Recipe(Section):
    """One experiment."""

    name: str = "run"
    seed: int = 0
    backbone: Backbone
    data: Data
    partition: PartitionSection
    method: Annotated[str, own_or_plugin(*get_args(METHODS))] = "fft-moe"
    adapter: Adapter
    lora: Lora = Lora()
    head: Annotated[Head | None, Field(validate_default=True)] = None
    budgets: Annotated[list[BudgetSection], Field(min_length=1)]
    federation: Federation
    privacy: PrivacySection = None
    robustness: RobustnessSection = None
    engine: EngineSection = EngineSection()
    evaluation: Evaluation = Evaluation()
    trackers: list[str] = Field(default_factory=list)

    @property
    def closed_form(self) -> Head | None:
        """The head where it is solved from sums."""
        return self.head if self.head is not None and self.head.kind == "closed-form" else None

    @property
    def fourier_features(self) -> int:
        """Random features between the backbone and a closed-form head; 0 for none."""
        head = self.closed_form
        return head.num_features if head is not None and head.features == "fourier" else 0

    @field_validator("head", mode="after")
    @classmethod
    def _head_where_one_is(cls, head: Head | None, info: ValidationInfo) -> Head | None:
        backbone = info.data.get("backbone")
        language = backbone is not None and backbone.task == "causal-lm"
        if head is None and not language:
            raise PydanticCustomError("missing", "Field required")
        if head is not None and language:
            raise ValueError("backbone.task=causal-lm trains no head beside the adapter; remove the section `head`")
        return head

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        check_task(self)
        check_plugins(self)
        if self.closed_form and self.method == "local-only":
            raise ValueError("method local-only shares no sums to solve a head from; use head.kind=averaged")
        if self.federation.server_optimizer != "sgd" and self.method in ("hetlora", "flora", "flexlora", "head-only"):
            raise ValueError(
                f"method {self.method} has no place for a server optimizer; use federation.server_optimizer=sgd"
            )
        if self.federation.upload != "float32" and self.method == "flora":
            raise ValueError(
                "method flora begins each round with new factors, so what rounding left out of the last has no place; "
                "use federation.upload=float32"
            )
        if self.head and not self.head.trained and self.method == "head-only" and self.head.update != "frozen":
            raise ValueError(
                "method head-only changes no features, so its closed-form head is solved once: set head.update=frozen "
                "(or trained)"
            )
        if self.robustness is not None:
            self.robustness.check(self)
        if self.privacy is not None:
            self.privacy.check(self)
        clients, cohort = self.partition.num_clients, self.federation.clients_per_round
        if clients is not None and cohort > clients:
            raise ValueError(
                f"federation.clients_per_round={cohort} is above partition.num_clients={clients}; lower it to {clients}"
            )
        names = [budget.name for budget in self.budgets]
        if len(set(names)) < len(names):
            raise ValueError(f"two tiers of `budgets` share a name ({', '.join(names)}); give each its own")
        return self
