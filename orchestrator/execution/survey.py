"""Checks the nodes of a cluster for `doctor`, in a separate process with a time limit.

Connecting to a cluster may hang, and changes the state of a process. The checks are the same as
those before a run (nodes.py).
"""

import json
import subprocess
import sys
from dataclasses import asdict

from prefsweep.orchestrator.execution.nodes import Node, look_at_nodes
from prefsweep.orchestrator.execution.ray_session import attach_ray
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import ClusterError, SweepError

NODE_TIMEOUT_S = 40.0
"""Maximum wait for the answers of the nodes, once connected."""


def survey(address: str, storage: str, timeout_s: float) -> list[Node]:
    """The nodes of the cluster at `address`, and whether each reads and writes the storage.

    Raises ClusterError if the cluster cannot be reached within `timeout_s`.
    """
    command = [sys.executable, "-m", __spec__.name, address, storage]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"Ray at {address}: no answer within {timeout_s:.0f} s") from None
    lines = run.stdout.splitlines()
    if run.returncode or not lines:  # Ray may end its process
        last = (run.stderr.strip().splitlines() or ["it ended without an error message"])[-1]
        raise ClusterError(f"Ray at {address}: {last}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise ClusterError(answer["error"])
    return [Node(**fields) for fields in answer["nodes"]]


def main(address: str, storage: str) -> None:
    """Print the answers of the nodes, or an error, as one line of JSON."""
    try:
        attach_ray(address, None)
        nodes = look_at_nodes(Store(storage), NODE_TIMEOUT_S)
        print(json.dumps({"nodes": [asdict(node) for node in nodes]}))
    except SweepError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
