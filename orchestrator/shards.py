"""Work over hosts: shards through a chain of stages, and tasks side by side.

A host has one item in flight; an item whose host dies is handed out again. A shard enters the next
stage the moment it leaves the one before, and is on storage before it moves on, so the driver holds
nothing but indices.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefsweep.orchestrator.border import stage_error
from prefsweep.orchestrator.hosts import Host, Hosts
from prefsweep.orchestrator.stages import ShardStage, Task, is_missing
from prefsweep.orchestrator.stopping import POLL_S, polled_stop
from prefsweep.sweeps.errors import StageError

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Hosts that one item may take with it before the stage gives up."""


@dataclass
class Pool:
    """The items that wait for a stage, and the hosts that work on it."""

    name: str
    start: Callable[[Host, Any], Any]
    """Starts an item on a host; gives a Ray reference."""
    size: int
    """Hosts to use at most."""
    num_gpus: float
    waiting: deque[Any] = field(default_factory=deque[Any])
    idle: list[Host] = field(default_factory=list[Host])
    in_flight: dict[Any, tuple[Any, Host]] = field(default_factory=dict[Any, tuple[Any, Host]])
    """Reference -> (item, host)."""
    deaths: Counter[Any] = field(default_factory=Counter[Any])

    def dispatch(self, hosts: Hosts) -> None:
        """Give items to idle hosts, and lease more up to `size` while there are items."""
        while self.waiting and (self.idle or len(self.in_flight) < self.size):
            host = self.idle.pop() if self.idle else hosts.lease(self.num_gpus)
            item = self.waiting.popleft()
            self.in_flight[self.start(host, item)] = (item, host)

    def release(self, hosts: Hosts) -> None:
        """Give back hosts that have nothing to do."""
        for host in self.idle:
            hosts.give_back(host)
        self.idle = []


def run_tasks(tasks: Sequence[Task], hosts: Hosts, num_gpus: dict[str, float]) -> None:
    """Run tasks side by side. Raises what the first failing one raised."""
    pools = [
        Pool(task.name, lambda host, item: host.actor.run_task.remote(item), 1, num_gpus[task.name])
        for task in tasks
    ]
    for pool, task in zip(pools, tasks, strict=True):
        pool.waiting.append(task)
    _drain(pools, hosts, lambda position, item: None)


def run_shards(pools: Sequence[Pool], stages: Sequence[ShardStage], num: int, hosts: Hosts) -> None:
    """Send shards 0 to num - 1 through the stages, skipping what is in the store.

    Where the sweep is asked to stop, shards in flight are finished and no more are handed out.
    Raises what a worker raised, or StageError for a shard that took MAX_DEATHS hosts with it.
    """

    def enter(position: int, shard: int) -> None:
        for pool, stage in zip(pools[position:], stages[position:], strict=True):
            if is_missing(stage, shard):
                pool.waiting.append(shard)
                return

    for shard in range(num):
        enter(0, shard)
    sweep = stages[0].sweep
    _drain(
        pools,
        hosts,
        lambda position, shard: enter(position + 1, shard),
        polled_stop(sweep.store, sweep.spec.name),
    )


def stage_pool(stage: ShardStage, size: int, num_gpus: float) -> Pool:
    """The pool of a sharded stage."""
    import ray

    shared = ray.put(stage)  # sent once, not with every shard
    return Pool(
        stage.name,
        lambda host, index: host.actor.run_shard.remote(shared, index),
        size,
        num_gpus,
    )


def _drain(
    pools: Sequence[Pool],
    hosts: Hosts,
    done: Callable[[int, Any], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Work until no pool has anything left; `done(position, item)` may queue more."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    while any(pool.waiting or pool.in_flight for pool in pools):
        for pool in pools:
            if should_stop():
                pool.waiting.clear()
            pool.dispatch(hosts)
            if not pool.waiting:
                pool.release(hosts)
        owners = {reference: i for i, pool in enumerate(pools) for reference in pool.in_flight}
        ready, _ = ray.wait(list(owners), num_returns=1, timeout=POLL_S) if owners else ([], [])
        if not ready:
            continue
        position = owners[ready[0]]
        pool = pools[position]
        item, host = pool.in_flight.pop(ready[0])
        try:
            ray.get(ready[0])
        except RayTaskError as error:
            raise stage_error(pool.name, error) from error
        except RayActorError as error:
            hosts.lost(host)
            _requeue(pool, item, error)
        else:
            pool.idle.append(host)
            done(position, item)
    for pool in pools:
        pool.release(hosts)


def _requeue(pool: Pool, item: Any, error: Exception) -> None:
    label = f"shard {item}" if isinstance(item, int) else "it"
    pool.deaths[item] += 1
    if pool.deaths[item] >= MAX_DEATHS:
        raise StageError(
            f"{pool.name}: {label} ended {MAX_DEATHS} workers; the last one: {error}"
        ) from error
    log.warning("%s: a worker died; %s is handed out again", pool.name, label)
    pool.waiting.appendleft(item)
