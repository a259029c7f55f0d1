"""What the messages of a run cost: bytes that were really serialised, and seconds."""

from collections import defaultdict
from collections.abc import Callable, Iterator

from fftmoe.engines.base import Engine
from fftmoe.records import ClientPlan, ClientUpdate, RoundPlan, Tensors, pack_plan, unpack_update


class Ledger:
    """Counts the bytes that were really serialised, per tier and direction, and the seconds clients took."""

    def __init__(self) -> None:
        self.bytes_down = self.bytes_up = 0
        self.seconds = 0.0
        self.tiers: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def per_client_round(self) -> dict[str, dict[str, float]]:
        """By tier: client-rounds so far, and their mean bytes and seconds."""
        return {
            name: {
                "client_rounds": sums["client_rounds"],
                **{key: sums[key] / sums["client_rounds"] for key in ("bytes_down", "bytes_up", "seconds")},
            }
            for name, sums in sorted(self.tiers.items())
        }

    def exchange(
        self, engine: Engine, plan: RoundPlan, download: Callable[[ClientPlan], Tensors], done: Callable[[int], None]
    ) -> Iterator[ClientUpdate]:
        """Send every client its plan and tensors; yield the updates in `client_id` order."""
        requests = [(c.client_id, pack_plan(c, download(c))) for c in plan.clients]
        self.bytes_down += sum(len(message) for _, message in requests)
        replies = engine.run_clients(requests)
        for client, (_, message), (client_id, reply, seconds) in zip(plan.clients, requests, replies, strict=True):
            self.bytes_up += len(reply)
            self.seconds += seconds
            took = {"client_rounds": 1, "bytes_down": len(message), "bytes_up": len(reply), "seconds": seconds}
            if client.task != "sums":  # which everyone gets with the largest budget: no round of that tier
                for key, value in took.items():
                    self.tiers[client.budget.name][key] += value
            done(client_id)
            yield unpack_update(reply)
