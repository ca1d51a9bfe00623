"""Who gets which share of a cluster: what fits on its nodes now, and whether something fits at all.

Read anew whenever it is asked, because nodes come and go. It starts nothing.
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
"""How long what was seen of the cluster is good for."""
MAX_ASKED = 256
"""Workers of a stage that an autoscaler is asked for at most; its own limits come on top."""
FIELDS = {
    "completions": ("num_generators", "gpus_per_generator"),
    "scores": ("num_scorers", "gpus_per_scorer"),
    "reference": ("num_reference_workers", "gpus_per_reference_worker"),
    "trials": ("", "gpus_per_trial"),
}
"""Stage -> the fields of the resources section that give its workers and the GPU share of each."""


@dataclass(frozen=True)
class NodeSize:
    """What a node has to give in all."""

    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    """Bytes."""


def resources_of(spec: SweepSpec) -> ResourcesSpec:
    """The spec's resources, where `auto` gives no GPU to scorers that load no model."""
    resources, reward = spec.resources, spec.reward
    if resources.gpus_per_scorer != "auto" or reward is None or reward.type == "classifier":
        return resources
    return resources.model_copy(update={"gpus_per_scorer": 0.0})


class Placement:
    """The spec's resources on the nodes that `look` sees."""

    def __init__(self, resources: ResourcesSpec, look: Callable[[], Sequence[NodeSize]]) -> None:
        self._resources, self._look = resources, look
        self._seen: list[NodeSize] = []
        self._looked = -LOOK_S

    @property
    def nodes(self) -> list[NodeSize]:
        """The nodes, at most LOOK_S ago."""
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
        """GPUs of a worker of a stage; `auto` is one where there are any."""
        share = getattr(self._resources, FIELDS[stage][1])
        return min(1.0, self.num_gpus) if share == "auto" else float(share)

    def fitting(self, gpus: float) -> int:
        """Workers with that GPU share that fit on the nodes side by side."""
        return sum(_fitting(node, self._resources.cpus_per_worker, gpus) for node in self.nodes)

    def require(
        self, stages: Sequence[str], should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait as long as the spec says for a cluster on which a worker of each stage fits.

        Raises ClusterError with what was asked and what there is. Returns early if it should stop.
        """
        deadline = time.monotonic() + self._resources.wait_for_nodes_s
        told = False
        while problems := self.problems(stages):
            problem = "; ".join(problems[0])
            if should_stop():
                return
            if time.monotonic() >= deadline:
                waited = self._resources.wait_for_nodes_s
                after = f" after waiting {waited:g} s" if waited else ""
                raise ClusterError(f"{problem}{after}")
            if not told:
                log.info("waiting up to %g s: %s", deadline - time.monotonic(), problem)
                told = True
            time.sleep(min(LOOK_S, 0.5))

    def problems(self, stages: Iterable[str]) -> list[tuple[str, str]]:
        """What workers of stages ask for and no node has, each once, and what to do."""
        found = [problem for stage in stages if (problem := self._problem(stage))]
        return list(dict.fromkeys(found))

    def pool_sizes(self, stages: Sequence[str], num_items: int) -> list[int]:
        """Workers of stages that run at once: as the spec says, or for `auto` as many as fit."""
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
        """What the workers of stages would take, if there were room for all that can be used."""
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
        """Why no worker of the stage fits on any node, and what to do; None if one does."""
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
    """What stages could use, told to the cluster's autoscaler for as long as they run.

    Hosts are asked for only where they fit; an autoscaler that brings nodes for this makes them
    fit. Without one it has no effect.
    """

    def __init__(self, placement: Placement, *, told: bool) -> None:
        self._placement, self._told = placement, told

    @contextmanager
    def of(self, stages: Sequence[str], num_items: int) -> Iterator[None]:
        """Ask for as many workers as the spec gives, or for `auto` one for every item."""
        if not self._told:
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
    # a share lies on one card, whole cards are given whole
    by_gpu = int(node.gpus) * int(1 / gpus + 1e-9) if gpus <= 1 else int(node.gpus // gpus)
    return min(by_cpu, by_gpu)


def _has(total: float, most: float, unit: str) -> str:
    if total == most:
        return f"the cluster has {total:g} {unit}"
    return f"no node has more than {most:g} of the cluster's {total:g} {unit}"


def ray_nodes(kept_off: AbstractSet[str] = frozenset()) -> list[NodeSize]:
    """The nodes that Ray has now, without those whose ids are `kept_off`."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in kept_off]
    resources = [node["Resources"] for node in alive]
    return [
        NodeSize(has.get("CPU", 0.0), has.get("GPU", 0.0), has.get("memory", 0.0))
        for has in resources
    ]


def nodes_line(nodes: Sequence[NodeSize]) -> str:
    """What a cluster has, to be said in an error."""
    most = [f"{node.cpus:g} CPUs with {node.gpus:g} GPUs" for node in nodes if node.cpus]
    return f"the cluster has {len(most)} nodes ({', '.join(most) or 'none with a CPU'})"


def gpu_types() -> list[str]:
    """The kinds of GPU in the cluster, as Ray calls them."""
    import ray

    prefix = "accelerator_type:"
    names = {name for name in ray.cluster_resources() if name.startswith(prefix)}
    return sorted(name.removeprefix(prefix) for name in names)
