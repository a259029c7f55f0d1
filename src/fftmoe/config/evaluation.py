"""Defines the recipe's `evaluation` section."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from fftmoe.config.fields import OFF_IS_NONE, Count, Section, no_repetition, off_means

Baseline = Literal["head_only", "alone", "centralized"]
BASELINES: tuple[str, ...] = get_args(Baseline)


class GenerationSection(Section):
    """Says how many test prompts a language model continues by greedy decoding, and by how many tokens at most."""

    examples: Count
    """How many test prompts are continued."""
    max_new_tokens: Count
    """How many tokens are written at most for each."""
    samples: Annotated[int, Field(ge=0, le=100)] = 0
    """How many of these prompts `summary.json`, the report and the terminal show, each with its completion and with
    what the model writes before the first round and after the last. They are texts of the data."""


class EvaluationSection(Section):
    """Says when the global model is evaluated, and on how much; after the last round always on the whole test set."""

    every: Count = 1
    """Rounds from one measurement to the next; after the last round the model is measured in any case."""
    keep: Annotated[Literal["best", "last"], off_means("last")] = "last"
    """Which round's model a run ends with: the last (also `off`), or the `best` on validation rows. The best is the
    last one that is no worse than any other by more than a standard error, so that few rows do not choose a lucky early
    round, and no worse than the model before the first round. Of a closed-form head that is computed again, only rounds
    after which it is (`head.every`) are measured on these rows."""
    max_examples: Count | None = None
    """Measure between the rounds on a random subset of so many test rows; after the last round all of them count."""
    personal: bool = False
    """Also measure each client's own model, its resident experts with its router, after the last round."""
    personal_clients: Count | None = None
    """Measure the own models of so many clients; by default of all."""
    personal_examples: Count = 300
    """Test rows on which each own model is measured."""
    baselines: Annotated[list[Baseline] | None, OFF_IS_NONE, no_repetition("baselines")] = None
    """What a result is compared with, on test rows, in the terminal, the report and `summary.json`: `head_only`, the
    frozen backbone with a solved head, measured before the first round; `alone`, clients that train by themselves as
    much as they do in the run; `centralized`, a model that trains on all rows together with as many steps as all
    clients take in all rounds. Each of the last two costs at most as much as the rounds of the run. `off` for none."""
    local_only: bool = False
    """The same as `alone` among the baselines."""
    local_only_clients: Count | None = None
    """The baseline `alone` trains so many clients, a random sample; null for all."""
    local_only_examples: Count = 300
    """Test rows on which each of these is measured, next to all of its own."""
    generate: Annotated[GenerationSection | None, OFF_IS_NONE] = None
    """Also compare what a language model writes after the last round with the completions of test rows, and rank the
    options of a prompt, for the whole sample, each task and each client; or `off`."""

    @property
    def asked(self) -> frozenset[str]:
        """Return the baselines that are asked for."""
        return frozenset(self.baselines or ()) | ({"alone"} if self.local_only else set())
