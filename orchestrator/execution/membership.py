"""Which nodes may run work: those with the driver's versions that can reach its store.

`Members` is sent to every worker. Before its first work a worker checks its own node and raises
NodeError if the node differs, also on nodes that join later. The driver then logs the reason once
and gives that node no more work.
"""

import logging
from dataclasses import dataclass, field

from prefsweep.orchestrator.execution.nodes import (
    REMEDY,
    node_name,
    own_versions,
    storage_refusal,
    version_differences,
)
from prefsweep.orchestrator.state.lease import read_holder
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.errors import NodeError, StoreError

log = logging.getLogger(__name__)

NODE_ID_LABEL = "ray.io/node-id"
"""The label that Ray gives every node."""


@dataclass
class Members:
    """What a worker's node must match; in the driver, also the nodes that did not."""

    store: Store
    sweep: str
    token: str
    """Token of the run's lease. A worker that reads another token, or none, sees another store."""
    versions: dict[str, str]
    kept_off: set[str] = field(default_factory=set[str])
    """Ids of the nodes that get no work."""
    _is_checked: bool = False

    def check(self) -> None:
        """In a worker: raises NodeError if its node may not run work."""
        if self._is_checked:
            return
        node_id, name = _here()
        wrong = self._wrong(name)
        if wrong:
            error = NodeError(wrong)
            error.node_id = node_id
            raise error
        self._is_checked = True

    def keep_off(self, error: Exception) -> bool:
        """In the driver: exclude the node of a NodeError; False for any other error."""
        cause = getattr(error, "cause", error)
        if not isinstance(cause, NodeError):
            return False
        if cause.node_id not in self.kept_off:
            self.kept_off.add(cause.node_id)
            log.warning("a node that joined gets no work: %s", cause)
        return True

    def selector(self) -> dict[str, str]:
        """Ray's label selector for all other nodes; empty if no node is excluded."""
        if not self.kept_off:
            return {}
        return {NODE_ID_LABEL: f"!in({','.join(sorted(self.kept_off))})"}

    def _wrong(self, name: str) -> str:
        different = version_differences(self.versions, own_versions())
        if different:
            return f"node {name} has other versions than the driver: {different}. {REMEDY}"
        try:
            holder = read_holder(self.store, self.sweep)
            unseen = "it does not see a file that the driver wrote there"
            wrong = "" if holder is not None and holder.token == self.token else unseen
        except StoreError as error:
            wrong = str(error)
        return "; ".join(storage_refusal(self.store, name, wrong)) if wrong else ""


def members_of(sweep: Sweep) -> Members:
    """The members for the run whose lease this process holds."""
    holder = read_holder(sweep.store, sweep.spec.name)
    token = "" if holder is None else holder.token
    return Members(sweep.store, sweep.spec.name, token, own_versions())


def _here() -> tuple[str, str]:
    """The id and name of the node that this process runs on."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    mine = next(node for node in ray.nodes() if node["NodeID"] == node_id)
    return node_id, node_name(mine["NodeManagerAddress"], mine["NodeManagerHostname"])
