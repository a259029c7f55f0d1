"""Lists the methods that a recipe can name, and what other packages must know about each of them.

To add a method, write its class in a file of its own and add a line to `METHODS`. This module imports neither torch nor
a method, so that a recipe is checked before anything slow is imported.
"""

import importlib
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Capabilities:
    """States what a method does, as far as other files depend on it.

    Attributes:
        trains: what each client trains next to the head, and so which adapter the model gets: `experts` of a pool,
            `low-rank` factors (LoRA), or nothing but the `head`.
        personal: there is no global model; each client keeps its own, and accuracy is the mean over these.
        whole_pool: every client holds all experts, and the budgets decide the size of the pool.
        stacks: several clients can train in one batch on one backbone (`Method.stack`).
        changes_backbone: clients add updates to the frozen weights, so these must not be quantized.
        averages: the server only averages deltas, so another `Aggregator` can replace the mean.
        server_optimizer: the recipe may choose how the server applies a delta.
        rounded_uploads: a client can add what rounding left out of an upload to its next one.
        shares_statistics: clients share the feature statistics from which a closed-form head is computed.
        pools_data: all data is in one place; the recipe is transformed by `setup/centralized.py`.
        why_not_private: the reason why the method does not work with sums over clients alone; empty if it does.
    """

    trains: Literal["experts", "low-rank", "head"]
    personal: bool = False
    whole_pool: bool = False
    stacks: bool = False
    changes_backbone: bool = False
    averages: bool = False
    server_optimizer: bool = False
    rounded_uploads: bool = True
    shares_statistics: bool = True
    pools_data: bool = False
    why_not_private: str = ""


@dataclass(frozen=True)
class MethodSpec:
    """Names the module and the class that implement a method, and its capabilities."""

    module: str
    cls: str
    capabilities: Capabilities

    def load(self) -> Any:
        """Import the method's module and return its class."""
        return getattr(importlib.import_module(f"fftmoe.methods.{self.module}"), self.cls)


_AVERAGED_LORA = Capabilities("low-rank", averages=True, server_optimizer=True)

METHODS: dict[str, MethodSpec] = {
    "fft-moe": MethodSpec(
        "fft_moe", "FftMoe", Capabilities("experts", stacks=True, averages=True, server_optimizer=True)
    ),
    "fedit": MethodSpec("fedit", "FedIt", _AVERAGED_LORA),
    "ffa-lora": MethodSpec("ffa_lora", "FfaLora", _AVERAGED_LORA),
    "fedsa-lora": MethodSpec(
        "fedsa_lora", "FedSaLora", Capabilities("low-rank", personal=True, averages=True, server_optimizer=True)
    ),
    "hetlora": MethodSpec(
        "hetlora",
        "HetLora",
        Capabilities("low-rank", why_not_private="weighs every client by the norm of its update"),
    ),
    "flora": MethodSpec(
        "flora",
        "FLora",
        Capabilities(
            "low-rank",
            changes_backbone=True,
            rounded_uploads=False,
            why_not_private="hands the factors of every client to all others",
        ),
    ),
    "flexlora": MethodSpec(
        "flexlora",
        "FlexLora",
        Capabilities("low-rank", why_not_private="multiplies the factors of every client before it adds them"),
    ),
    "flame": MethodSpec(
        "flame",
        "Flame",
        Capabilities(
            "experts",
            whole_pool=True,
            server_optimizer=True,
            why_not_private="weighs every client by the experts that its data activated",
        ),
    ),
    "head-only": MethodSpec("head_only", "HeadOnly", Capabilities("head", averages=True)),
    "local-only": MethodSpec(
        "local_only",
        "LocalOnly",
        Capabilities(
            "experts",
            personal=True,
            server_optimizer=True,  # of the method whose clients train locally; it has nothing to do
            shares_statistics=False,
            why_not_private="sends nothing that privacy could protect",
        ),
    ),
    # FFT-MoE on one client that holds all data.
    "centralized": MethodSpec(
        "fft_moe",
        "FftMoe",
        Capabilities(
            "experts",
            stacks=True,
            server_optimizer=True,
            pools_data=True,
            why_not_private="has all data in one place",
        ),
    ),
}
