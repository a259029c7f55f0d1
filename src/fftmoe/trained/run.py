"""Describes what a finished run looks like to the code that uses it: plain values instead of a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fftmoe.data.roles import LANGUAGE_TASKS
from fftmoe.store import Bindings
from fftmoe.tasks import PairLoss, Preference, Task, make_task


@dataclass(frozen=True)
class BackboneOptions:
    """Says how the run's frozen backbone is loaded; the arguments of `load_backbone`.

    Attributes:
        model: a hub id, a local folder, or the name of a model of an installed package.
        fourier_features: random features between the backbone and a closed-form head; 0 for none.
    """

    model: str
    pooling: str
    quantization: str
    fourier_features: int


@dataclass(frozen=True)
class InputFormat:
    """Says how the run reads its inputs.

    Attributes:
        max_length: tokens of a text; longer texts are cut.
        text_column: the column of a table with texts. image_column: likewise for images. prompt_column: likewise for
            prompts, None where the model was trained on whole texts.
        chat_template: whether a prompt is written as the message of a user.
        words_column: the column of lists of words, for a run that tags them; else None.
    """

    max_length: int
    text_column: str
    image_column: str
    prompt_column: str | None
    chat_template: bool
    words_column: str | None = None


@dataclass(frozen=True)
class GenerationSample:
    """Names the held-out prompts that a language model continues, and how far.

    Attributes:
        num_examples: how many prompts are drawn. max_new_tokens: the longest completion. seed: draws the sample.
        chat_template: whether prompts are written with it, so that an answer ends as the template says.
        num_shown: how many of the prompts are shown with what was written.
    """

    num_examples: int
    max_new_tokens: int
    seed: int
    chat_template: bool = False
    num_shown: int = 0


@dataclass(frozen=True)
class FinishedRun:
    """Describes a finished run.

    Attributes:
        folder: the run folder. adapter: the folder in it that is loaded.
        task: the task, such as "sequence-classification".
        label_names: the classes or targets in the order of the logits; empty for a language model.
        head: the kind of the classification head, None for a language model.
        precision: the precision that the recipe asks for: "auto", "float32" or "bfloat16".
        generation: how generated text is measured; None where it is not.
        began: what the run is bound to; None for a run of an older version, which did not record it.
        accept_changes: use the model although its backbone or its tokenizer is another one than the run's.
        temperature: by which the outputs of a solved head have been divided in the saved model, so that their softmax
            gives calibrated probabilities; None for any other head.
        pair_loss: of a run that learned from pairs of answers, its loss; else None.
        label_shares: of the labels among the rows of all clients, in the order of `label_names`; None where they are
            not known.
    """

    folder: Path
    adapter: Path
    name: str
    method: str
    task: str
    label_names: tuple[str, ...]
    backbone: BackboneOptions
    inputs: InputFormat
    head: str | None
    precision: str
    generation: GenerationSample | None
    began: Bindings | None = None
    accept_changes: bool = False
    temperature: float | None = None
    pair_loss: PairLoss | None = None
    label_shares: tuple[float, ...] | None = None

    @property
    def reads_images(self) -> bool:
        """Return whether an input is an image; otherwise it is a text."""
        return self.task == "image-classification"

    @property
    def judging_task(self) -> Task:
        """Return the task by which the model is measured."""
        return make_task(self.task) if self.pair_loss is None else Preference(self.pair_loss)

    @property
    def is_language_model(self) -> bool:
        """Return whether the model continues texts, which have no labels."""
        return self.task in LANGUAGE_TASKS


@dataclass(frozen=True)
class TrainedModel:
    """Holds the adapted model of a finished run, ready to use.

    Attributes:
        model: the PEFT model: the frozen backbone with the trained adapter and head.
    """

    run: FinishedRun
    model: Any
