"""What the nodes of a Ray cluster are and can: versions, GPUs, and whether they share the storage.

A program of its own, because connecting to a cluster may hang and leaves a process changed:
`survey` starts it with a time limit and reads its JSON. As it is `__main__` there, what runs
on the nodes travels by value, so they need not have prefsweep. Starts and changes nothing else.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from prefsweep.sweeps.errors import ClusterError

PACKAGES = ("ray", "torch", "transformers", "trl", "peft", "datasets", "pyarrow")
"""Packages whose versions have to be the driver's."""
NODE_TIMEOUT_S = 40
"""Longest wait for the answers of the nodes, once connected."""


@dataclass(frozen=True)
class Node:
    """One node, as it was found; `storage_error` is "" where it reads and writes the storage."""

    name: str
    cpus: float
    gpus: float
    memory_gib: float
    python: str
    packages: dict[str, str]
    gpu_names: list[str]
    storage_error: str
    error: str = ""
    """Why there is nothing else to tell of it."""


def survey(address: str, storage: str, token: str, timeout_s: float) -> list[Node]:
    """The nodes of the cluster at `address`; each reads and writes the file `token` in `storage`.

    Raises ClusterError if the cluster cannot be reached within `timeout_s`.
    """
    command = [sys.executable, "-m", __spec__.name, address, storage, token]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"Ray at {address}: no answer within {timeout_s:.0f} s") from None
    lines = run.stdout.splitlines()
    if run.returncode or not lines:
        raise ClusterError(f"Ray at {address}: {_explained(run.stderr)}")
    return [Node(**fields) for fields in json.loads(lines[-1])]


def _explained(stderr: str) -> str:
    """Why a connection failed, from what Ray wrote about it."""
    if "AuthenticationError" in stderr or "InvalidAuthToken" in stderr:
        return (
            "it asks for its token, which is missing here or another one; set RAY_AUTH_MODE=token, "
            "and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token) as on its nodes"
        )
    return (stderr.strip().splitlines() or ["it ended without a word"])[-1]


def main(address: str, storage: str, token: str) -> None:
    """Print what the nodes answer, as one line of JSON."""
    import logging
    import os

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    waiting = {_ask(node, storage, token): node for node in ray.nodes() if node["Alive"]}
    ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=NODE_TIMEOUT_S)
    print(json.dumps([_found(node, ref, ref in ready) for ref, node in waiting.items()]))


def _ask(node: dict[str, Any], storage: str, token: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    options = ray.remote(num_cpus=0, max_retries=0)(_answer).options(scheduling_strategy=here)
    return options.remote(storage, token, PACKAGES)


def _found(node: dict[str, Any], reference: Any, ready: bool) -> dict[str, Any]:
    import ray
    from ray.exceptions import RayError

    answer: dict[str, Any] = {}
    error = "" if ready else f"it did not answer within {NODE_TIMEOUT_S} s"
    if ready:
        try:
            answer = ray.get(reference)
        except RayError as failure:
            error = str(failure).strip().splitlines()[-1]
    resources = node["Resources"]
    return {
        "name": f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
        "cpus": resources.get("CPU", 0.0),
        "gpus": resources.get("GPU", 0.0),
        "memory_gib": resources.get("memory", 0.0) / 2**30,
        "python": "",
        "packages": {},
        "gpu_names": [],
        "storage_error": "",
        "error": error,
        **answer,
    }


def _answer(storage: str, token: str, packages: tuple[str, ...]) -> dict[str, Any]:
    """What a node says of itself. Runs there, and uses nothing that is defined here."""
    import platform
    import subprocess
    from importlib import metadata

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return ""

    def gpus() -> list[str]:
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        try:
            run = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return []
        return run.stdout.strip().splitlines() if run.returncode == 0 else []

    def storage_error() -> str:
        try:
            from pyarrow import fs

            if "://" in storage:
                system, root = fs.FileSystem.from_uri(storage)
            else:
                system, root = fs.LocalFileSystem(), storage
            with system.open_input_stream(f"{root}/{token}") as stream:
                content = stream.read()
            with system.open_output_stream(f"{root}/{token}") as stream:
                stream.write(content)
        except (ImportError, OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "gpu_names": gpus(),
        "storage_error": storage_error(),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
