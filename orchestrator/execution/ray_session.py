"""How this process gets a Ray: one of its own on this machine, or a cluster that is running.

What reaches the workers of a cluster is a folder (package.py) and settings by name. No secret does:
what lies in a runtime_env ends in files and dashboards, so HF_TOKEN, AWS keys and the like are set
where the nodes are started.
"""

import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from prefsweep.orchestrator.execution.package import build_package
from prefsweep.orchestrator.execution.ray_token import (
    private_token,
    read_environment,
    token_place,
    use_token_if_asked,
)
from prefsweep.orchestrator.store.scratch import scratch_folder, scratch_home
from prefsweep.sweeps.errors import ClusterError, StageError
from prefsweep.sweeps.spec import SweepSpec

log = logging.getLogger(__name__)

WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the spec are the driver's
}
FORWARDED = ("HF_", "TRANSFORMERS_", "WANDB_")
"""Beginnings of the names of settings that workers get from the driver."""
MAX_SOCKET_BYTES = 107
"""Bytes of the path of a Unix socket."""
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray adds to the temporary folder for the longest of its sockets (of the largest pid)."""
CONNECT_TIMEOUT_S = 5.0
"""Longest wait for a cluster's head to take a connection."""
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""The only switch by which Ray gives a node the loopback address: it is meant for these systems,
where others would have the firewall ask, and works on Linux as well."""
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH")
_PLACE = re.compile(r"_(HOME|CACHE|DIR|PATH|FILE)$")


def start_ray(threads: int, num_cpus: int | None, num_gpus: int | None = None) -> ModuleType:
    """A Ray on this machine that ends with this process; its workers inherit our environment.

    Nobody else reaches it: it asks for a token of its own, and listens on the loopback address
    (where this process has not imported Ray before, which reads that setting once).
    """
    with suppress(ClusterError):
        token_place()  # a file that earlier versions of Ray left open to others
    # inherited, not in a runtime_env: workers start a second sooner
    settings = worker_environment(threads, {}) | short_temp_folder(os.environ) | private_token()
    if "ray" not in sys.modules:
        settings |= ON_LOOPBACK
    with _environment(settings), _deaf_to_hangup():
        read_environment()
        own = {"num_cpus": num_cpus, "num_gpus": num_gpus, "include_dashboard": False}
        return _init("local", None, own)


def attach_ray(address: str, spec: SweepSpec | None) -> ModuleType:
    """Join the cluster at `address`, with what its workers need to run our code (and the spec's).

    Raises ClusterError.
    """
    if address.startswith("ray://"):
        raise ClusterError(
            f"--address {address}: the Ray client is not supported. Run on a node of the cluster "
            "with --address auto, or send the sweep there: "
            "prefsweep submit SPEC --address http://HEAD:8265"
        )
    if problem := unreachable(address):
        raise ClusterError("; ".join(problem))
    use_token_if_asked(address)
    threads = 1 if spec is None else spec.resources.threads_per_worker
    environment = worker_environment(threads, os.environ)
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # in a Ray job, ours takes the place of its
    with scratch_folder(scratch_home()) as folder:
        for line in build_package(folder, spec):
            log.info("sent to the workers: %s", line)
        runtime_env = {"env_vars": environment, "working_dir": str(folder)}
        return _init(address, runtime_env, {})


def short_temp_folder(environ: Mapping[str, str]) -> dict[str, str]:
    """Where a Ray of our own keeps its sockets, if paths in the temporary folder are too long.

    Raises ClusterError where RAY_TMPDIR itself is too long.
    """
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in environ else "TMPDIR"
    folder = environ.get(name, "/tmp")
    if len(os.fsencode(folder + SOCKET)) <= MAX_SOCKET_BYTES:
        return {}
    longest = MAX_SOCKET_BYTES - len(SOCKET)
    if name == "RAY_TMPDIR":
        raise ClusterError(
            f"RAY_TMPDIR={folder} has {len(os.fsencode(folder))} bytes, but paths of Ray's sockets "
            f"leave {longest}; set RAY_TMPDIR to a shorter folder, such as /tmp"
        )
    log.warning("TMPDIR is longer than %d bytes; Ray keeps its sockets in /tmp/ray", longest)
    return {"RAY_TMPDIR": "/tmp"}


def unreachable(address: str) -> tuple[str, str] | None:
    """Why no Ray can be joined at `address`, and what to do; None where something answers, and for
    auto. Ray itself would try for minutes."""
    if address.startswith(("http://", "https://")):
        return (
            f"{address} is a dashboard, where `prefsweep submit` sends jobs",
            "give the cluster's head (--address HOST:6379), or auto on a node of it",
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return None
    try:
        place = (host.strip("[]"), int(port))
        socket.create_connection(place, CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        remedy = "start it (`ray start --head`), or correct --address (or RAY_ADDRESS)"
        return f"nothing answers at {address}: {error}", remedy
    return None


def worker_environment(threads: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of workers: ours, and of `environ` the settings that are neither secret nor
    say where something lies on this machine."""
    settings = {
        name: value
        for name, value in environ.items()
        if name.startswith(FORWARDED)
        and not _SECRET.search(name)
        and not _PLACE.search(name)
        and "@" not in value  # a URL with a password
    }
    return {**settings, **WORKER_ENV, "OMP_NUM_THREADS": str(threads)}


def _init(
    address: str, runtime_env: dict[str, object] | None, own: Mapping[str, Any]
) -> ModuleType:
    """Ray, joined at `address`; `own` is for a Ray that is started here ("local")."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # we say what is lost, and go on
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is ours to handle
    import ray
    from ray.exceptions import RayError

    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=runtime_env,
            ignore_reinit_error=False,
            **own,
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(_explained(address, str(error))) from None
    except Exception as error:  # Ray's own, where a process of it ends while it starts
        raise StageError(
            f"{_explained(address, str(error))} Look what ended it (`dmesg` says what the kernel "
            "killed), and run the same command again"
        ) from None
    return ray


def _explained(address: str, message: str) -> str:
    where = "this machine" if address == "local" else address
    if "Version mismatch" in message:
        return (
            f"Ray at {where} and this environment differ. {' '.join(message.split())} "
            "Install the same versions here, or start prefsweep in the cluster's own environment "
            "(prefsweep submit does)"
        )
    if "Failed to connect" in message:  # Ray says why in its log alone
        return (
            f"Ray at {where}: {message}. See that it runs (ray status there) and that this is its "
            "address"
        )
    return f"Ray at {where}: {message}"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes started in the block inherit."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _deaf_to_hangup() -> Iterator[None]:
    """Processes started in the block outlive a lost terminal: the driver lets them finish."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
