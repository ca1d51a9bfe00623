"""A cluster with token authentication: who has the token gets in, and who has not is refused."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from .test_secrets import holders

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
[node] = survey(*sys.argv[1:3], float(sys.argv[3]))
assert (node.cpus, node.error, node.storage_error, node.differences) == (1.0, "", "", "")
print("looked")
"""
ATTACH = """
import sys
from prefsweep.orchestrator.execution.ray_session import attach_ray
from prefsweep.sweeps.errors import ClusterError
try:
    ray = attach_ray(sys.argv[1], None)
    print(ray.get(ray.remote(lambda: "worked").remote()))
except ClusterError as error:
    print(error)
"""


def from_another_home(address: str, home: Path, program: str, **given: str) -> str:
    """What a program says on a machine that shares nothing with the head but what is given."""
    hidden = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    run = subprocess.run(
        [sys.executable, "-c", program, address, str(home / "store"), str(START_TIMEOUT_S)],
        env=kept | {"HOME": str(home)} | given,
        capture_output=True,
        text=True,
    )
    assert TOKEN not in run.stdout + run.stderr
    assert not holders(home / "store", TOKEN)
    return run.stdout + run.stderr


def test_the_token_that_exists_is_used_without_more_to_set(head: Head, tmp_path: Path) -> None:
    homes = {name: tmp_path / name for name in ("variable", "named", "home")}
    for home in homes.values():
        home.mkdir()
    (homes["named"] / "secret").write_text(TOKEN)
    (homes["home"] / ".ray").mkdir()
    (homes["home"] / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
    given = {"variable": {"RAY_AUTH_TOKEN": TOKEN}, "home": {}}
    given["named"] = {"RAY_AUTH_TOKEN_PATH": str(homes["named"] / "secret")}
    looked = from_another_home(head.address, homes["variable"], LOOK, **given["variable"])
    assert looked == "looked\n"
    for name, home in homes.items():
        said = from_another_home(head.address, home, ATTACH, **given[name])
        assert "worked" in said.splitlines(), said
    assert (homes["named"] / "secret").stat().st_mode & 0o077 == 0, "others could read it"


def test_a_missing_or_wrong_token_is_one_sentence_with_what_to_do(
    head: Head, tmp_path: Path
) -> None:
    none = from_another_home(head.address, tmp_path, ATTACH)
    assert none.startswith(f"Ray at {head.address} requires a token, and there is none here: set")
    assert len(none.splitlines()) == 1
    other = from_another_home(head.address, tmp_path, ATTACH, RAY_AUTH_TOKEN="0" * 32)
    assert "requires another token than that of RAY_AUTH_TOKEN" in other
    disabled = from_another_home(head.address, tmp_path, LOOK, RAY_AUTH_MODE="disabled")
    assert "ClusterError: Ray at 127.0.0.1" in disabled
    assert "RAY_AUTH_MODE=disabled is set here: unset it" in disabled


OWN = """
import psutil
from prefsweep.orchestrator.execution.ray_session import start_ray
ray = start_ray(1, 1)
assert ray.get(ray.remote(lambda: "worked").remote()) == "worked"
family = [psutil.Process(), *psutil.Process().children(recursive=True)]
ports = [c.laddr for p in family for c in p.net_connections("inet") if c.status == "LISTEN"]
assert ports, "a Ray listens"
print([port for port in ports if port.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")])
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


def test_a_ray_of_our_own_is_out_of_reach_of_other_machines_and_other_users(
    tmp_path: Path,
) -> None:
    environment = os.environ | {"HOME": str(tmp_path / "mine"), "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        [sys.executable, "-c", OWN],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        elsewhere, address = process.stdout.readline(), process.stdout.readline().strip()
        try:
            assert elsewhere == "[]\n", "ports that other machines reach"
            refused = from_another_home(address, tmp_path, ATTACH)
            assert "requires a token, and there is none here" in refused
            assert not list(tmp_path.glob("mine/.ray/*"))
        finally:
            process.kill()
