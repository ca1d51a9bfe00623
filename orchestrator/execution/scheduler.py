"""Work over hosts: shards through a chain of stages, and tasks side by side.

A host has one item in flight; an item whose host dies is handed out again. A shard enters the next
stage the moment it leaves the one before, and is on storage before it moves on, so the driver holds
nothing but indices. What goes on killing is tried in parts, to find the prompts that do it.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefsweep.orchestrator.execution.bisection import Bisection
from prefsweep.orchestrator.execution.hosts import Host, Hosts
from prefsweep.orchestrator.state.stop import POLL_S, polled_stop
from prefsweep.orchestrator.tasks.shards import Searchable, ShardStage, is_missing
from prefsweep.orchestrator.tasks.stages import Task
from prefsweep.sweeps.errors import StageError, SweepError

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Hosts that one item may take with it before it is looked into, or the stage gives up."""


@dataclass(frozen=True)
class Part:
    """Some prompts of an item, tried to see whether they end their worker; nothing is published.

    Without any, the worker only loads what it needs.
    """

    of: Any
    prompt_ids: tuple[str, ...]


Item = Any
"""What a host works on: a task's name, the index of a shard, or a Part."""


@dataclass
class Pool:
    """The items that wait for a stage, and the hosts that work on it."""

    name: str
    start: Callable[[Host, Item], Any]
    """Starts an item on a host; gives a Ray reference."""
    size: Callable[[], int]
    """Hosts to use at most, now: a cluster may have grown."""
    num_gpus: float
    waiting: deque[Item] = field(default_factory=deque[Any])
    idle: list[Host] = field(default_factory=list[Host])
    in_flight: dict[Any, tuple[Item, Host]] = field(default_factory=dict[Any, tuple[Any, Host]])
    """Reference -> (item, host)."""
    deaths: Counter[Item] = field(default_factory=Counter[Any])

    def dispatch(self, hosts: Hosts) -> None:
        """Give items to idle hosts, and lease more up to `size` while there are items and room."""
        while self.waiting and (self.idle or self._may_lease(hosts)):
            host = self.idle.pop() if self.idle else hosts.lease(self.num_gpus)
            item = self.waiting.popleft()
            self.in_flight[self.start(host, item)] = (item, host)

    def _may_lease(self, hosts: Hosts) -> bool:
        return len(self.in_flight) < self.size() and hosts.has_room(self.num_gpus)

    def stop(self, hosts: Hosts) -> None:
        """Hand out nothing more, and wait for no host that has no place yet."""
        self.waiting.clear()
        for reference, (_, host) in list(self.in_flight.items()):
            if not hosts.is_up(host):
                del self.in_flight[reference]
                hosts.lost(host)

    def release(self, hosts: Hosts) -> None:
        """Give back hosts that have nothing to do."""
        for host in self.idle:
            hosts.give_back(host)
        self.idle = []

    def abandon(self, hosts: Hosts) -> None:
        """End the hosts that are in the middle of something."""
        for _, host in self.in_flight.values():
            hosts.lost(host)
        self.in_flight = {}

    def again(self, item: Item, error: Exception) -> None:
        """Hand out an item again whose host died. Raises StageError if too many did."""
        label = _label(item)
        self.deaths[item] += 1
        if self.deaths[item] >= MAX_DEATHS:
            raise StageError(
                f"{self.name}: {label} ended {MAX_DEATHS} workers; the last one: {error}"
            ) from error
        log.warning("%s: a worker died; %s is handed out again", self.name, label)
        self.waiting.appendleft(item)


class Search:
    """The search for prompts that end whoever takes them; `killers` are those found, by stage."""

    def __init__(self, pools: Sequence[Pool], works: Sequence[Task | ShardStage]) -> None:
        self._pools, self._works = pools, works
        self._open: dict[tuple[int, Item], Bisection] = {}
        self._searched: set[tuple[int, Item]] = set()
        self.killers: dict[str, list[str]] = {}

    def survived(self, position: int, part: Part) -> None:
        """A part is innocent."""
        self._open[position, part.of].survived(part.prompt_ids)
        self._go_on(position, part.of)

    def died(self, position: int, item: Item, error: Exception) -> None:
        """An item is handed out again, or looked into; of a part, smaller ones are tried.

        Raises StageError if workers end while they load.
        """
        pool, work = self._pools[position], self._works[position]
        if isinstance(item, Part):
            bisection = self._open[position, item.of]
            bisection.died(item.prompt_ids)
            if bisection.ends_at_loading:
                assert isinstance(work, Searchable)
                raise StageError(_ends_at_loading(work, error)) from error
            self._go_on(position, item.of)
        elif (
            pool.deaths[item] + 1 < MAX_DEATHS
            or (position, item) in self._searched
            or not isinstance(work, Searchable)
        ):
            pool.again(item, error)
        else:
            log.warning(
                "%s: %s ended %d workers; looking for the prompts that do it",
                pool.name,
                _label(item),
                MAX_DEATHS,
            )
            self._open[position, item] = Bisection(work.prompt_ids(item))
            self._go_on(position, item)

    def _go_on(self, position: int, item: Item) -> None:
        """Queue what is to be tried next of an item; at the end, note the guilty."""
        pool, bisection = self._pools[position], self._open[position, item]
        pool.waiting.extendleft(Part(item, group) for group in bisection.take_waiting())
        if not bisection.is_over:
            return
        if bisection.guilty:
            self.killers.setdefault(pool.name, []).extend(bisection.guilty)
        else:  # no prompt does it alone: once more, and then the stage gives up
            self._searched.add((position, item))
            pool.deaths[item] = 0
            pool.waiting.append(item)


