"""Starts a local Ray, or attaches to a running cluster.

The workers of a cluster get a folder with code (package.py) and some environment variables, but no
secrets: a runtime_env is written to files and shown in dashboards. HF_TOKEN, AWS keys and the like
must be set where the nodes are started.
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
"""Prefixes of environment variables that workers get from the driver."""
MAX_SOCKET_BYTES = 107
"""Maximum length of the path of a Unix socket, bytes."""
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The path of Ray's longest socket (with the largest pid), relative to its temporary folder."""
CONNECT_TIMEOUT_S = 5.0
"""Maximum wait for a connection to a cluster's head."""
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""The only setting with which Ray gives a node the loopback address. It is meant for Windows and
macOS, to avoid firewall dialogs, and also works on Linux."""
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH")
_PLACE = re.compile(r"_(HOME|CACHE|DIR|PATH|FILE)$")


def start_ray(threads: int, num_cpus: int | None, num_gpus: int | None = None) -> ModuleType:
    """Start a Ray on this machine that ends with this process. Its workers inherit the environment.

    Other users cannot use it: it requires a random token, and listens on the loopback address
    (unless Ray was imported before, because Ray reads this setting only once).
    """
    with suppress(ClusterError):
        token_place()  # makes a token file private that earlier versions of Ray left readable
    # inherited instead of in a runtime_env: workers start a second faster
    settings = worker_environment(threads, {}) | short_temp_folder(os.environ) | private_token()
    if "ray" not in sys.modules:
        settings |= ON_LOOPBACK
    with _environment(settings), _deaf_to_hangup():
        read_environment()
        own = {"num_cpus": num_cpus, "num_gpus": num_gpus, "include_dashboard": False}
        return _init("local", None, own)


def attach_ray(address: str, spec: SweepSpec | None) -> ModuleType:
    """Attach to the cluster at `address`, and send the code that its workers need.

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
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # in a Ray job, replace the job's runtime_env
    with scratch_folder(scratch_home()) as folder:
        for line in build_package(folder, spec):
            log.info("sent to the workers: %s", line)
        runtime_env = {"env_vars": environment, "working_dir": str(folder)}
        return _init(address, runtime_env, {})


def short_temp_folder(environ: Mapping[str, str]) -> dict[str, str]:
    """The setting that moves a local Ray's sockets to /tmp, if the temporary folder's path is too
    long; else empty.

    Raises ClusterError if RAY_TMPDIR itself is too long.
    """
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in environ else "TMPDIR"
    folder = environ.get(name, "/tmp")
    if len(os.fsencode(folder + SOCKET)) <= MAX_SOCKET_BYTES:
        return {}
    longest = MAX_SOCKET_BYTES - len(SOCKET)
    if name == "RAY_TMPDIR":
        raise ClusterError(
            f"RAY_TMPDIR={folder} has {len(os.fsencode(folder))} bytes, but Ray's sockets allow "
            f"at most {longest}; set RAY_TMPDIR to a shorter folder, such as /tmp"
        )
    log.warning("TMPDIR is longer than %d bytes; Ray keeps its sockets in /tmp/ray", longest)
    return {"RAY_TMPDIR": "/tmp"}


def unreachable(address: str) -> tuple[str, str] | None:
    """Why `address` cannot be attached to, and the remedy; None if something answers, and for auto.
    Ray itself would retry for minutes."""
    if address.startswith(("http://", "https://")):
        return (
            f"{address} is a dashboard, where `prefsweep submit` sends jobs",
            "use the cluster's head (--address HOST:6379), or auto on one of its nodes",
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
    """The environment of workers: prefsweep's settings, and from `environ` those that are neither
    secrets nor paths on this machine."""
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
    """Initialize Ray at `address`; `own` has arguments for a Ray that is started here ("local")."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # prefsweep logs the errors
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # prefsweep handles Ctrl-C
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
    except Exception as error:  # raised by Ray if one of its processes ends while it starts
        raise StageError(
            f"{_explained(address, str(error))} Check what ended it (`dmesg` shows what the kernel "
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
    if "Failed to connect" in message:  # Ray gives the reason only in its log
        return (
            f"Ray at {where}: {message}. Check that it runs (ray status there) and that this is "
            "its address"
        )
    return f"Ray at {where}: {message}"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started inside the block."""
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
    """Let processes that are started inside the block survive a lost terminal (SIGHUP); the driver
    ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
