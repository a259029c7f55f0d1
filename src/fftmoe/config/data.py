"""What a recipe may say of its model and its data, and which of the two belong together."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from fftmoe.config.fields import Count, Section

if TYPE_CHECKING:
    from fftmoe.config.schema import Recipe


class Backbone(Section):
    """The frozen foundation model: a hub id, a local folder, or `builtin:minilm`.

    `quantization` holds its linear layers' weights in 8 or 4 bits, where bitsandbytes is installed.
    """

    model: str
    task: Literal[
        "sequence-classification",
        "image-classification",
        "causal-lm",
        "token-classification",
        "multi-label-classification",
        "regression",
    ] = "sequence-classification"
    pooling: Literal["mean", "native"] = "mean"
    quantization: Literal["none", "8bit", "4bit"] = "none"


class Data(Section):
    """A hub id, a folder with train and test files, or `builtin:stdlib-docs`.

    `train_examples` and `test_examples` take a random subset, the same for every seed of the recipe.
    `validation_examples` holds that many training rows out and measures on them in place of the test rows: settings
    are chosen so, with the test set unseen.
    `labels` names the classes and their order; by default those of the training rows, sorted. Sites that hold their
    own data agree by it.

    A language model (`backbone.task: causal-lm`) reads `prompt` and `completion`, and learns the completion; without
    them it reads `text`, and learns all of it. `chat_template` writes both as messages of a user and an assistant.
    Token classification reads lists, `tokens` with their `tags`; multi-label classification a list of names in
    `label`; regression the numbers of the columns `targets`.
    Where `label` holds no classes it names what the examples are divided by, where the partition does that, and may be
    absent.
    """

    source: str
    labels: Annotated[list[str], Field(min_length=2)] | None = None
    text: str = "text"
    image: str = "image"
    label: str = "label"
    prompt: str | None = None
    completion: str | None = None
    chat_template: bool = False
    tokens: str = "tokens"
    tags: str = "tags"
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    max_length: Count = 128
    train_examples: Count | None = None
    test_examples: Count | None = None
    validation_examples: Count | None = None

    @model_validator(mode="after")
    def _pairs(self) -> "Data":
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("data.prompt and data.completion belong together; name both columns, or neither")
        if self.chat_template and self.prompt is None:
            raise ValueError(
                "data.chat_template writes a prompt and its completion as messages; name their columns with "
                "data.prompt and data.completion, or set data.chat_template=false"
            )
        return self


def check_task(recipe: "Recipe") -> None:
    """Whether data, method and measures are those of the recipe's task.

    Raises:
        ValueError: they are not; the message says what to change.
    """
    language = recipe.backbone.task == "causal-lm"
    if not language and (recipe.data.prompt or recipe.evaluation.generate):
        key = "data.prompt" if recipe.data.prompt else "evaluation.generate"
        raise ValueError(f"{key} is for language models; set backbone.task=causal-lm, or leave it out")
    own_loss = recipe.backbone.task in ("token-classification", "multi-label-classification", "regression")
    if own_loss and recipe.head and recipe.head.kind != "averaged":
        raise ValueError(
            f"head.kind={recipe.head.kind} is for one label of several, and backbone.task={recipe.backbone.task} has a "
            "loss of its own; use head.kind=averaged"
        )
    if (recipe.backbone.task == "regression") != (recipe.data.targets is not None):
        raise ValueError("backbone.task=regression and data.targets, the columns with the numbers, belong together")
    if language and recipe.method == "head-only":
        raise ValueError("method head-only trains a classification head, and a language model has none; choose another")
    if recipe.evaluation.generate and recipe.data.prompt is None:
        raise ValueError(
            "evaluation.generate continues prompts; name their columns with data.prompt and data.completion"
        )