def _ends_at_loading(work: Searchable, error: Exception) -> str:
    return (
        f"{work.name}: its workers end while they load {work.loads}, before they have any prompt; "
        f"the last one: {error}. Look whether it fits the memory of the machine (`dmesg` says what "
        "the kernel killed) and loads outside of prefsweep; then run the same command again"
    )


class TaskFlow:
    """Tasks: each is done once, and that is all."""

    def __init__(self, pools: Sequence[Pool], tasks: Sequence[Task]) -> None:
        self.search = Search(pools, tasks)

    def done(self, position: int, item: Item) -> None:
        """Nothing follows on a task."""
        if isinstance(item, Part):
            self.search.survived(position, item)


class ShardFlow:
    """Shards on their way through the stages; those with prompts that kill are left unfinished."""

    def __init__(self, pools: Sequence[Pool], stages: Sequence[ShardStage]) -> None:
        self._pools, self._stages = pools, stages
        self.search = Search(pools, stages)

    def enter(self, position: int, shard: int) -> None:
        """Queue a shard at the first stage from `position` on that has not made it yet."""
        for pool, stage in zip(self._pools[position:], self._stages[position:], strict=True):
            if is_missing(stage, shard):
                pool.waiting.append(shard)
                return

    def done(self, position: int, item: Item) -> None:
        """A shard moves on."""
        if isinstance(item, Part):
            self.search.survived(position, item)
        else:
            self.enter(position + 1, item)


def run_tasks(
    tasks: Sequence[Task],
    hosts: Hosts,
    num_gpus: Mapping[str, float],
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, list[str]]:
    """Run tasks side by side. Raises what the first failing one raised.

    Returns the prompts that end whoever takes them, by task; such a task is left undone, and so is
    one that waits for a place when it is to stop.
    """
    pools = [_task_pool(task, num_gpus[task.name]) for task in tasks]
    flow = TaskFlow(pools, tasks)
    _drain(pools, hosts, flow, should_stop)
    return flow.search.killers


def run_shards(
    pools: Sequence[Pool], stages: Sequence[ShardStage], num: int, hosts: Hosts
) -> dict[str, list[str]]:
    """Send shards 0 to num - 1 through the stages, skipping what is in the store.

    Returns the prompts that end whoever takes them, by stage; all other shards are finished. Where
    the sweep is asked to stop, shards in flight are finished and no more are handed out. Raises
    what a worker raised, or StageError for a shard that ends workers though no prompt of it does.
    """
    flow, sweep = ShardFlow(pools, stages), stages[0].sweep
    for shard in range(num):
        flow.enter(0, shard)
    _drain(pools, hosts, flow, polled_stop(sweep.store, sweep.spec.name))
    return flow.search.killers


def stage_pool(stage: ShardStage, size: Callable[[], int], num_gpus: float) -> Pool:
    """The pool of a sharded stage."""
    import ray

    shared = ray.put(stage)  # sent once, not with every shard

    def start(host: Host, item: Item) -> Any:
        if isinstance(item, Part):
            return host.actor.try_prompts.remote(shared, item.of, item.prompt_ids)
        return host.actor.run_shard.remote(shared, item)

    return Pool(stage.name, start, size, num_gpus)


def _label(item: Item) -> str:
    return f"shard {item}" if isinstance(item, int) else "it"


def _task_pool(task: Task, num_gpus: float) -> Pool:
    def start(host: Host, item: Item) -> Any:
        if isinstance(item, Part):
            return host.actor.try_prompts.remote(task, item.of, item.prompt_ids)
        return host.actor.run_task.remote(task)

    return Pool(task.name, start, lambda: 1, num_gpus, deque([task.name]))


def _drain(
    pools: Sequence[Pool],
    hosts: Hosts,
    flow: TaskFlow | ShardFlow,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Work until no pool has anything left; the flow may queue more."""
    try:
        while any(pool.waiting or pool.in_flight for pool in pools):
            for pool in pools:
                if should_stop():
                    pool.stop(hosts)
                pool.dispatch(hosts)
                if not pool.waiting:
                    pool.release(hosts)
            hosts.check()
            hosts.make_room()
            _take_one(pools, hosts, flow)
    finally:
        for pool in pools:
            pool.abandon(hosts)
            pool.release(hosts)


def _take_one(pools: Sequence[Pool], hosts: Hosts, flow: TaskFlow | ShardFlow) -> None:
    """Wait, not for ever, until something comes back from a host, and pass it on."""
    import ray
    from ray.exceptions import (
        NodeDiedError,
        OutOfMemoryError,
        RayActorError,
        RayTaskError,
        WorkerCrashedError,
    )

    owners = {reference: i for i, pool in enumerate(pools) for reference in pool.in_flight}
    ready, _ = ray.wait(list(owners), num_returns=1, timeout=POLL_S) if owners else ([], [])
    if not ready:
        return
    position = owners[ready[0]]
    pool = pools[position]
    item, host = pool.in_flight.pop(ready[0])
    try:
        ray.get(ready[0])
    except RayTaskError as error:
        if hosts.refused(host, error):
            pool.waiting.appendleft(item)
            return
        hosts.give_back(host)
        raise stage_error(pool.name, error) from error
    except (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError) as error:
        hosts.lost(host)
        flow.search.died(position, item, error)
    else:
        pool.idle.append(host)
        flow.done(position, item)


def stage_error(name: str, error: Exception) -> SweepError:
    """What a remote failure of a stage is to the user; our own errors come back as they are."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, SweepError):
        return cause
    if cause is not None:
        return StageError(f"{name} failed in a worker: {type(cause).__name__}: {cause}\n{error}")
    return StageError(f"{name}: its worker died ({type(error).__name__}: {error})")
