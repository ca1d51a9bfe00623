"""The nodes of a cluster, looked at from a process of its own with a time limit: for `doctor`.

Connecting to a cluster may hang and leaves a process changed. What is looked at, and how, is what
a run looks at before it starts (nodes.py).
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
"""Longest wait for the answers of the nodes, once connected."""


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
    if run.returncode or not lines:  # Ray may end the process that it is in
        last = (run.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise ClusterError(f"Ray at {address}: {last}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise ClusterError(answer["error"])
    return [Node(**fields) for fields in answer["nodes"]]


def main(address: str, storage: str) -> None:
    """Print what the nodes answer, or why there are none, as one line of JSON."""
    try:
        attach_ray(address, None)
        nodes = look_at_nodes(Store(storage), NODE_TIMEOUT_S)
        print(json.dumps({"nodes": [asdict(node) for node in nodes]}))
    except SweepError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
