"""FedSA-LoRA: A is shared, B stays with its client (Guo et al., arXiv 2410.01463, ICLR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

from fftmoe.methods.fedit import FedIt
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.records import names


@dataclass(frozen=True)
class FedSaLora(FedIt):
    """Clients train both factors; `A = sum p_n A_n`, and each keeps its own B, zero for a newcomer.

    There is no global B: `install` gives the backbone with the shared head, and a client's model is `personalize`'s.
    As with FedIT all clients have the smallest rank.

    Attributes:
        share_head: whether the head is averaged; otherwise each client keeps its own, and what it downloads is the
            initial one, which it needs the first time (the server does not know when that is).
    """

    share_head: bool = True
    capabilities: ClassVar[Capabilities] = METHODS["fedsa-lora"].capabilities

    sent: ClassVar[str] = "A"

    def shares(self, name: str) -> bool:
        """A, and the head if it is shared."""
        return self.share_head if names.is_head(name) else super().shares(name)
