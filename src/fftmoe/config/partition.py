"""The recipe's `partition` section."""

from typing import Annotated

from fftmoe.config.fields import Count, Fraction, Positive, Section
from fftmoe.config.plugins import own_or_plugin


class PartitionSection(Section):
    """Which client holds which training example; each kind needs its own parameters."""

    kind: Annotated[str, own_or_plugin("iid", "dirichlet", "shards", "bernoulli-dirichlet", "natural")]
    num_clients: Count | None = None
    alpha: Positive | None = None
    shards_per_client: Count | None = None
    holder_fraction: Fraction | None = None
    by: str | None = None
    min_examples: Count | None = None
