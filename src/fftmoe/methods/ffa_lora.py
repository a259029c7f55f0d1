"""FFA-LoRA: A is random and frozen, B is trained and averaged (Sun et al., arXiv 2403.12313, ICLR 2024)."""

from dataclasses import dataclass
from typing import ClassVar

from fftmoe.methods.fedit import FedIt
from fftmoe.methods.registry import METHODS, Capabilities


@dataclass(frozen=True)
class FfaLora(FedIt):
    """`(sum p_n B_n) A = sum p_n (B_n A)` exactly, at half the traffic of the same rank and with half to learn.

    A never travels: every process draws it from the seed. As with FedIT all clients have the smallest rank.
    """

    capabilities: ClassVar[Capabilities] = METHODS["ffa-lora"].capabilities

    trained: ClassVar[str] = "B"
    sent: ClassVar[str] = "B"
