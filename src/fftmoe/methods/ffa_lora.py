"""FFA-LoRA freezes a random A, and trains and averages B (Sun et al., arXiv 2403.12313, ICLR 2024).

The server's mean is exact: (sum_n p_n B_n) A = sum_n p_n (B_n A).
"""

from dataclasses import dataclass
from typing import ClassVar

from fftmoe.methods.fedit import FedIt
from fftmoe.methods.registry import METHODS, Capabilities


@dataclass(frozen=True)
class FfaLora(FedIt):
    """`FfaLora` trains and sends B only, which halves the traffic and the trained parameters of FedIT at equal rank.

    A is never sent, because every process draws it from the seed. As in FedIT, every client uses the smallest rank of
    the population.
    """

    capabilities: ClassVar[Capabilities] = METHODS["ffa-lora"].capabilities

    trained: ClassVar[str] = "B"
    sent: ClassVar[str] = "B"
