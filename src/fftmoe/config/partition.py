"""Defines the recipe's `partition` section."""

from typing import Annotated

from pydantic import Field

from fftmoe.config.fields import Count, Number, Section
from fftmoe.config.plugins import own_or_plugin


class PartitionSection(Section):
    """Decides which client holds which training example; each kind needs its own parameters.

    `alpha` is the concentration of a Dirichlet draw, from 0.1 (skewed) to 100 (even). `holder_fraction` is the
    probability with which a client holds a class. `by` names the column with the natural client of each row.
    """

    kind: Annotated[str, own_or_plugin("iid", "dirichlet", "shards", "bernoulli-dirichlet", "natural")]
    """How training rows come to clients: each to the client that a column names (`natural`), or by a simulation of
    skew."""
    num_clients: Count | None = None
    """The number of clients of a simulated partition."""
    alpha: Annotated[Number, Field(gt=0)] | None = None
    """The concentration of a Dirichlet draw of each client's labels, from 0.1 (skewed) to 100 (even) (arXiv
    1909.06335)."""
    shards_per_client: Count | None = None
    """With `kind: shards`, how many pieces of the rows, sorted by label, a client gets (arXiv 1602.05629)."""
    holder_fraction: Annotated[Number, Field(gt=0, le=1)] | None = None
    """With `kind: bernoulli-dirichlet`, the probability with which a client holds a class."""
    by: str | None = None
    """The column that names the client of each row."""
    min_examples: Count | None = None
    """Refuse a partition in which a client has fewer rows."""
