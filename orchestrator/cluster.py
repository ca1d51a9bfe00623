"""Where work runs. A Cluster runs tasks once, stages over shards, and trials.

RayCluster uses a local or remote Ray; InlineCluster runs everything in this process, for debugging
and tests. Both give the same results: no result depends on who computed it.
"""

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from prefsweep.orchestrator.border import set_up_worker, stage_error
from prefsweep.orchestrator.shards import ShardPool, run_pools
from prefsweep.orchestrator.stages import ShardStage, Task, is_missing
from prefsweep.orchestrator.sweep import Sweep, Trial
from prefsweep.orchestrator.trials import run_trial
from prefsweep.sweeps.errors import ClusterError
from prefsweep.sweeps.spec import ResourcesSpec

if TYPE_CHECKING:
    from types import ModuleType

log = logging.getLogger(__name__)

GPU_STAGES = frozenset({"policy", "reward", "untrained"})
"""Tasks that train or run a model."""

WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
}
FORWARDED_ENV = ("HF_HUB_OFFLINE", "HF_HOME", "HF_ENDPOINT", "PYTHONPATH")


class Cluster(Protocol):
    """What the pipeline asks of the place where work runs."""

    def run_tasks(self, tasks: Sequence[Task]) -> None:
        """Run tasks side by side; raises what the first of them raised."""
        ...

    def run_shards(self, stages: Sequence[ShardStage], num_shards: int) -> None:
        """Send every shard through the stages in order, each as soon as the one before is done."""
        ...

    def run_trials(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        """Run trials; their outcome is in the store."""
        ...

    def close(self) -> None:
        """Give back what was taken."""
        ...


class InlineCluster:
    """Everything in this process, one after the other. No Ray."""

    def __init__(self, resources: ResourcesSpec) -> None:
        self._threads = resources.threads_per_worker

    def run_tasks(self, tasks: Sequence[Task]) -> None:
        set_up_worker(self._threads)
        for task in tasks:
            task.run()

    def run_shards(self, stages: Sequence[ShardStage], num_shards: int) -> None:
        set_up_worker(self._threads)
        workers: dict[str, Any] = {}
        for index in range(num_shards):
            for stage in stages:
                if is_missing(stage, index):
                    if stage.name not in workers:
                        workers[stage.name] = stage.load()
                    stage.run(workers[stage.name], index)

    def run_trials(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        set_up_worker(self._threads)
        for trial in trials:
            run_trial(sweep, trial)

    def close(self) -> None:
        pass


class RayCluster:
    """A local Ray started for this run, or the cluster at `address`."""

    def __init__(
        self, resources: ResourcesSpec, address: str | None = None, num_cpus: int | None = None
    ) -> None:
        self._resources = resources
        self._ray = _start_ray(resources, address, num_cpus)
        totals = self._ray.cluster_resources()
        self.num_cpus, self.num_gpus = float(totals.get("CPU", 0)), float(totals.get("GPU", 0))
        if self.num_cpus < resources.cpus_per_worker:
            raise ClusterError(
                f"resources.cpus_per_worker={resources.cpus_per_worker}, but the cluster has "
                f"{self.num_cpus:g} CPUs; lower it or attach to a larger cluster"
            )

    def run_tasks(self, tasks: Sequence[Task]) -> None:
        ray, names = self._ray, {}
        for task in tasks:
            gpus = self._gpus("auto") if task.name in GPU_STAGES else 0
            remote = ray.remote(
                num_cpus=self._resources.cpus_per_worker, num_gpus=gpus, max_retries=3
            )(_run_task)
            names[remote.remote(task, self._resources.threads_per_worker)] = task.name
        for reference, name in names.items():
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                raise stage_error(name, error) from error

    def run_shards(self, stages: Sequence[ShardStage], num_shards: int) -> None:
        sizes = self._pool_sizes([stage.name for stage in stages], num_shards)
        pools = [
            ShardPool(
                stage,
                size,
                num_cpus=self._resources.cpus_per_worker,
                num_gpus=self._gpus(self._share(stage.name)),
                threads=self._resources.threads_per_worker,
            )
            for stage, size in zip(stages, sizes, strict=True)
        ]
        run_pools(pools, num_shards)

    def run_trials(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        from prefsweep.orchestrator.tuning import tune_trials

        tune_trials(sweep, trials, self._gpus(self._resources.gpus_per_trial))

    def close(self) -> None:
        self._ray.shutdown()

    def _gpus(self, share: float | str) -> float:
        """`auto` is one GPU where there are any."""
        gpus = float(share) if share != "auto" else min(1.0, self.num_gpus)
        if gpus > self.num_gpus:
            raise ClusterError(
                f"{gpus:g} GPUs are asked for (resources.gpus_per_*), but the cluster has "
                f"{self.num_gpus:g}; lower the share or attach to a cluster with GPUs (--address)"
            )
        return gpus

    def _share(self, stage: str) -> float | str:
        resources = self._resources
        return {
            "completions": resources.gpus_per_generator,
            "scores": resources.gpus_per_scorer,
            "reference": resources.gpus_per_reference_worker,
        }[stage]

    def _pool_sizes(self, stages: Sequence[str], num_shards: int) -> list[int]:
        """Workers of each stage: as the spec says, or for `auto` as many as fit side by side."""
        resources = self._resources
        wanted = {
            "completions": resources.num_generators,
            "scores": resources.num_scorers,
            "reference": resources.num_reference_workers,
        }
        slots = int(self.num_cpus // resources.cpus_per_worker)
        if self.num_gpus:
            share = max(self._gpus(self._share(stage)) for stage in stages)
            slots = min(slots, int(self.num_gpus / share)) if share else slots
        scorers = max(1, slots // 4) if "scores" in stages else 0
        fitting = {"scores": scorers, "completions": slots - scorers, "reference": slots}
        sizes = [
            fitting[stage] if wanted[stage] == "auto" else int(wanted[stage]) for stage in stages
        ]
        return [max(1, min(size, num_shards)) for size in sizes]


def _run_task(task: Task, threads: int) -> None:
    set_up_worker(threads)
    task.run()


def _start_ray(resources: ResourcesSpec, address: str | None, num_cpus: int | None) -> "ModuleType":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is ours to handle
    import ray

    environment = {**WORKER_ENV, "OMP_NUM_THREADS": str(resources.threads_per_worker)}
    environment |= {name: os.environ[name] for name in FORWARDED_ENV if name in os.environ}
    try:
        ray.init(
            address=address or os.environ.get("RAY_ADDRESS") or "local",
            num_cpus=num_cpus,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": environment},
            ignore_reinit_error=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"Ray at {address or 'this machine'}: {error}") from None
    return ray
