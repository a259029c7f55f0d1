"""Defines a whole recipe: its sections."""

import math
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from fftmoe.config.adapter import AdapterSection, LoraSection
from fftmoe.config.backbone import BackboneSection
from fftmoe.config.budgets import BudgetSection
from fftmoe.config.data import DataSection
from fftmoe.config.engine import EngineSection
from fftmoe.config.evaluation import EvaluationSection
from fftmoe.config.federation import FederationSection
from fftmoe.config.fields import WRITE_OFF, FileName, Section, off_or_section
from fftmoe.config.head import HeadSection
from fftmoe.config.partition import PartitionSection
from fftmoe.config.plugins import own_or_plugin
from fftmoe.config.preference import PreferenceSection
from fftmoe.config.privacy import PrivacyOrOff
from fftmoe.config.robustness import RobustnessOrOff
from fftmoe.methods.registry import METHODS

FolderOrOff = Annotated[
    Annotated[str, Field(min_length=1)] | None,
    off_or_section("the folder of a finished run or of an adapter, or `off`"),
    WRITE_OFF,
]


class Recipe(Section):
    """Describes one experiment.

    `start_from` names a finished run, or the folder of a saved adapter, whose adapter is the state before the first
    round, in place of a new one.
    """

    name: FileName = "run"
    """The name of the run, and of its folder below `runs/`; by default that of the file."""
    seed: int = 0
    """The seed of all randomness: the partition, the cohorts, the order of examples, the adapter's first values."""
    start_from: FolderOrOff = None
    """The folder of a run, or of an adapter, whose weights are the first ones of this run."""
    backbone: BackboneSection
    """The frozen foundation model, and its task."""
    data: DataSection
    """The data set."""
    partition: PartitionSection
    """Which client holds which training row."""
    method: Annotated[str, own_or_plugin(*METHODS)] = "fft-moe"
    """What clients train, and how the server merges it; `fftmoe compare` compares them."""
    adapter: AdapterSection
    """What is trained in the backbone's blocks. `paper` stands for a pool of routed experts alone, averaged per
    expert."""
    lora: LoraSection = LoraSection()
    """What the LoRA methods train instead."""
    head: Annotated[HeadSection | None, Field(validate_default=True)] = None
    """The classification head."""
    preference: Annotated[PreferenceSection | None, Field(validate_default=True)] = None
    """The loss of pairs of answers, for `backbone.task: preference`."""
    budgets: Annotated[list[BudgetSection], Field(min_length=1)]
    """The tiers of clients, which hold and activate more or fewer experts."""
    federation: FederationSection
    """Rounds, local training and aggregation."""
    privacy: PrivacyOrOff = None
    """What the server may see of a client's update, or `off`."""
    robustness: RobustnessOrOff = None
    """Protection against malicious clients, or `off`."""
    engine: EngineSection = EngineSection()
    """Where and how fast clients compute. It never changes the result beyond rounding."""
    evaluation: EvaluationSection = EvaluationSection()
    """When and on what the model is measured."""
    trackers: list[str] = Field(default_factory=list)
    """Experiment trackers that get the metrics, such as `tensorboard` (the extra `trackers`)."""

    @property
    def closed_form(self) -> HeadSection | None:
        """Return the head section if the head is closed-form, else None."""
        return self.head if self.head is not None and self.head.kind == "closed-form" else None

    @property
    def validated_every(self) -> int:
        """Return the rounds from one validation to the next: those that are measured and have a head of their own.

        In the rounds after which a closed-form head is not computed again, the head is that of other features. There
        the model is measured worse than it is, and no such round is kept.
        """
        head = self.closed_form
        every = self.evaluation.every
        if head is None or head.update != "recomputed":
            return every
        return min(math.lcm(every, head.every), max(every, self.federation.rounds))  # the last one counts anyway

    @property
    def differential(self) -> bool:
        """Return whether the recipe asks for differential privacy, of clients or of single examples."""
        return self.privacy is not None and self.privacy.differential

    @property
    def fourier_features(self) -> int:
        """Return the number of random features between the backbone and a closed-form head; 0 if there are none."""
        head = self.closed_form
        return head.num_features if head is not None and head.features == "fourier" else 0

    @field_validator("head", mode="after")
    @classmethod
    def _head_unless_language_model(cls, head: HeadSection | None, info: ValidationInfo) -> HeadSection | None:
        backbone = info.data.get("backbone")
        language = backbone is not None and backbone.is_language
        if head is None and not language:
            raise PydanticCustomError("missing", "Field required")
        if head is not None and language:
            raise ValueError(
                f"backbone.task={backbone and backbone.task} trains the adapter and no head; remove the section `head`"
            )
        return head

    @field_validator("preference", mode="after")
    @classmethod
    def _preference_if_asked(cls, section: PreferenceSection | None, info: ValidationInfo) -> PreferenceSection | None:
        backbone = info.data.get("backbone")
        asked = backbone is not None and backbone.task == "preference"
        if section is not None and backbone is not None and not asked:
            raise ValueError(
                f"backbone.task={backbone.task} has no pairs of answers; remove the section `preference`, or set "
                "backbone.task=preference"
            )
        return PreferenceSection() if section is None and asked else section
