"""Defines the recipe's `engine` section."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from fftmoe.config.fields import Count, CountOrOff, Section


def _off(value: Any) -> Any:
    """Read a bare `off`, which YAML takes for false."""
    return "off" if value is False else value


class EngineSection(Section):
    """Says where clients run: `workers: 1` is this process, `auto` one worker process per core.

    `kind: flower` is Flower's simulation, in `workers` processes of Ray on this machine or on the cluster at
    `ray_address`.
    `clients_per_batch` is how many clients of one tier are trained together in one batch; `auto` does so if their own
    batches are small.
    `device: auto` is a GPU if there is one. `precision: bfloat16` halves the bits of matrix multiplications, which
    most GPUs and some processors do faster; `auto` asks the device. Trained values, sums and messages stay float32.
    `prefix_cache: auto` computes the hidden states below the first adapted block once per example and keeps them on
    disk, unless they take more than `prefix_cache_mib`.
    """

    kind: Literal["local", "flower"] = "local"
    """`local` runs clients in processes of this machine, `flower` in Flower's simulation."""
    workers: Literal["auto"] | Count = 1
    """Worker processes; `auto` takes one per core. The result is the same for any number."""
    ray_address: str | None = None
    """With `kind: flower`, the address of a Ray cluster."""
    clients_per_batch: Literal["auto"] | Count = "auto"
    """How many clients of one tier train together in one batch of the backbone. `auto` does so if their own batches
    are small."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models compute."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """The number format of matrix multiplications. `bfloat16` is faster on most GPUs; trained values, sums and
    messages stay float32."""
    micro_batch_size: CountOrOff = None
    """Compute a step of local training on so many examples at a time, and add their gradients up: the same step, up to
    rounding, in less memory. `off` computes all examples of a step together."""
    checkpointing: bool = False
    """Keep of each block only what enters it, and compute the block again for its gradients (arXiv 1604.06174): less
    memory, up to half more time, the same gradients."""
    prefix_cache: Annotated[Literal["auto", "off"], BeforeValidator(_off)] = "auto"
    """Compute the hidden states below the first adapted block once for each example, and keep them on disk."""
    prefix_cache_mib: Count = 4096
    """The most that the kept states may take on disk. Examples that do not fit are computed anew."""
