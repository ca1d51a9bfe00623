"""A cluster with token authentication: who has the token gets in, and who has not is refused."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from prefsweep.orchestrator.execution.nodes import own_versions
from prefsweep.orchestrator.execution.survey import survey

TOKEN = "f3a1c5d2e4b6978812345678aabbccdd"
START_TIMEOUT_S = 120


@dataclass(frozen=True)
class Head:
    """A head node that takes only who has the token."""

    address: str
    environment: dict[str, str]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    port = free_port()
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    options = {
        "port": port,
        "num-cpus": 1,
        "include-dashboard": "false",
        "dashboard-agent-listen-port": free_port(),
        "min-worker-port": 0,
        "max-worker-port": 0,
        "node-ip-address": "127.0.0.1",
    }
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "HF_TOKEN": "the node's",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        words = [f"--{name}={value}" for name, value in (options | {"temp-dir": folder}).items()]
        process = subprocess.Popen(
            [*command, *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_for(port, process)
            yield Head(f"127.0.0.1:{port}", environment)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a node with all processes below it."""
    family = [psutil.Process(process.pid)] if process.poll() is None else []
    for parent in list(family):
        family += parent.children(recursive=True)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "ray start ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("ray start did not open its port")


def test_with_the_token_the_nodes_answer_and_share_the_storage(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, head.environment[name])
    [node] = survey(head.address, str(tmp_path), START_TIMEOUT_S)
    assert (node.cpus, node.error, node.storage_error, node.differences) == (1.0, "", "", "")
    assert node.versions == own_versions()


def test_workers_have_the_keys_of_their_node_and_not_the_driver_s(head: Head) -> None:
    program = """
import os, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(lambda: os.environ.get("HF_TOKEN")).remote()))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, head.address],
        env=head.environment | {"HF_TOKEN": "the driver's"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines()[-1] == "the node's"


LOOK = """
import sys
from prefsweep.orchestrator.execution.survey import survey
survey(*sys.argv[1:3], float(sys.argv[3]))
"""
ATTACH = """
import sys
from prefsweep.orchestrator.execution.ray_session import attach_ray
attach_ray(sys.argv[1], None)
"""


def test_without_the_token_a_driver_is_refused_and_told_what_it_needs(
    head: Head, tmp_path: Path
) -> None:
    def refusal(program: str, **given: str) -> str:
        words = [sys.executable, "-c", program, head.address, str(tmp_path), str(START_TIMEOUT_S)]
        run = subprocess.run(words, env=os.environ | given, capture_output=True, text=True)
        assert run.returncode != 0
        assert TOKEN not in run.stdout + run.stderr
        assert "ClusterError: Ray at 127.0.0.1" in run.stderr
        assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in run.stderr
        return run.stderr

    none = {"RAY_AUTH_MODE": "disabled"}
    another = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
    with ThreadPoolExecutor() as pool:
        refused = [pool.submit(refusal, LOOK, **given) for given in (none, another)]
        pool.submit(refusal, ATTACH, **another).result()
        assert all("it asks for its token" in said.result() for said in refused)
