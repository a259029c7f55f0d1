"""FedSA-LoRA averages A and keeps B on the client (Guo et al., arXiv 2410.01463, ICLR 2025).

The server computes A = sum_n p_n A_n, and client n adapts its model by B_n A.
"""

from dataclasses import dataclass
from typing import ClassVar

from fftmoe.methods.fedit import FedIt
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.records import names


@dataclass(frozen=True)
class FedSaLora(FedIt):
    """`FedSaLora` trains both factors on every client, averages A, and lets each client keep its own B.

    A client's first B is zero. There is no global B: `install` sets up the backbone with the shared head, and
    `personalize` sets up a client's model. As in FedIT, every client uses the smallest rank of the population.

    Attributes:
        share_head: whether the head is averaged. If not, each client keeps its own head and downloads the initial head
            in every round, because the server does not know which clients have trained before.
    """

    share_head: bool = True
    capabilities: ClassVar[Capabilities] = METHODS["fedsa-lora"].capabilities

    sent: ClassVar[str] = "A"

    def shares(self, name: str) -> bool:
        """Return whether a tensor is sent: A is sent, and the head if it is shared."""
        return self.share_head if names.is_head(name) else super().shares(name)
