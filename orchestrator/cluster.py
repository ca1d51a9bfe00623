"""Where work runs. A Cluster runs tasks once, stages over shards, and trials.

RayCluster uses a local or remote Ray; InlineCluster runs everything in this process, for debugging
and tests. Both give the same results: no result depends on who computed it.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from prefsweep.orchestrator.border import set_up_worker
from prefsweep.orchestrator.hosts import Hosts
from prefsweep.orchestrator.kept import Kept
from prefsweep.orchestrator.sharded import ShardStage, is_missing, run_shard
from prefsweep.orchestrator.shards import run_shards, run_tasks, stage_pool
from prefsweep.orchestrator.stages import Task
from prefsweep.orchestrator.stopping import stop_requested
from prefsweep.orchestrator.sweep import Sweep, Trial
from prefsweep.orchestrator.trials import run_trial
from prefsweep.sweeps.errors import ClusterError
from prefsweep.sweeps.spec import ResourcesSpec

if TYPE_CHECKING:
    from types import ModuleType

log = logging.getLogger(__name__)

GPU_TASKS = frozenset({"policy", "reward", "untrained"})
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

    def run_shards(self, stages: Sequence[ShardStage], num_shards: int) -> dict[str, list[str]]:
        """Send every shard through the stages in order, each as soon as the one before is done.

        Returns prompts that end whoever takes them, by stage; their shards are not made.
        """
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

    def run_shards(self, stages: Sequence[ShardStage], num_shards: int) -> dict[str, list[str]]:
        set_up_worker(self._threads)
        workers: dict[str, Any] = {}
        sweep = stages[0].sweep
        for index in range(num_shards):
            for stage in stages:
                if stop_requested(sweep.store, sweep.spec.name):
                    return {}
                if is_missing(stage, index):
                    if stage.name not in workers:
                        workers[stage.name] = stage.load()
                    run_shard(stage, workers[stage.name], index)
        return {}

    def run_trials(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        set_up_worker(self._threads)
        kept = Kept(sweep)
        for trial in trials:
            if stop_requested(sweep.store, sweep.spec.name):
                return
            run_trial(kept, trial)

    def close(self) -> None:
        pass


class RayCluster:
    """A local Ray started for this run, or the cluster at `address`."""

    def __init__(
        self, resources: ResourcesSpec, address: str | None = None, num_cpus: int | None = None
    ) -> None:
        self._resources = resources
        self._ray = _start_ray(resources, address, num_cpus)
        # by the time there are trials, Tune (seconds to import) is there
        threading.Thread(target=import_module, args=["ray.tune"], daemon=True).start()
        totals = self._ray.cluster_resources()
        self.num_cpus, self.num_gpus = float(totals.get("CPU", 0)), float(totals.get("GPU", 0))
        if self.num_cpus < resources.cpus_per_worker:
            raise ClusterError(
                f"resources.cpus_per_worker={resources.cpus_per_worker}, but the cluster has "
                f"{self.num_cpus:g} CPUs; lower it or attach to a larger cluster"
            )
        for stage in ("completions", "scores", "reference"):
            self._gpus(*self._share(stage))
        self._gpus(resources.gpus_per_trial, "gpus_per_trial")
        self._hosts = Hosts(
            num_cpus=resources.cpus_per_worker,
            cluster_cpus=self.num_cpus,
            threads=resources.threads_per_worker,
        )

    def run_tasks(self, tasks: Sequence[Task]) -> None:
        gpus = self._gpus("auto", "")
        run_tasks(tasks, self._hosts, {t.name: gpus if t.name in GPU_TASKS else 0.0 for t in tasks})

    def run_shards(self, stages: Sequence[ShardStage], num_shards: int) -> dict[str, list[str]]:
        sizes = self._pool_sizes([stage.name for stage in stages], num_shards)
        pools = [
            stage_pool(stage, size, self._gpus(*self._share(stage.name)))
            for stage, size in zip(stages, sizes, strict=True)
        ]
        return run_shards(pools, stages, num_shards, self._hosts)

    def run_trials(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        from prefsweep.orchestrator.tuning import tune_trials

        self._hosts.end_idle()
        tune_trials(sweep, trials, self._gpus(self._resources.gpus_per_trial, "gpus_per_trial"))

    def close(self) -> None:
        self._ray.shutdown()

    def _gpus(self, share: float | str, field: str) -> float:
        """`auto` is one GPU where there are any."""
        gpus = min(1.0, self.num_gpus) if share == "auto" else float(share)
        if gpus > self.num_gpus:
            raise ClusterError(
                f"resources.{field}={gpus:g}, but the cluster has {self.num_gpus:g} GPUs; "
                "lower it or attach to a cluster with GPUs (--address)"
            )
        return gpus

    def _share(self, stage: str) -> tuple[float | str, str]:
        """The GPU share of a sharded stage, and the field that gives it."""
        field = {
            "completions": "gpus_per_generator",
            "scores": "gpus_per_scorer",
            "reference": "gpus_per_reference_worker",
        }[stage]
        return getattr(self._resources, field), field

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
            share = max(self._gpus(*self._share(stage)) for stage in stages)
            slots = min(slots, int(self.num_gpus / share)) if share else slots
        scorers = max(1, slots // 4) if "scores" in stages else 0
        fitting = {"scores": scorers, "completions": slots - scorers, "reference": slots}
        sizes = [
            fitting[stage] if wanted[stage] == "auto" else int(wanted[stage]) for stage in stages
        ]
        return [max(1, min(size, num_shards)) for size in sizes]


def _start_ray(resources: ResourcesSpec, address: str | None, num_cpus: int | None) -> "ModuleType":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is ours to handle
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    environment = {**WORKER_ENV, "OMP_NUM_THREADS": str(resources.threads_per_worker)}
    environment |= {name: os.environ[name] for name in FORWARDED_ENV if name in os.environ}
    try:
        # a Ray of our own inherits it: its workers start a second sooner than with a runtime_env
        with _environment({} if address else environment):
            ray.init(
                address=address or "local",
                num_cpus=num_cpus,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": environment} if address else None,
                ignore_reinit_error=False,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"Ray at {address or 'this machine'}: {error}") from None
    return ray


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes started in the block inherit."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)
