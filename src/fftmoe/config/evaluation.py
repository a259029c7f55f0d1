"""The recipe's `evaluation` section."""

from typing import Literal

from fftmoe.config.fields import Count, Section


class GenerationSection(Section):
    """How many test prompts a language model continues by greedy decoding, and by how many tokens at most."""

    examples: Count
    max_new_tokens: Count


class EvaluationSection(Section):
    """When the global model is evaluated, and on how much; after the last round always on the whole test set.

    `personal` also evaluates each client's own model (its resident experts, its router) after the last round: of all
    clients or a sample of `personal_clients`, on `personal_examples` test rows.
    `local_only` also lets clients (all, or a sample of `local_only_clients`) train without the federation, and
    evaluates each on `local_only_examples` test rows.
    `keep: best` saves the model of the round that was best on the rows that clients have set aside (`data.validation`);
    `last` saves that of the last round.
    `generate` also compares what a language model writes, after the last round, with the completions of test rows.
    """

    every: Count = 1
    keep: Literal["best", "last"] = "last"
    max_examples: Count | None = None
    personal: bool = False
    personal_clients: Count | None = None
    personal_examples: Count = 300
    local_only: bool = False
    local_only_clients: Count | None = None
    local_only_examples: Count = 300
    generate: GenerationSection | None = None
