"""The recipe's `budgets` section: one entry for each tier of clients."""

from pydantic import model_validator

from fftmoe.config.fields import Blocks, Count, Fraction, Name, Positive, Section


class BudgetSection(Section):
    """A tier of clients: `top_k` and `experts` themselves, or limits from which they are derived."""

    name: Name
    fraction: Fraction
    top_k: Count | None = None
    experts: Count | None = None
    blocks: Blocks | None = None
    memory_mib: Positive | None = None
    uplink_mib: Positive | None = None
    gflops: Positive | None = None
    gflops_per_second: Positive | None = None
    deadline_seconds: Positive | None = None

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
