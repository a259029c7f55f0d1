"""The values that pass between server and client. Their form on the wire is in `wire.py`.

Tensors are float32 on the CPU at this boundary; `names.py` lists their names and shapes.
"""

from dataclasses import dataclass, field

from torch import Tensor

Tensors = dict[str, Tensor]
Experts = dict[int, tuple[int, ...]]  # block index -> expert ids

NOTHING = "0" * 16  # the digest where none was asked for


@dataclass(frozen=True)
class Budget:
    """What one tier of clients can afford: `top_k` active experts per token, `experts` resident ones, in `blocks`.

    `rank` is the LoRA rank of the same cost, for the methods that train LoRA instead of experts.
    """

    name: str
    top_k: int
    experts: int
    blocks: tuple[int, ...]
    rank: int = 0


@dataclass(frozen=True)
class Training:
    """How a client trains. Exactly one of `local_epochs` and `local_steps` is set."""

    batch_size: int
    learning_rate: float  # of the adapter, AdamW
    head_learning_rate: float
    head_optimizer: str = "sgd"  # or "adamw"
    train_head: bool = True  # False: clients use the head that they received
    local_epochs: int | None = None
    local_steps: int | None = None
    group_by_length: bool = True  # texts of similar length share a batch
    weight_decay: float = 0.0
    proximal: float = 0.0  # mu in (mu / 2) * |theta - theta_t|^2
    upload: str = "float32"  # number format of the uploaded deltas; also "bfloat16", "int8"
    private: bool = False  # an update reveals only what enters a sum over clients
    clip_norm: float | None = None  # largest norm of all that a private client sends, taken together; None: no limit
    example_clip: float | None = None  # largest norm of one example's gradient, over all parameters; None: no limit
    example_noise: float = 0.0  # standard deviation of the noise on a sum of such gradients, divided by `example_clip`


@dataclass(frozen=True)
class ClientPlan:
    """What the server asks of one client in one round.

    Attributes:
        experts: the client's resident experts of each block, ascending.
        task: "train"; or "alone", to train locally, keep nothing and measure the client's own model; or "sums", to
            send the feature statistics from which the server computes a closed-form head.
        base: digest of the global model that the server sent.
    """

    round: int
    client_id: int
    seed: int
    budget: Budget
    experts: Experts
    training: Training
    task: str = "train"
    base: str = NOTHING

    @property
    def concealed(self) -> bool:
        """Whether updates for the same plan may differ only in numbers that are summed over clients."""
        return self.training.private and self.task != "alone"


@dataclass(frozen=True)
class RoundPlan:
    """One round: the plans of the cohort in `client_id` order."""

    round: int
    clients: tuple[ClientPlan, ...]


@dataclass(frozen=True)
class ClientUpdate:
    """What a client sends back.

    Attributes:
        tensors: deltas (client - global). A tensor of experts has one row for each trained expert.
        experts: the trained experts of each block, ascending: those that received a token and a gradient.
        shares: float32, in the order of `experts`: the share of the client's routed slots that went to each.
        preferences: every expert for which the client has statistics, best first (mean gate probability on its data).
        made_on: digest of the backbone and the global model that the client used, see `digests.made_on`.
    """

    round: int
    client_id: int
    num_examples: int
    tensors: Tensors
    experts: Experts = field(default_factory=dict)
    shares: dict[int, tuple[float, ...]] = field(default_factory=dict)
    preferences: Experts = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    made_on: str = NOTHING


@dataclass(frozen=True)
class ServerState:
    """Everything that the server carries from one round to the next.

    Attributes:
        tensors: the global model (all M experts of every adapted block, and the head).
        optimizer: moments of the server optimizer, shaped as the tensors that they belong to.
        load: `names.load_of_block(i)` -> float64 [M], moving average of each expert's share of routed slots; sums to 1.
        preferences: client_id -> the preferences that the client last reported.
        average: the moving average of `tensors` over the rounds (`server/average.py`); empty if none is kept.
    """

    round: int
    tensors: Tensors
    optimizer: Tensors = field(default_factory=dict)
    load: Tensors = field(default_factory=dict)
    preferences: dict[int, Experts] = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
