"""Whether the cluster still has a node. Without one nothing ever runs, and nobody says so.

Ray on this machine has one node, whose end (its `raylet` was killed, say for memory) is for good. A
cluster elsewhere may get another one, which is waited for.
"""

import time
from collections.abc import Callable, Sequence

from prefsweep.orchestrator.execution.placement import NodeSize, ray_nodes
from prefsweep.sweeps.errors import StageError

LOCAL_S = 10.0
"""Patience with Ray on this machine."""
LOOK_S = 2.0


class Presence:
    """Looked at again and again; `lost` is set once the cluster had no node for too long."""

    def __init__(
        self, patience_s: float, look: Callable[[], Sequence[NodeSize]] = ray_nodes
    ) -> None:
        self._patience_s, self._look = patience_s, look
        self._seen_s = self._looked_s = time.monotonic()
        self.lost: StageError | None = None

    def check(self) -> None:
        """Raises StageError if there was no node with a CPU for so long."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        if now_s - self._looked_s >= self._patience_s:  # nobody looked: it may be gone just now
            self._seen_s = now_s
        self._looked_s = now_s
        if any(node.cpus for node in self._look()):
            self._seen_s = now_s
        elif now_s - self._seen_s >= self._patience_s:
            self.lost = StageError(
                f"for {now_s - self._seen_s:.0f} s Ray has had no node to work on: its processes "
                "ended (`dmesg` says what the kernel killed) or the cluster's nodes are gone; run "
                "the same command again, it goes on from there"
            )
            raise self.lost
