"""What the messages of a run cost: bytes that were really serialised, and seconds."""

from collections import defaultdict
from collections.abc import Callable, Iterator

from fftmoe.engines.base import Engine
from fftmoe.records import ClientPlan, ClientUpdate, RoundPlan, Tensors, pack_plan, unpack_update
from fftmoe.server.rounds import together

IN_FLIGHT = 256  # clients


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
        self,
        engine: Engine,
        plan: RoundPlan,
        download: Callable[[ClientPlan], Tensors],
        done: Callable[[int], None],
        at_once: int = 1,
    ) -> Iterator[ClientUpdate]:
        """Send every client its plan and tensors, up to `at_once` together; yield the updates in `client_id` order.

        At most `IN_FLIGHT` clients have a message or a reply waiting, so that memory does not grow with the cohort.
        """
        for start in range(0, len(plan.clients), IN_FLIGHT):
            clients = plan.clients[start : start + IN_FLIGHT]
            messages = {client.client_id: pack_plan(client, download(client)) for client in clients}
            self.bytes_down += sum(map(len, messages.values()))
            groups = [[(c.client_id, messages[c.client_id]) for c in group] for group in together(clients, at_once)]
            replies = {}
            waiting = iter(clients)
            client = next(waiting)
            for client_id, reply, seconds in engine.run_clients(groups):
                replies[client_id] = reply, seconds
                done(client_id)
                # Groups cut across the order of the clients: what comes early is kept as bytes until its turn.
                while client is not None and client.client_id in replies:
                    sent = len(messages[client.client_id])
                    yield self._booked(client, sent, *replies.pop(client.client_id))
                    client = next(waiting, None)
            assert client is None, "an engine answers for every client"

    def _booked(self, client: ClientPlan, bytes_down: int, reply: bytes, seconds: float) -> ClientUpdate:
        self.bytes_up += len(reply)
        self.seconds += seconds
        took = {"client_rounds": 1, "bytes_down": bytes_down, "bytes_up": len(reply), "seconds": seconds}
        if client.task != "sums":  # which everyone gets with the largest budget: no round of that tier
            for key, value in took.items():
                self.tiers[client.budget.name][key] += value
        return unpack_update(reply)
