"""The nodes of a cluster: their versions and GPUs, and whether they can reach the store.

`check_cluster` checks all nodes before work starts, `prefsweep doctor` (survey.py) on request, and
each worker its own node (membership.py), which may have joined later. Problems are reported with
the node's name and the remedy.
"""

import platform
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import ClusterError, SweepError

PACKAGES = ("ray", "torch", "transformers", "trl", "peft", "datasets", "pyarrow", "pydantic")
"""Packages whose versions affect results, or objects that are sent between processes."""
TIMEOUT_S = 180.0
"""Maximum time for nodes to start a worker and answer."""
REMEDY = (
    "Install the same ones on every node (one image, or constraints.txt), or start the sweep in "
    "the cluster's own environment (prefsweep submit)"
)


@dataclass(frozen=True)
class Node:
    """One node and what was found there; an empty text means no problem."""

    node_id: str
    name: str
    """Its address, and its host name if that differs."""
    cpus: float = 0.0
    """A node without CPUs runs no work of prefsweep and is not asked anything."""
    gpus: float = 0.0
    memory_gib: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Versions of Python and of those PACKAGES that it has."""
    gpu_names: Sequence[str] = ()
    storage_error: str = ""
    error: str = ""
    """Why no work can run there."""

    @property
    def differences(self) -> str:
        """Describes its versions that differ from this process's."""
        return version_differences(own_versions(), self.versions) if self.versions else ""


def check_cluster(store: Store) -> None:
    """Raises ClusterError for nodes that differ from this process or cannot reach the store."""
    nodes = look_at_nodes(store, TIMEOUT_S)
    lines = [f"  {node.name}: {node.differences}" for node in nodes if node.differences]
    if lines:
        differing = "\n".join(lines)
        raise ClusterError(
            f"nodes of the cluster have other versions than this driver:\n{differing}\n{REMEDY}"
        )
    for node in nodes:
        if node.error:
            raise ClusterError(f"node {node.name}: {node.error}")
        if node.storage_error:
            raise ClusterError("; ".join(storage_refusal(store, node.name, node.storage_error)))


def look_at_nodes(store: Store, timeout_s: float) -> list[Node]:
    """Ask all nodes of the cluster that this process is attached to; returns them by name."""
    token = uuid.uuid4().hex
    folder = store.artifact("preflight", token)
    store.write(f"{folder}/driver", token.encode())
    try:
        asked = [(node, _ask(node, store.uri, folder, token)) for node in _nodes()]
        deadline = time.monotonic() + timeout_s
        answers = [_answered(node, ref, deadline - time.monotonic()) for node, ref in asked]
        return [_seen_from_here(node, store, folder, token) for node in answers]
    finally:
        store.delete(folder)


def own_versions() -> dict[str, str]:
    """Versions of this process's Python and packages."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def version_differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Describes differing versions, ignoring builds (+cpu, +cu130) and patch versions of Python."""
    found: list[str] = []
    for name, version in ours.items():
        other = theirs.get(name)
        if other is None:
            found.append(f"{name} is missing (driver {version})")
        elif _compared(name, other) != _compared(name, version):
            found.append(f"{name} {other} (driver {version})")
    return ", ".join(found)


def storage_refusal(store: Store, name: str, wrong: str) -> tuple[str, str]:
    """The message for a node that cannot reach the store, and the remedy."""
    remedy = (
        "its credentials come from each node's own environment or role (AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY where Ray is started)"
    )
    if store.is_local:
        remedy = "use a folder that all nodes share, or an object store such as s3://"
    return f"--storage {store.uri} does not work on node {name}: {wrong}", remedy


def answer_through(uri: str, folder: str, token: str, name: str) -> str:
    """On a node: read the driver's file in the store and write an answer beside it. Returns the
    problem, or ""."""
    try:
        store = Store(uri)
        if store.read(f"{folder}/driver") != token.encode():
            return "it does not see a file that the driver wrote there"
        store.write(f"{folder}/{name}", token.encode())
    except SweepError as error:
        return str(error)
    return ""


def node_name(address: str, host: str) -> str:
    """The name of a node in messages."""
    return address if host in ("", address) else f"{address} ({host})"


def _nodes() -> list[Node]:
    import ray

    nodes: list[Node] = []
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            name = node_name(node["NodeManagerAddress"], node["NodeManagerHostname"])
            sizes = (has.get("CPU", 0.0), has.get("GPU", 0.0), has.get("memory", 0.0) / 2**30)
            nodes.append(Node(node["NodeID"], name, *sizes))
    return sorted(nodes, key=lambda node: (node.name, node.node_id))


def _ask(node: Node, *storage: str) -> Any:
    """Ask a node; returns a Ray reference to the answer, or None for a node without CPUs."""
    if not node.cpus:
        return None
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def answer(names: tuple[str, ...], *storage: str) -> dict[str, Any]:  # travels by value:
        import platform  # a node that lacks what we need can still tell
        import subprocess
        from importlib import metadata

        versions = {"python": platform.python_version()}
        for name in names:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        try:
            run = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
            gpu_names = run.stdout.strip().splitlines()
        except (OSError, subprocess.SubprocessError):
            gpu_names = []
        found: dict[str, Any] = {"versions": versions, "gpu_names": gpu_names}
        try:
            from prefsweep.orchestrator.execution.nodes import answer_through
        except ImportError as error:
            return found | {"error": f"it cannot run prefsweep's code: {error}"}
        return found | {"storage_error": answer_through(*storage)}

    here = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=1)(answer).options(scheduling_strategy=here)
    return task.remote(PACKAGES, *storage, node.node_id)


def _answered(node: Node, reference: Any, timeout_s: float) -> Node:
    if reference is None:
        return node
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        answer: dict[str, Any] = ray.get(reference, timeout=max(0.0, timeout_s))
        return replace(node, **answer)
    except GetTimeoutError:
        logs = "see its Ray logs (/tmp/ray/session_latest/logs there)"
        return replace(node, error=f"it started no worker within the time limit; {logs}")
    except RayError as error:
        return replace(node, error=f"it cannot run prefsweep's code: {str(error).strip()}")


def _seen_from_here(node: Node, store: Store, folder: str, token: str) -> Node:
    """The node, with an error if this process cannot see the answer that it wrote."""
    if not node.versions or node.error or node.storage_error:
        return node
    if store.read(f"{folder}/{node.node_id}") == token.encode():
        return node
    return replace(node, storage_error="the driver does not see a file that it wrote there")


def _compared(name: str, version: str) -> str:
    return ".".join(version.split(".")[:2]) if name == "python" else version.partition("+")[0]
