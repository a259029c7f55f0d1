"""Defines the recipe's `budgets` section: one entry for each tier of clients."""

from pydantic import model_validator

from fftmoe.config.fields import Blocks, Count, Fraction, Name, Positive, Section


class BudgetSection(Section):
    """Describes a tier of clients: `top_k` and `experts` themselves, or limits from which they are derived."""

    name: Name
    """What the tier is called in tables and reports."""
    fraction: Fraction
    """The fraction of the clients that belong to the tier. The fractions of all tiers sum to 1."""
    top_k: Count | None = None
    """Experts that a token activates at clients of this tier (k)."""
    experts: Count | None = None
    """Resident experts of a client in each block (|R|)."""
    blocks: Blocks | None = None
    """The adapted blocks that clients of this tier train; by default all of them. One tier must have all."""
    memory_mib: Positive | None = None
    """Instead of `experts`: memory for the adapter's weights, gradients and optimizer."""
    uplink_mib: Positive | None = None
    """Instead of `experts`: the largest update that a client sends in a round."""
    gflops: Positive | None = None
    """Instead of `top_k`: the adapter's floating-point operations in a round, in 10^9."""
    gflops_per_second: Positive | None = None
    """The client's speed, in 10^9 operations a second; together with `deadline_seconds` it gives `gflops`."""
    deadline_seconds: Positive | None = None
    """The time that a client has for a round."""

    @model_validator(mode="after")
    def _values_or_limits(self) -> "BudgetSection":
        if (self.gflops_per_second is None) != (self.deadline_seconds is None):
            raise ValueError(
                f"tier {self.name!r} has gflops_per_second={self.gflops_per_second} and deadline_seconds="
                f"{self.deadline_seconds}, which belong together; give both or neither"
            )
        limits = (self.memory_mib, self.uplink_mib, self.deadline_seconds)
        if self.experts is None and all(limit is None for limit in limits):
            raise ValueError(
                f"tier {self.name!r} has no number of experts; set `experts`, or a limit to derive it from "
                "(memory_mib, uplink_mib, deadline_seconds)"
            )
        if self.top_k is None and self.gflops is None and self.deadline_seconds is None:
            raise ValueError(
                f"tier {self.name!r} has no number of experts per token; set `top_k`, or a limit to derive it from "
                "(gflops, or deadline_seconds with gflops_per_second)"
            )
        return self
