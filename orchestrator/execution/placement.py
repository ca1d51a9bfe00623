"""Computes how many workers of each stage fit on the cluster's current nodes.

The nodes are read again on each request, because they come and go. Starts nothing.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass

from prefsweep.sweeps.errors import ClusterError
from prefsweep.sweeps.spec import ResourcesSpec, SweepSpec

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""How long a look at the cluster stays valid."""
MAX_ASKED = 256
"""Largest number of workers requested from an autoscaler for one stage."""
FIELDS = {
    "completions": ("num_generators", "gpus_per_generator"),
    "scores": ("num_scorers", "gpus_per_scorer"),
    "reference": ("num_reference_workers", "gpus_per_reference_worker"),
    "trials": ("", "gpus_per_trial"),
}
"""Stage -> the fields of the resources section that give its workers and the GPU share of each."""


@dataclass(frozen=True)
class NodeSize:
    """Total resources of a node."""

    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    """Bytes."""


def resources_of(spec: SweepSpec) -> ResourcesSpec:
    """The spec's resources; `auto` becomes 0 GPUs for scorers that load no model."""
    resources, reward = spec.resources, spec.reward
    if resources.gpus_per_scorer != "auto" or reward is None or reward.type == "classifier":
        return resources
    return resources.model_copy(update={"gpus_per_scorer": 0.0})


