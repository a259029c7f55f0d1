"""Defines the recipe's `data` section."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fftmoe.config.fields import ONE_IS_A_LIST, WRITE_OFF, Count, Number, Section, no_repetition, off_or_section
from fftmoe.shown import count_of
from fftmoe.strict import text_encoding


def _positive(scale: list[float]) -> list[float]:
    if scale[1] <= 0:
        raise ValueError(f"a target's [centre, scale] is {scale}; write two numbers, the second above 0")
    return scale


Scale = Annotated[list[Number], Field(min_length=2, max_length=2), AfterValidator(_positive)]
Targets = Annotated[list[str], Field(min_length=1), no_repetition("columns of data.targets")]
FractionOrOff = Annotated[
    Annotated[Number, Field(gt=0, lt=1)] | None, off_or_section("a fraction, such as 0.1, or `off`"), WRITE_OFF
]


class DataSection(Section):
    """Names the data set: a hub id, a folder with train and test files, or a set that the program makes, such as
    `builtin:stdlib-docs`.

    `train_examples` and `test_examples` take a random subset, the same for every seed of the recipe.
    `validation_examples` sets that many training rows aside and evaluates on them instead of the test rows, so that
    settings can be tuned without seeing the test set.
    `labels` names the classes in their order; the default is the sorted labels of the training rows. Sites that hold
    their own data need it to agree on the classes, and differential privacy needs it in any case.

    `validation` lets every client set that fraction of its own rows aside, at least one of five, on which it never
    trains; the global model is validated on them.

    A language model (`backbone.task: causal-lm`) reads `prompt` and `completion` and learns the completion; without
    them it reads `text` and learns all of it. `chat_template` writes both as messages of a user and an assistant.
    A preference (`backbone.task: preference`) reads `prompt`, `chosen` and `rejected`.
    Image classification reads `image`: encoded files, or the paths of files from the table's own folder.
    Token classification reads a list of `tokens` and a list of `tags` per row. Multi-label classification reads a list
    of names from `label`. In a CSV file `list_separator` divides a cell into a list.
    Regression reads the numbers of the columns `targets`. Training divides them by their scale: `target_scales` is
    `auto` (the mean and the standard deviation of the training rows), `none`, or a list with `[centre, scale]` for each
    target. Metrics and answers are in the units of the data.
    In these tasks `label` (if it holds no classes) names the groups by which a partition divides the examples. It may
    then be absent.
    """

    source: str
    """A table (CSV, TSV, JSON or parquet), a folder with a table for each client, a folder with `train.*` and
    `test.*`, a folder of images by class, a hub id, or a set that is made from the running Python:
    `builtin:stdlib-docs` (texts with labels), `builtin:stdlib-instructions` (prompts with completions) or
    `builtin:stdlib-preferences` (prompts with two answers). Rows that nobody has divided are divided here: one in five
    is a test row."""
    encoding: Annotated[str, AfterValidator(text_encoding)] | None = None
    """The encoding of text files (CSV, TSV, JSON) that are not UTF-8, such as `windows-1252`; by default there are
    none. A file that is UTF-8, or says by a byte order mark what it is, is read as that. A site names its own."""
    labels: Annotated[list[str], Field(min_length=2), no_repetition("labels")] | None = None
    """The classes in their order; by default those of the training rows. Sites need it to agree, differential privacy
    to protect it."""
    text: str = "text"
    """The column of texts."""
    image: str = "image"
    """The column of images: encoded files, or paths from the table's own folder."""
    label: str = "label"
    """The column of labels. Where a task has no classes, it may name groups by which a partition divides the rows."""
    prompt: str | None = None
    """The column of prompts of a language model, which then learns only the completions."""
    completion: str | None = None
    """The column of completions of a language model."""
    chosen: str | None = None
    """The column of the better of two answers to a prompt, for a preference: texts, or conversations that end with
    it."""
    rejected: str | None = None
    """The column of the worse answer."""
    chat_template: bool = False
    """Write prompts and completions as messages of a user and an assistant, for models that were trained on
    conversations, in training, evaluation and `predict` alike."""
    tokens: str = "tokens"
    """The column of lists of words, for token classification."""
    tags: str = "tags"
    """The column of lists of tags, one for each word."""
    list_separator: Annotated[str, Field(min_length=1, max_length=8)] | None = None
    """The characters between the items of a list in a cell of text, such as `;` in `fever;cough`: the labels of a row
    in multi-label classification, or tokens and tags. Without it a cell of text is no list."""
    targets: Annotated[Targets | None, ONE_IS_A_LIST] = None
    """The columns of numbers that a regression answers; one may be written by itself."""
    target_scales: Literal["auto", "none"] | list[Scale] = "auto"
    """The centre and the scale by which training sees a regression's targets; `auto` takes the mean and the standard
    deviation of the training rows."""
    max_length: Count = 128
    """Longer texts are cut to so many tokens."""
    train_examples: Count | None = None
    """Use a random subset of so many training rows, the same for every seed."""
    test_examples: Count | None = None
    """Use a random subset of so many test rows, the same for every seed."""
    validation_examples: Count | None = None
    """Measure on so many training rows, which are set aside, instead of the test rows, so that settings can be chosen
    without seeing the test rows."""
    validation: FractionOrOff = None
    """The fraction of its rows that each client sets aside to measure on, or `off`. The server gets only sums. The
    best round is found with them."""

    @model_validator(mode="after")
    def _columns_belong_together(self) -> "DataSection":
        scales = self.target_scales
        if not isinstance(scales, str) and len(scales) != len(self.targets or ()):
            raise ValueError(
                f"data.target_scales has {count_of(len(scales), 'pair')} for {len(self.targets or ())} data.targets; "
                "write one [centre, scale] for each target, or auto"
            )
        self._check_answers()
        if self.chat_template and self.prompt is None:
            raise ValueError(
                "data.chat_template writes a prompt and its completion as messages; name their columns with "
                "data.prompt and data.completion, or set data.chat_template=false"
            )
        return self

    def _check_answers(self) -> None:
        """Check that a prompt has its completion, or its two answers."""
        if (self.chosen is None) != (self.rejected is None):
            raise ValueError("data.chosen and data.rejected belong together; name both columns, or neither")
        if self.chosen is not None and (self.prompt is None or self.completion is not None):
            raise ValueError(
                "data.chosen and data.rejected are two answers to data.prompt, in place of data.completion; name the "
                "column of prompts, and leave data.completion out"
            )
        if self.chosen is not None and len({self.prompt, self.chosen, self.rejected}) < 3:
            raise ValueError(
                f"data.prompt={self.prompt!r}, data.chosen={self.chosen!r} and data.rejected={self.rejected!r} are not "
                "three columns; name another one"
            )
        if self.chosen is None and (self.prompt is None) != (self.completion is None):
            raise ValueError("data.prompt and data.completion belong together; name both columns, or neither")
