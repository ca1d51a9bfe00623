"""What several files of integration tests share."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefsweep.orchestrator.state.sweep import Sweep

from ..conftest import BuildOnce
from .faults.harness import PYTHONPATH
from .faults.warm import start_server
from .ray_cluster import RayNodes, ray_nodes
from .small import run_inline, small_sweep

S3_KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "awskeythatmaynottravel",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of real processes wait for what a busy machine may not do in time: they get a second
    chance, and the summary says which took it (RERUN)."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def finished_sweep(build_once: BuildOnce) -> Sweep:
    """The small sweep, run to its end; tests that change its store do so in a copy."""
    return small_sweep(build_once("finished", lambda storage: run_inline(small_sweep(storage))))


@pytest.fixture(scope="session")
def warm_drivers() -> None:
    """`Run` starts inline drivers warm; asked for before a test changes the environment."""
    start_server()


@pytest.fixture(scope="module")
def warm_workers(warm_drivers: None) -> Iterator[None]:
    """Workers of a Ray that this process starts are warm, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server with a bucket called "bucket"; keys are in the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    request = urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")
    with urllib.request.urlopen(request, timeout=60):
        yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of the test's own."""
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{tmp_path.name}?endpoint_override={s3_server}&scheme=http"


@pytest.fixture(scope="session")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head and two more nodes of one CPU each, with a dashboard."""
    with ray_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        nodes.start("head", dashboard=True)
        nodes.wait(1)
        for num, name in enumerate(("left", "right"), start=2):
            nodes.start(name)
            nodes.wait(num)
        yield nodes
