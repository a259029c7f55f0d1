"""The recipe's `data` section."""

from typing import Annotated

from pydantic import Field, model_validator

from fftmoe.config.fields import Count, Section, distinct


class DataSection(Section):
    """The data set: a hub id, a folder with train and test files, or `builtin:stdlib-docs`.

    `train_examples` and `test_examples` take a random subset, the same for every seed of the recipe.
    `validation_examples` sets that many training rows aside and evaluates on them instead of the test rows, so that
    settings can be tuned without seeing the test set.
    `labels` names the classes in their order; the default is the sorted labels of the training rows. Sites that hold
    their own data need it to agree on the classes.

    A language model (`backbone.task: causal-lm`) reads `prompt` and `completion` and learns the completion; without
    them it reads `text` and learns all of it. `chat_template` writes both as messages of a user and an assistant.
    Image classification reads `image`: encoded files, or the paths of files below the folder of the table.
    Token classification reads a list of `tokens` and a list of `tags` per row. Multi-label classification reads a list
    of names from `label`. Regression reads the numbers of the columns `targets`.
    In these tasks `label` (if it holds no classes) names the groups by which a partition divides the examples. It may
    then be absent.
    """

    source: str
    labels: Annotated[list[str], Field(min_length=2), distinct("labels")] | None = None
    text: str = "text"
    image: str = "image"
    label: str = "label"
    prompt: str | None = None
    completion: str | None = None
    chat_template: bool = False
    tokens: str = "tokens"
    tags: str = "tags"
    targets: Annotated[list[str], Field(min_length=1), distinct("columns of data.targets")] | None = None
    max_length: Count = 128
    train_examples: Count | None = None
    test_examples: Count | None = None
    validation_examples: Count | None = None

    @model_validator(mode="after")
    def _prompts_with_completions(self) -> "DataSection":
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("data.prompt and data.completion belong together; name both columns, or neither")
        if self.chat_template and self.prompt is None:
            raise ValueError(
                "data.chat_template writes a prompt and its completion as messages; name their columns with "
                "data.prompt and data.completion, or set data.chat_template=false"
            )
        return self
