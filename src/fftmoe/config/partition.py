"""The recipe's `partition` section."""

from typing import Annotated

from pydantic import Field

from fftmoe.config.fields import Count, Number, Section
from fftmoe.config.plugins import own_or_plugin


class PartitionSection(Section):
    """Which client holds which training example; each kind needs its own parameters.

    `alpha` is the concentration of a Dirichlet draw, from 0.1 (skewed) to 100 (even). `holder_fraction` is the
    probability with which a client holds a class. `by` names the column with the natural client of each row.
    """

    kind: Annotated[str, own_or_plugin("iid", "dirichlet", "shards", "bernoulli-dirichlet", "natural")]
    num_clients: Count | None = None
    alpha: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = None
    shards_per_client: Count | None = None
    holder_fraction: Annotated[Number, Field(gt=0, le=1)] | None = None
    by: str | None = None
    min_examples: Count | None = None
