"""Detects a cluster without nodes; Ray would wait forever without an error.

A local Ray has one node, and it does not come back once its `raylet` process is killed. A remote
cluster may get another node, so the caller chooses how long to wait.
"""

import time
from collections.abc import Callable, Sequence

from prefsweep.orchestrator.execution.placement import NodeSize, ray_nodes
from prefsweep.sweeps.errors import StageError

LOCAL_S = 10.0
"""How long to wait for a node of a local Ray."""
LOOK_S = 2.0
"""Shortest time between two looks at the nodes."""


class NodeWatch:
    """Call `check` regularly; `lost` is set once the cluster had no node for `patience_s`."""

    def __init__(
        self, patience_s: float, look: Callable[[], Sequence[NodeSize]] = ray_nodes
    ) -> None:
        self._patience_s, self._look = patience_s, look
        self._seen_s = self._looked_s = time.monotonic()
        self.lost: StageError | None = None

    def check(self) -> None:
        """Raises StageError if there was no node with a CPU for `patience_s` seconds."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        if (
            now_s - self._looked_s >= self._patience_s
        ):  # nothing was checked meanwhile: the node may have just gone
            self._seen_s = now_s
        self._looked_s = now_s
        if any(node.cpus for node in self._look()):
            self._seen_s = now_s
        elif now_s - self._seen_s >= self._patience_s:
            self.lost = StageError(
                f"Ray has had no node for {now_s - self._seen_s:.0f} s: its processes ended "
                "(`dmesg` shows what the kernel killed) or the cluster's nodes are gone. Run the "
                "same command again; it resumes from there"
            )
            raise self.lost
