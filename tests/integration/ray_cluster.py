"""A real Ray cluster on this machine, in processes of its own, whose side has no prefsweep.

Its Python has our dependencies (links to what is installed here) but neither the checkout nor an
installed prefsweep, and every node starts in an empty folder.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

DEADLINE_S = 240

AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
"""What nodes and drivers share; a home folder may have no token."""


class RayNodes:
    """The nodes that were started; use `ray_nodes` to have them ended."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self._more = folder, environment
        self.python = dependencies_only(folder / "python")
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.dashboard = f"http://127.0.0.1:{self.dashboard_port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        # Ray's sockets need a short path
        self.temp = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))

    def start(
        self,
        name: str,
        *,
        dashboard: bool = False,
        python: str | None = None,
        hidden: Path | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """Start a node of one CPU; the first one is the head.

        `python` is another one than the cluster's, and in place of the folder `hidden` the node
        has one of its own (for which one has to be root). `more` is for its environment.
        """
        words = ["--address", self.address]
        if not self.processes:
            words = ["--head", "--port", str(self.port)]
            words += ["--include-dashboard", str(dashboard).lower()]
            words += ["--dashboard-port", str(self.dashboard_port)]
            words += ["--ray-client-server-port", str(free_port())]
        words += ["--num-cpus", "1", "--block", "--disable-usage-stats"]
        # other Rays of this machine may have Ray's own ports, and two workers can share one unseen
        words += ["--dashboard-agent-listen-port", str(free_port())]
        words += ["--min-worker-port", "0", "--max-worker-port", "0"]
        words += ["--temp-dir", str(self.temp / name[:6])]  # as on machines of their own
        words += ["--object-store-memory", str(80 * 2**20)]
        command = [python or self.python, "-m", "ray.scripts.scripts", "start", *words]
        if hidden is not None:
            script = 'mount -t tmpfs none "$0" && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, str(hidden), *command]
        home = self.folder / name
        home.mkdir()
        with (home / "log.txt").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=home,
                env=self._environment() | dict(more or {}),
                stdout=log,
                stderr=log,
            )

    def wait(self, num: int) -> None:
        """Wait until there are `num` nodes."""
        deadline = time.monotonic() + DEADLINE_S
        while self._num_alive() != num:
            ended = any(process.poll() is not None for process in self.processes.values())
            assert not ended and time.monotonic() < deadline, self.logs()
            time.sleep(0.5)

    def node_of(self, pid: int) -> str:
        """The node that a raylet belongs to."""
        above = {parent.pid for parent in psutil.Process(pid).parents()}
        return next(name for name, process in self.processes.items() if process.pid in above)

    def kill(self, name: str) -> None:
        """SIGKILL for a node and all its processes, as if its machine had gone."""
        process = self.processes.pop(name)
        end(process, signal.SIGKILL)

    def close(self) -> None:
        for process in reversed(self.processes.values()):
            end(process, signal.SIGKILL)
        shutil.rmtree(self.temp, ignore_errors=True)

    def logs(self) -> str:
        return "\n".join(file.read_text() for file in self.folder.glob("*/log.txt"))

    def _num_alive(self) -> int:
        code = (
            "import sys; from ray._raylet import GcsClient; "
            "c = GcsClient(address=sys.argv[1]); "
            "print(sum(n.state == 0 for n in c.get_all_node_info().values()))"
        )
        run = subprocess.run(
            [self.python, "-c", code, self.address],
            capture_output=True,
            text=True,
            timeout=60,
            env=self._environment(),
        )
        return int(run.stdout) if run.returncode == 0 else 0

    def _environment(self) -> dict[str, str]:
        hidden = ("HF_", "WANDB_", "RAY_", "PYTHON", "VIRTUAL_ENV", "AWS_", "PREFSWEEP_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        paths = [str(Path(self.python).parent), kept["PATH"]]
        return kept | {
            "PATH": os.pathsep.join(paths),
            **AUTH,
            "RAY_raylet_start_wait_time_s": "180",
            **self._more,
        }


@contextmanager
def ray_nodes(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[RayNodes]:
    """Nodes to be started, with more in their environment; all of them ended in the end."""
    nodes = RayNodes(folder, environment or {})
    try:
        yield nodes
    finally:
        nodes.close()


def dependencies_only(folder: Path, pretended: Mapping[str, str] | None = None) -> str:
    """A Python with everything that is installed here except prefsweep.

    `pretended` are versions that it says it has of packages.
    """
    venv.create(folder, symlinks=True)
    (target,) = folder.glob("lib/python*/site-packages")
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if "prefsweep" not in item.name:
            (target / item.name).symlink_to(item)
    for package, version in (pretended or {}).items():
        next(target.glob(f"{package}-*.dist-info")).unlink()
        info = target / f"{package}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {package}\nVersion: {version}\n")
    python = str(folder / "bin" / "python")
    command = [python, "-E", "-c", "import ray, pydantic, prefsweep.sweeps"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert "No module named 'prefsweep'" in run.stderr, run.stderr
    return python


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and all below it, and wait for their end."""
    try:
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=10)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def prefsweep(
    *words: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """The command as a process of its own, started in another folder."""
    token = {"RAY_AUTH_TOKEN": AUTH["RAY_AUTH_TOKEN"]}  # that it is wanted, the cluster says
    settings = {"HF_HUB_OFFLINE": "1", **token} | dict(environment or {})
    modules = [str(cwd), os.environ.get("PYTHONPATH", "")]
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, modules))
    return subprocess.Popen(
        [sys.executable, "-m", "prefsweep.orchestrator.commands.cli", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | settings,
    )
