"""Defines the values that server and client exchange; `wire.py` defines their form on the wire.

Tensors are float32 on the CPU at this boundary. `names.py` lists their names and shapes.
"""

from dataclasses import dataclass, field

from torch import Tensor

Tensors = dict[str, Tensor]
Experts = dict[int, tuple[int, ...]]  # block index -> expert ids

NO_DIGEST = "0" * 16  # stands for a digest that was not computed


@dataclass(frozen=True)
class Budget:
    """`Budget` states what the clients of one tier can afford.

    Attributes:
        name: name of the tier.
        top_k: active experts per token.
        experts: resident experts per block.
        blocks: indices of the adapted blocks.
        rank: LoRA rank of equal cost, for methods that train LoRA instead of experts.
    """

    name: str
    top_k: int
    experts: int
    blocks: tuple[int, ...]
    rank: int = 0


@dataclass(frozen=True)
class Training:
    """`Training` states how a client trains; exactly one of `local_epochs` and `local_steps` is set."""

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
    clip_gradients: float | None = None  # largest norm of the gradient of a step, over all parameters; None: no limit
    upload: str = "float32"  # number format of the uploaded deltas; also "bfloat16", "int8"
    private: bool = False  # an update contains only values that enter a sum over clients
    clip_norm: float | None = None  # largest norm of a private client's update over all tensors; None: no limit
    example_clip: float | None = None  # largest norm of one example's gradient, over all parameters; None: no limit
    example_noise: float = 0.0  # standard deviation of the noise on a sum of such gradients, divided by `example_clip`
    rate_factors: tuple[float, ...] = ()  # of both learning rates in equal parts of the steps; none: 1 in all steps


@dataclass(frozen=True)
class ClientPlan:
    """`ClientPlan` is the server's request to one client in one round.

    Attributes:
        round: number of the round, from 1.
        client_id: the client.
        seed: seed of the client's randomness in this round.
        budget: budget of the client.
        experts: the client's resident experts of each block, ascending.
        training: how the client trains.
        task: "train" asks for an update. "alone" asks for local training that is measured and not kept. "sums" asks for
            the feature statistics from which the server computes a closed-form head. "validate" asks how well the
            global model answers the rows that the client has set aside. "own" asks for training of what the client
            keeps for itself.
        base: digest of the global model that the server sent.
    """

    round: int
    client_id: int
    seed: int
    budget: Budget
    experts: Experts
    training: Training
    task: str = "train"
    base: str = NO_DIGEST

    @property
    def concealed(self) -> bool:
        """Return whether two updates for the same plan may differ only in numbers that are summed over clients."""
        return self.training.private and self.task not in ("alone", "own")


@dataclass(frozen=True)
class RoundPlan:
    """`RoundPlan` holds the plans of a round's cohort in `client_id` order."""

    round: int
    clients: tuple[ClientPlan, ...]


@dataclass(frozen=True)
class ClientUpdate:
    """`ClientUpdate` is a client's answer to its plan.

    Attributes:
        round: number of the round.
        client_id: the client.
        num_examples: number of the client's training examples.
        tensors: deltas (client - global). A tensor of experts has one row for each trained expert.
        experts: the trained experts of each block, ascending. An expert counts as trained if it received a token and a
            gradient.
        shares: share of the client's routed slots that went to each trained expert, float32 in the order of `experts`.
        preferences: the experts for which the client has statistics, best first by mean router probability on its data.
        metrics: training metrics by name.
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
    made_on: str = NO_DIGEST


@dataclass(frozen=True)
class ServerState:
    """`ServerState` is everything that the server carries from one round to the next.

    Attributes:
        round: number of the last finished round; 0 before training.
        tensors: the global model (all M experts of every adapted block, and the head).
        optimizer: moments of the server optimizer, in the shapes of their tensors.
        load: `names.load_of_block(i)` -> float64 [M], moving average of each expert's share of routed slots; sums to 1.
        preferences: client_id -> the preferences that the client last reported.
        average: moving average of `tensors` over the rounds (`server/average.py`); empty if the run keeps no average.
        temperature: of a closed-form head (`head/temperature.py`); None if there is none, or it is not known.
        label_shares: of the labels of all clients, in the order of the outputs of a closed-form head, whose sums have
            said them; None if they have not.
    """

    round: int
    tensors: Tensors
    optimizer: Tensors = field(default_factory=dict)
    load: Tensors = field(default_factory=dict)
    preferences: dict[int, Experts] = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
    temperature: float | None = None
    label_shares: tuple[float, ...] | None = None
