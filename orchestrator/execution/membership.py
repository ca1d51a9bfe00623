"""Which nodes of a cluster may work: those like the driver that see its store, whenever they join.

`Members` travels to every worker, which looks at itself before its first work and refuses it where
its node differs. The driver hears of it, says so once, and gives that node nothing more.
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
    """What a worker has to agree with; in the driver also the nodes that did not."""

    store: Store
    sweep: str
    token: str
    """Of the run's lease: who sees another one, or none, sees another store."""
    versions: dict[str, str]
    kept_off: set[str] = field(default_factory=set[str])
    """Ids of the nodes that were refused."""
    _is_checked: bool = False

    def check(self) -> None:
        """In a worker: raises NodeError if it is on a node that may not work."""
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
        """In the driver: no work for the node that refused it, if that is what the error is."""
        cause = getattr(error, "cause", error)
        if not isinstance(cause, NodeError):
            return False
        if cause.node_id not in self.kept_off:
            self.kept_off.add(cause.node_id)
            log.warning("a node that has joined gets no work: %s", cause)
        return True

    def selector(self) -> dict[str, str]:
        """Ray's label selector for all other nodes; empty where none is kept off."""
        if not self.kept_off:
            return {}
        return {NODE_ID_LABEL: f"!in({','.join(sorted(self.kept_off))})"}

    def _wrong(self, name: str) -> str:
        different = version_differences(self.versions, own_versions())
        if different:
            return f"node {name} has other versions than the driver: {different}. {REMEDY}"
        try:
            holder = read_holder(self.store, self.sweep)
            unseen = "what the driver wrote there cannot be seen on it"
            wrong = "" if holder is not None and holder.token == self.token else unseen
        except StoreError as error:
            wrong = str(error)
        return "; ".join(storage_refusal(self.store, name, wrong)) if wrong else ""


def members_of(sweep: Sweep) -> Members:
    """Those that may work for the run whose lease this process holds."""
    holder = read_holder(sweep.store, sweep.spec.name)
    token = "" if holder is None else holder.token
    return Members(sweep.store, sweep.spec.name, token, own_versions())


def _here() -> tuple[str, str]:
    """The id and the name of the node that this process is on."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    mine = next(node for node in ray.nodes() if node["NodeID"] == node_id)
    return node_id, node_name(mine["NodeManagerAddress"], mine["NodeManagerHostname"])
