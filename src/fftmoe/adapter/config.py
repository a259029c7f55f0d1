"""Holds the adapter's configuration, as PEFT stores it in adapter_config.json."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType

from fftmoe.adapter.bound import BOUND, check_adapter_files
from fftmoe.adapter.compute import ACTIVATIONS, check_compute
from fftmoe.adapter.families import select_blocks
from fftmoe.adapter.routing import GATES
from fftmoe.adapter.shared_update import SHARED_TARGETS
from fftmoe.errors import InputError, did_you_mean


@dataclass
class MoeAdapterConfig(PeftConfig):
    """Configures a sparse mixture of experts next to each feed-forward network (docs/math.md, Adapter).

    Raises:
        InputError: a value is out of range or unknown. Whether the model has the named blocks is checked when the
            adapter is attached.
    """

    num_experts: int = field(default=16, metadata={"help": "Experts per block, M."})
    expert_dim: int = field(default=16, metadata={"help": "Hidden units per expert, H; multiples of 16 are fastest."})
    shared_dim: int = field(
        default=0, metadata={"help": "Hidden units of the expert that every token uses; 0: no such expert."}
    )
    shared_rank: int = field(
        default=0,
        metadata={"help": "Rank of the low-rank updates of linear layers that every token uses; 0: no updates."},
    )
    shared_targets: str = field(
        default="query-value",
        metadata={"help": "Which linear layers of a block have such updates: query-value or all-linear."},
    )
    top_k: int = field(default=2, metadata={"help": "Experts per token, K."})
    blocks: list[int] | str | None = field(
        default=None, metadata={"help": "Blocks to adapt: 'all' or None, 'last-N', or a list of indices."}
    )
    activation: str = field(default="gelu", metadata={"help": "relu, gelu or silu."})
    gates: str = field(default="detached", metadata={"help": "detached, renormalized or softmax."})
    scale: float = field(default=1.0, metadata={"help": "Factor s that multiplies the mixture's output."})
    compute: str = field(default="auto", metadata={"help": "auto, loop, wide or grouped."})
    balance_strength: float = field(
        default=0.0,
        metadata={"help": "Weight of the balance loss in the loss that the model returns in training; 0: not added."},
    )
    z_strength: float = field(default=0.0, metadata={"help": "Weight of the router z-loss in that loss; 0: not added."})
    seed: int = field(default=0, metadata={"help": "Seed of the initial router and expert weights."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "The feed-forward modules to wrap: a regular expression for the whole name, or a list "
            "of endings. None: those of the model's family."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules not to wrap, in the same form as target_modules."}
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules that are trained and saved in addition to the adapter, e.g. ['classifier']."},
    )

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self.peft_type = PeftType["FFT_MOE"]
        self._check_sizes()
        for name in ("balance_strength", "z_strength"):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise InputError(f"{name}={value} must be a finite number of at least 0 (0: not added to the loss)")
        for name, known in (("activation", ACTIVATIONS), ("gates", GATES), ("shared_targets", SHARED_TARGETS)):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"unknown {name} {value!r}{did_you_mean(str(value), known)}")
        check_compute(self.compute)
        # Only the form is checked here: the number of blocks is not known before the adapter is attached.
        if isinstance(self.blocks, str) and self.blocks != "all":
            last = self.blocks.removeprefix("last-")
            select_blocks(self.blocks, int(last) if last.isdecimal() else 1)

    def _check_sizes(self) -> None:
        if self.num_experts < 1 or self.expert_dim < 1:
            raise InputError(
                f"num_experts={self.num_experts} and expert_dim={self.expert_dim}: both must be at least 1"
            )
        for name in ("shared_dim", "shared_rank"):
            if (value := getattr(self, name)) < 0:
                raise InputError(f"{name}={value} must be at least 0 (0: nothing is shared)")
        if not 1 <= self.top_k <= self.num_experts:
            raise InputError(
                f"top_k={self.top_k} with num_experts={self.num_experts}; "
                f"choose top_k between 1 and {self.num_experts}, or more experts"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, subfolder: str | None = None, **kwargs: Any) -> Any:
        """See PEFT; the files of a local folder are first compared with what they are bound to.

        Raises:
            InputError: a tensor, the configuration or the labels are not those that were saved.
        """
        folder = Path(pretrained_model_name_or_path) / (subfolder or "")
        base = check_adapter_files(folder) if folder.is_dir() else None
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        vars(config).update(bound_base=base, bound_folder=folder)  # no fields, so they are never saved
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """See PEFT; what an earlier adapter in the folder was bound to does not hold for this one."""
        (Path(save_directory) / BOUND).unlink(missing_ok=True)
        super().save_pretrained(save_directory, **kwargs)