class Placement:
    """Places the spec's resources on the nodes that `look` returns."""

    def __init__(self, resources: ResourcesSpec, look: Callable[[], Sequence[NodeSize]]) -> None:
        self._resources, self._look = resources, look
        self._seen: list[NodeSize] = []
        self._looked = -LOOK_S

    @property
    def nodes(self) -> list[NodeSize]:
        """The nodes as they were at most LOOK_S seconds ago."""
        if time.monotonic() - self._looked >= LOOK_S:
            self._seen, self._looked = list(self._look()), time.monotonic()
        return self._seen

    @property
    def num_cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def num_gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def share(self, stage: str) -> float:
        """GPUs for a worker of a stage; `auto` is 1 if the cluster has GPUs, else 0."""
        share = getattr(self._resources, FIELDS[stage][1])
        return min(1.0, self.num_gpus) if share == "auto" else float(share)

    def fitting(self, gpus: float) -> int:
        """Number of workers with that GPU share that fit on the nodes at the same time."""
        return sum(_fitting(node, self._resources.cpus_per_worker, gpus) for node in self.nodes)

    def require(
        self, stages: Sequence[str], should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait up to `resources.wait_for_nodes_s` until a worker of each stage fits on a node.

        Raises ClusterError with the request and the available resources. Returns early after a
        stop request.
        """
        deadline = time.monotonic() + self._resources.wait_for_nodes_s
        logged = False
        while problems := self.problems(stages):
            problem = "; ".join(problems[0])
            if should_stop():
                return
            if time.monotonic() >= deadline:
                waited = self._resources.wait_for_nodes_s
                after = f" after waiting {waited:g} s" if waited else ""
                raise ClusterError(f"{problem}{after}")
            if not logged:
                log.info("waiting up to %g s: %s", deadline - time.monotonic(), problem)
                logged = True
            time.sleep(min(LOOK_S, 0.5))

    def problems(self, stages: Iterable[str]) -> list[tuple[str, str]]:
        """Requests of stages that no node can satisfy, without duplicates, each with its remedy."""
        found = [problem for stage in stages if (problem := self._problem(stage))]
        return list(dict.fromkeys(found))

    def pool_sizes(self, stages: Sequence[str], num_items: int) -> list[int]:
        """Workers of each stage that run at once: the spec's number, or for `auto` all that fit."""
        wanted = [getattr(self._resources, FIELDS[stage][0]) for stage in stages]
        slots = self.fitting(max(self.share(stage) for stage in stages))
        scorers = 0
        if "scores" in stages:
            scorers = max(1, slots // 4) if "completions" in stages else slots
        beside = slots if "scores" in stages and self.share("scores") else self.fitting(0.0)
        generators = min(slots, beside - scorers)
        fitting = {"scores": scorers, "completions": generators, "reference": slots}
        sizes = [
            fitting[stage] if num == "auto" else int(num)
            for stage, num in zip(stages, wanted, strict=True)
        ]
        return [max(1, min(size, num_items)) for size in sizes]

    def bundles(self, stages: Sequence[str], num_items: int) -> list[dict[str, float]]:
        """Resource bundles of all workers that the stages could use, for an autoscaler."""
        asked: list[dict[str, float]] = []
        for stage in stages:
            num_field, gpu_field = FIELDS[stage]
            num = getattr(self._resources, num_field) if num_field else 1
            share = getattr(self._resources, gpu_field)
            gpus = self.share(stage) if share == "auto" else float(share)
            bundle = {"CPU": float(self._resources.cpus_per_worker)}
            bundle |= {"GPU": gpus} if gpus else {}
            asked += [bundle] * min(num_items if num == "auto" else int(num), MAX_ASKED)
        return asked

    def _problem(self, stage: str) -> tuple[str, str] | None:
        """Why no worker of the stage fits on any node, and the remedy; None if one fits."""
        cpus, gpus = self._resources.cpus_per_worker, self.share(stage)
        if any(_fitting(node, cpus, gpus) for node in self.nodes):
            return None
        most_cpus = max((node.cpus for node in self.nodes), default=0.0)
        if most_cpus < cpus:
            return (
                f"resources.cpus_per_worker={cpus}, but {_has(self.num_cpus, most_cpus, 'CPUs')}",
                "lower it or attach to a larger cluster",
            )
        most_gpus = max((node.gpus for node in self.nodes), default=0.0)
        return (
            f"resources.{FIELDS[stage][1]}={gpus:g}, but {_has(self.num_gpus, most_gpus, 'GPUs')} "
            f"(with {cpus} CPUs to a worker)",
            "lower it or attach to a cluster with GPUs (--address)",
        )


class Demand:
    """Requests resources from the cluster's autoscaler for as long as stages run.

    Hosts are started only where they fit, so an autoscaler would not see their demand otherwise.
    Has no effect without an autoscaler.
    """

    def __init__(self, placement: Placement, *, enabled: bool) -> None:
        self._placement, self._enabled = placement, enabled

    @contextmanager
    def of(self, stages: Sequence[str], num_items: int) -> Iterator[None]:
        """Request the spec's number of workers; for `auto`, one per item."""
        if not self._enabled:
            yield
            return
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=self._placement.bundles(stages, num_items))
        try:
            yield
        finally:
            request_resources(bundles=[])


def _fitting(node: NodeSize, cpus: int, gpus: float) -> int:
    by_cpu = int(node.cpus // cpus)
    if not gpus:
        return by_cpu
    # a share of a GPU must fit on one card
    by_gpu = int(node.gpus) * int(1 / gpus + 1e-9) if gpus <= 1 else int(node.gpus // gpus)
    return min(by_cpu, by_gpu)


def _has(total: float, most: float, unit: str) -> str:
    if total == most:
        return f"the cluster has {total:g} {unit}"
    return f"no node has more than {most:g} of the cluster's {total:g} {unit}"


def ray_nodes(kept_off: AbstractSet[str] = frozenset()) -> list[NodeSize]:
    """Ray's current nodes, without those whose ids are in `kept_off`."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in kept_off]
    resources = [node["Resources"] for node in alive]
    return [
        NodeSize(has.get("CPU", 0.0), has.get("GPU", 0.0), has.get("memory", 0.0))
        for has in resources
    ]


def nodes_line(nodes: Sequence[NodeSize]) -> str:
    """The cluster's nodes as a phrase for an error message."""
    most = [f"{node.cpus:g} CPUs with {node.gpus:g} GPUs" for node in nodes if node.cpus]
    return f"the cluster has {len(most)} nodes ({', '.join(most) or 'none with a CPU'})"


def gpu_types() -> list[str]:
    """The types of GPU in the cluster, by Ray's names."""
    import ray

    prefix = "accelerator_type:"
    names = {name for name in ray.cluster_resources() if name.startswith(prefix)}
    return sorted(name.removeprefix(prefix) for name in names)
