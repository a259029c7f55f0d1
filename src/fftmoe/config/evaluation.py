"""The recipe's `evaluation` section."""

from typing import Literal

from fftmoe.config.fields import Count, Section


class GenerationSection(Section):
    """How many test prompts a language model continues by greedy decoding, and by how many tokens at most."""

    examples: Count
    """How many test prompts are continued."""
    max_new_tokens: Count
    """How many tokens are written at most for each."""


class EvaluationSection(Section):
    """When the global model is evaluated, and on how much; after the last round always on the whole test set."""

    every: Count = 1
    """Rounds from one measurement to the next; after the last round the model is measured in any case."""
    keep: Literal["best", "last"] = "last"
    """Which round's model a run ends with: the best one on validation rows, or the last."""
    max_examples: Count | None = None
    """Measure between the rounds on a random subset of so many test rows; after the last round all of them count."""
    personal: bool = False
    """Also measure each client's own model, its resident experts with its router, after the last round."""
    personal_clients: Count | None = None
    """Measure the own models of so many clients; by default of all."""
    personal_examples: Count = 300
    """Test rows on which each own model is measured."""
    local_only: bool = False
    """Also train clients without the federation, for comparison."""
    local_only_clients: Count | None = None
    """Train so many clients without the federation; by default all."""
    local_only_examples: Count = 300
    """Test rows on which each of these is measured."""
    generate: GenerationSection | None = None
    """Also compare what a language model writes after the last round with the completions of test rows."""
