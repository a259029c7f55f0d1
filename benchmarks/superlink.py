"""Measure how many nodes one SuperLink can serve: `python benchmarks/superlink.py [--seconds 10]`.

Nodes ask the SuperLink for work all the time. Here a few nodes on this machine ask as fast as they get answers, over
TLS and with signatures like any node. A node that asks every t seconds takes 1 / t of the measured rate.
"""

import argparse
import threading
import time
from pathlib import Path
from socket import create_server
from tempfile import TemporaryDirectory

from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common import RESULTS, machine, markdown, write_result
from fftmoe.deploy.folder import SiteFolder, create_deployment, read_server, read_site
from fftmoe.deploy.link.link import open_grid
from fftmoe.deploy.link.superlink import start_superlink, stop_superlink
from fftmoe.deploy.server import endpoint_of, keys_of

NODES = (1, 2, 4)


def asked(site: SiteFolder, seconds: float) -> int:
    """Count the answers "no work" to this site."""
    key = site.key
    who = [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key())]
    with FleetHttpClient.from_server_address(site.address, False, site.ca, who) as client:
        request = ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=60.0)
        node = Node(node_id=client.ActivateNode(request).node_id)
        answers, ends = 0, time.monotonic() + seconds
        while time.monotonic() < ends:
            client.PullMessages(PullMessagesRequest(node=node))
            answers += 1
    return answers


def side_by_side(sites: list[SiteFolder], seconds: float) -> float:
    """Return the answers per second to all of these sites together."""
    answers: list[int] = []
    threads = [threading.Thread(target=lambda site=site: answers.append(asked(site, seconds))) for site in sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answers) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    seconds = parser.parse_args().seconds
    names = [f"site-{n}" for n in range(sum(NODES))]  # each is asked for once, since it stays active
    with TemporaryDirectory() as folder, create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        create_deployment(Path(folder) / "d", address, names, days=1)
        server = read_server(Path(folder) / "d" / "server")
        sites = iter([read_site(Path(folder) / "d" / "sites" / name) for name in names])
        superlink = start_superlink(endpoint := endpoint_of(server), Path(folder) / "log")
        try:
            with open_grid(endpoint, keys_of(server)):
                found = {n: side_by_side([next(sites) for _ in range(n)], seconds) for n in NODES}
        finally:
            stop_superlink(superlink)
    results = {"machine": machine(), "seconds": seconds, "answers_a_second": found}
    write_result(RESULTS / "superlink.json", results, "answers_a_second")
    print(
        markdown(
            ("nodes that ask in parallel", "answers a second"), [(str(n), f"{rate:.0f}") for n, rate in found.items()]
        )
    )


if __name__ == "__main__":
    main()
