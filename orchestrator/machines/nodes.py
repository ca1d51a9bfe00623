"""Looks at every node of a cluster before work starts: same versions, and the store within reach.

One small task a node. What is wrong is told with the node's name and what to do; nothing is mended.
"""

import platform
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from prefsweep.orchestrator.store import Store
from prefsweep.sweeps.errors import ClusterError, SweepError

PACKAGES = ("ray", "torch", "transformers", "trl", "peft", "pydantic")
"""Those on whose versions results, or what is sent between processes, depend."""
TIMEOUT_S = 180.0
"""Longest that a node may take to start a worker and answer."""


@dataclass(frozen=True)
class Node:
    """A node that can run work."""

    node_id: str
    name: str
    """Its address, and its host name where that is another word."""


def check_cluster(store: Store) -> None:
    """Raises ClusterError for nodes that differ from this process or do not reach the store."""
    nodes = working_nodes()
    check_versions(nodes)
    check_storage(store, nodes)


def working_nodes() -> list[Node]:
    """The nodes that are alive and have CPUs to give, by name."""
    import ray

    nodes: list[Node] = []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU"):
            address, host = node["NodeManagerAddress"], node["NodeManagerHostname"]
            name = address if host in ("", address) else f"{address} ({host})"
            nodes.append(Node(node["NodeID"], name))
    return sorted(nodes, key=lambda node: (node.name, node.node_id))


def check_versions(nodes: list[Node]) -> None:
    """Raises ClusterError, with every difference, if a node has not the versions of this driver."""

    def versions(names: tuple[str, ...]) -> dict[str, str]:  # sent whole: needs nothing of ours
        import platform
        from importlib import metadata

        found = {"python": platform.python_version()}
        for name in names:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return found

    ours = {"python": platform.python_version()}
    ours |= {name: metadata.version(name) for name in PACKAGES}
    theirs = _on_each(nodes, versions, lambda node: (PACKAGES,))
    lines = [
        f"  {node.name}: {differences}"
        for node in nodes
        if (differences := version_differences(ours, theirs[node.node_id]))
    ]
    if lines:
        raise ClusterError(
            "nodes of the cluster have other versions than this driver:\n"
            + "\n".join(lines)
            + "\nInstall the same ones on every node (one image, or constraints.txt), or start the "
            "sweep in the cluster's own environment (prefsweep submit)"
        )


def version_differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """What differs, in words; builds of one version (+cpu, +cu130) and patches of Python do not."""
    found: list[str] = []
    for name, version in ours.items():
        other = theirs.get(name)
        if other is None:
            found.append(f"{name} is missing (driver {version})")
        elif _compared(name, other) != _compared(name, version):
            found.append(f"{name} {other} (driver {version})")
    return ", ".join(found)


def check_storage(store: Store, nodes: list[Node]) -> None:
    """Raises ClusterError for a node that does not read what is written here, or the reverse."""
    token = uuid.uuid4().hex
    folder = store.artifact("preflight", token)
    store.write(f"{folder}/driver", token.encode())
    try:
        said = _on_each(
            nodes, answer_through, lambda node: (store.uri, folder, token, node.node_id)
        )
        for node in nodes:
            answer = store.read(f"{folder}/{node.node_id}")
            wrong = said[node.node_id]
            if not wrong and answer != token.encode():
                wrong = "what it writes there cannot be seen here"
            if wrong:
                raise ClusterError(_unreachable(store, node, wrong))
    finally:
        store.delete(folder)


def answer_through(uri: str, folder: str, token: str, name: str) -> str:
    """On a node: find what the driver wrote, and answer beside it. Returns what went wrong."""
    try:
        store = Store(uri)
        if store.read(f"{folder}/driver") != token.encode():
            return "what the driver wrote there cannot be seen on it"
        store.write(f"{folder}/{name}", token.encode())
    except SweepError as error:
        return str(error)
    return ""


def _unreachable(store: Store, node: Node, wrong: str) -> str:
    remedy = (
        "its credentials come from each node's own environment or role (AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY where Ray is started)"
    )
    if store.is_local:
        remedy = "give a folder that all nodes share, or a store of its own such as s3://"
    return f"--storage {store.uri} does not work on node {node.name}: {wrong}; {remedy}"


def _on_each(
    nodes: list[Node], function: Callable[..., Any], arguments: Callable[[Node], tuple[Any, ...]]
) -> dict[str, Any]:
    """Node id -> what the function returned there."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=1)(function)
    references = {
        node: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        ).remote(*arguments(node))
        for node in nodes
    }
    returned: dict[str, Any] = {}
    for node, reference in references.items():
        try:
            returned[node.node_id] = ray.get(reference, timeout=TIMEOUT_S)
        except GetTimeoutError:
            raise ClusterError(
                f"node {node.name} started no worker within {TIMEOUT_S:g} s; see its Ray logs "
                "(/tmp/ray/session_latest/logs there)"
            ) from None
        except RayError as error:
            raise ClusterError(f"node {node.name} cannot run our code: {error}") from error
    return returned


def _compared(name: str, version: str) -> str:
    return ".".join(version.split(".")[:2]) if name == "python" else version.partition("+")[0]
