"""Fixed shards over actors: at most one shard per actor in flight, lost shards are handed out again.

A shard runs through a chain of pools; it enters the next one the moment it leaves the one before.
Every shard is on storage before it moves on, so nothing is held in the driver.
"""

import logging
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from prefsweep.orchestrator.border import set_up_worker, stage_error
from prefsweep.orchestrator.stages import ShardStage, is_missing
from prefsweep.sweeps.errors import StageError

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Workers that one shard may take with it before the stage gives up."""


class ShardPool:
    """The actors of one stage and the shards that wait for them."""

    def __init__(
        self, stage: ShardStage, size: int, *, num_cpus: float, num_gpus: float, threads: int
    ) -> None:
        self.stage = stage
        self.waiting: deque[int] = deque()
        self.in_flight: dict[Any, tuple[int, Any]] = {}
        """Object reference -> (shard, actor)."""
        self._size, self._num_cpus, self._num_gpus = size, num_cpus, num_gpus
        self._threads = threads
        self._idle: list[Any] = []
        self._num_actors = 0

    def dispatch(self) -> None:
        """Give every idle actor a shard; actors are started when there is something to do."""
        while self.waiting and (self._idle or self._num_actors < self._size):
            actor = self._idle.pop() if self._idle else self._new_actor()
            shard = self.waiting.popleft()
            self.in_flight[actor.run.remote(shard)] = (shard, actor)

    def take(self, reference: Any, *, alive: bool) -> int:
        """The shard of a finished call; its actor is idle again, or gone."""
        shard, actor = self.in_flight.pop(reference)
        if alive:
            self._idle.append(actor)
        else:
            self._num_actors -= 1
        return shard

    def close(self) -> None:
        """End the actors, and with them their claim on CPUs and GPUs."""
        import ray

        for actor in [*self._idle, *(actor for _, actor in self.in_flight.values())]:
            ray.kill(actor)
        self._idle, self._num_actors = [], 0

    def _new_actor(self) -> Any:
        import ray

        self._num_actors += 1
        return ray.remote(num_cpus=self._num_cpus, num_gpus=self._num_gpus)(_ShardActor).remote(
            self.stage, self._threads
        )


def run_pools(pools: Sequence[ShardPool], num_shards: int) -> None:
    """Send shards 0 to num_shards - 1 through the pools, skipping what is in the store.

    Raises what a worker raised, or StageError for a shard that took `MAX_DEATHS` workers with it.
    """
    for shard in range(num_shards):
        _enter(pools, 0, shard)
    try:
        _drain(pools)
    finally:
        for pool in pools:
            pool.close()


def _drain(pools: Sequence[ShardPool]) -> None:
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    deaths: Counter[tuple[str, int]] = Counter()
    while any(pool.waiting or pool.in_flight for pool in pools):
        for position, pool in enumerate(pools):
            pool.dispatch()
            if position == 0 and not pool.waiting and not pool.in_flight:
                pool.close()  # frees its CPUs for the pools behind it
        owners = {reference: i for i, pool in enumerate(pools) for reference in pool.in_flight}
        ready, _ = ray.wait(list(owners), num_returns=1)
        position = owners[ready[0]]
        pool = pools[position]
        try:
            ray.get(ready[0])
        except RayTaskError as error:
            raise stage_error(pool.stage.name, error) from error
        except RayActorError as error:
            shard = pool.take(ready[0], alive=False)
            deaths[pool.stage.name, shard] += 1
            _requeue(pool, shard, deaths[pool.stage.name, shard], error)
        else:
            shard = pool.take(ready[0], alive=True)
            _enter(pools, position + 1, shard)


def _enter(pools: Sequence[ShardPool], position: int, shard: int) -> None:
    """Queue a shard at the first pool from `position` that has not done it."""
    for pool in pools[position:]:
        if is_missing(pool.stage, shard):
            pool.waiting.append(shard)
            return


def _requeue(pool: ShardPool, shard: int, num_deaths: int, error: Exception) -> None:
    if num_deaths >= MAX_DEATHS:
        raise StageError(
            f"{pool.stage.name}: shard {shard} ended {num_deaths} workers; the last one: {error}"
        ) from error
    log.warning(
        "%s: a worker died on shard %d; the shard is handed out again", pool.stage.name, shard
    )
    pool.waiting.appendleft(shard)


class _ShardActor:
    """Runs one stage for shard after shard; the model is loaded at the first one."""

    def __init__(self, stage: ShardStage, threads: int) -> None:
        self._stage, self._threads = stage, threads
        self._worker: Any = None

    def run(self, shard: int) -> None:
        set_up_worker(self._threads)
        if self._worker is None:
            self._worker = self._stage.load()
        self._stage.run(self._worker, shard)
