"""What dies and comes back: nodes, a SuperLink and its server; and what is said about a run or a start that failed."""

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse

from fftmoe.deploy.link.link import open_grid
from fftmoe.deploy.link.superlink import Endpoint, start_superlink
from fftmoe.engines.base import Fault, Reply
from fftmoe.engines.flower import FlowerEngine
from fftmoe.errors import RunError
from flower_link import (
    JOB,
    SOON,
    Authority,
    bearer,
    connected,
    free_address,
    make_key,
    new_authority,
    node_here,
    post,
    publics,
    script,
    soon,
    superlink,
    wait_for,
)

pytestmark = [pytest.mark.network, pytest.mark.slow]


def test_a_node_that_was_killed_serves_the_next_round(authority: Authority, tmp_path: Path):
    endpoint, keys = Endpoint(free_address(), *authority), {"a": make_key(), "b": make_key()}
    (tmp_path / "key").write_bytes(keys["b"].private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    arguments = ("node", endpoint.fleet, endpoint.ca, tmp_path / "key", tmp_path / "b")
    answers: list[Reply | Fault] = []
    with (
        superlink(endpoint, tmp_path),
        node_here(endpoint, keys["a"], tmp_path / "a"),
        open_grid(endpoint, publics(keys)) as (grid, nodes),
    ):
        engine = FlowerEngine(
            grid, dict(enumerate(nodes.values())), JOB, 3 * SOON
        )  # long: the lost message must not wait for it
        with script(*arguments) as process:
            wait_for(process, "connected")
            round_ = threading.Thread(target=lambda: answers.extend(engine.run_clients([[(0, b"ab")], [(1, b"hang")]])))
            round_.start()
            wait_for(process, "hanging")  # at the exit it is killed
        with script(*arguments) as process:
            wait_for(process, "connected")  # immediately, although the SuperLink has not noticed the end of the first
            round_.join()
            assert isinstance(answers[0], Reply)
            assert [(a.client_id, a.kind) for a in answers[1:] if isinstance(a, Fault)] == [(1, "failed")]
            again = list(engine.run_clients([[(0, b"ab")], [(1, b"cd")]]))
            assert {(a.client_id, a.message) for a in again if isinstance(a, Reply)} == {(0, b"ba"), (1, b"dc")}


def test_nodes_come_back_to_a_superlink_that_was_killed(authority: Authority, tmp_path: Path):
    endpoint, keys = Endpoint(free_address(), *authority), {"a": make_key()}
    with node_here(endpoint, keys["a"], tmp_path / "a") as said:
        with superlink(endpoint, tmp_path) as process:
            with open_grid(endpoint, publics(keys)) as (grid, first):
                soon(lambda: connected(grid, first) == {"a"})
                process.kill()
                with pytest.raises(RunError, match="it does not run any more"):
                    grid.get_node_ids()
        with superlink(endpoint, tmp_path), open_grid(endpoint, publics(keys)) as (grid, second):
            soon(lambda: connected(grid, second) == {"a"})
            [answer] = FlowerEngine(grid, {0: second["a"]}, JOB, SOON).run_clients([[(0, b"ab")]])
            assert isinstance(answer, Reply)
        assert first != second
    assert [line.split(" the server")[0] for line in said[:3]] == ["waiting for", "connected to", "lost"]
    assert said[3:] == [f"the server at {endpoint.fleet} is back"]


def test_the_superlink_ends_with_its_server(authority: Authority, tmp_path: Path):
    address = free_address()
    host, _, port = address.partition(":")
    with script("superlink", address, *authority, tmp_path / "log") as process:
        wait_for(process, "started")
        socket.create_connection((host, int(port))).close()

    def gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) != 0

    soon(gone)  # the server was killed; it had no time to say anything


def test_a_superlink_that_cannot_start_says_why(authority: Authority, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for endpoint in (Endpoint(address, *authority), Endpoint(free_address(), *authority, control=address)):
            with pytest.raises(RunError, match=f"cannot listen on {address}.*choose another port"):
                start_superlink(endpoint, tmp_path / "log")
    other = new_authority(tmp_path / "other")
    with pytest.raises(RunError, match=r"server\.crt with .*other.server\.key cannot be used"):
        start_superlink(replace(Endpoint(free_address(), *authority), key=other.key), tmp_path / "log")


def test_the_superlink_hears_how_a_run_ended(authority: Authority, tmp_path: Path):
    endpoint, keys = Endpoint(free_address(), *authority), {"a": make_key()}
    with superlink(endpoint, tmp_path):
        with pytest.raises(ZeroDivisionError), open_grid(endpoint, publics(keys)) as (_, first):
            raise ZeroDivisionError("too few sites")
        keys["b"] = make_key()
        with open_grid(endpoint, publics(keys)) as (_, second):
            pass
        found = post(endpoint.control, "v1/control/list-runs", endpoint, bearer(endpoint.token), ListRunsRequest())
    assert second["a"] == first["a"]
    statuses = [run.status for run in ListRunsResponse.FromString(found.content).run_dict.values()]
    assert {(status.sub_status, status.details) for status in statuses} == {
        ("failed", "ZeroDivisionError: too few sites"),
        ("completed", ""),
    }
