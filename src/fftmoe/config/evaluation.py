"""What a recipe may say of when and on what a run is measured."""

from fftmoe.config.fields import Count, Section


class Generation(Section):
    """How many test prompts a language model continues, greedily, and by how many tokens at most."""

    examples: Count
    max_new_tokens: Count


class Evaluation(Section):
    """When and on how much the global model is measured; after the last round always on the whole test set.

    `personal` also measures each client's own model (its resident experts, its router) after the last round, of all
    or a sample of `personal_clients`, on `personal_examples` test rows.
    `local_only` also trains clients alone (all, or a sample of `local_only_clients`) and measures each on
    `local_only_examples` test rows.
    `generate` also compares what a language model writes, after the last round, with the completions of test rows.
    """

    every: Count = 1
    max_examples: Count | None = None
    personal: bool = False
    personal_clients: Count | None = None
    personal_examples: Count = 300
    local_only: bool = False
    local_only_clients: Count | None = None
    local_only_examples: Count = 300
    generate: Generation | None = None
