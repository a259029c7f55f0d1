"""Which nodes a SuperLink knows, as whoever holds its token may ask."""

from flwr.proto.control_pb2 import ListNodesRequest
from flwr.supercore.control import ControlHttpClient

from fftmoe.engines.flower_link import _client, _explained
from fftmoe.engines.flower_superlink import Endpoint


def list_sites(endpoint: Endpoint) -> dict[str, str]:
    """Each registered site's name and status: `online`, `offline`, or `registered` if it never came.

    Raises:
        RunError: the SuperLink does not answer.
    """
    with _explained(endpoint), _client(ControlHttpClient, endpoint) as control:
        return {node.name: node.status for node in control.ListNodes(ListNodesRequest()).nodes_info}
