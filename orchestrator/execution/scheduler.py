"""Schedules work on hosts: shards through a chain of stages, and tasks in parallel.

A host works on one item at a time. If the host dies, the item is queued again. A shard enters the
next stage as soon as it leaves the one before; its records are in the store by then, so the driver
holds only indices. An item that keeps killing hosts is bisected to find the prompts responsible.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefsweep.orchestrator.execution.bisection import Bisection
from prefsweep.orchestrator.execution.hosts import Host, Hosts
from prefsweep.orchestrator.state.stop import POLL_S, polled_stop
from prefsweep.orchestrator.tasks.shards import BisectableTask, ShardStage, is_missing
from prefsweep.orchestrator.tasks.stages import Task
from prefsweep.sweeps.errors import StageError, SweepError

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Hosts that one item may kill before it is bisected, or the stage fails."""


@dataclass(frozen=True)
class PromptSubset:
    """Some prompts of an item, run to see whether they kill their worker; nothing is published.

    With no prompts, the worker only loads its model.
    """

    of: Any
    prompt_ids: tuple[str, ...]


Item = Any
"""What a host works on: a task's name, the index of a shard, or a PromptSubset."""


@dataclass
class Pool:
    """The items queued for a stage, and the hosts that work on it."""

    name: str
    start: Callable[[Host, Item], Any]
    """Starts an item on a host; returns a Ray reference."""
    size: Callable[[], int]
    """Largest number of hosts to use now; it changes when nodes join or leave."""
    num_gpus: float
    waiting: deque[Item] = field(default_factory=deque[Any])
    idle: list[Host] = field(default_factory=list[Host])
    in_flight: dict[Any, tuple[Item, Host]] = field(default_factory=dict[Any, tuple[Any, Host]])
    """Reference -> (item, host)."""
    deaths: Counter[Item] = field(default_factory=Counter[Any])

    def dispatch(self, hosts: Hosts) -> None:
        """Start items on idle hosts; lease more hosts, up to `size`, while the cluster has room."""
        while self.waiting and (self.idle or self._may_lease(hosts)):
            host = self.idle.pop() if self.idle else hosts.lease(self.num_gpus)
            item = self.waiting.popleft()
            self.in_flight[self.start(host, item)] = (item, host)

    def _may_lease(self, hosts: Hosts) -> bool:
        return len(self.in_flight) < self.size() and hosts.has_room(self.num_gpus)

    def stop(self, hosts: Hosts) -> None:
        """Start no more items, and give up hosts that Ray has not placed yet."""
        self.waiting.clear()
        for reference, (_, host) in list(self.in_flight.items()):
            if not hosts.is_up(host):
                del self.in_flight[reference]
                hosts.lost(host)

    def release(self, hosts: Hosts) -> None:
        """Return idle hosts."""
        for host in self.idle:
            hosts.give_back(host)
        self.idle = []

    def abandon(self, hosts: Hosts) -> None:
        """Kill the hosts that are working on an item."""
        for _, host in self.in_flight.values():
            hosts.lost(host)
        self.in_flight = {}

    def requeue(self, item: Item, error: Exception) -> None:
        """Queue an item again after its host died. Raises StageError after MAX_DEATHS deaths."""
        label = _label(item)
        self.deaths[item] += 1
        if self.deaths[item] >= MAX_DEATHS:
            raise StageError(
                f"{self.name}: {label} killed {MAX_DEATHS} workers; last error: {error}"
            ) from error
        log.warning("%s: a worker died; retrying %s", self.name, label)
        self.waiting.appendleft(item)


class KillerSearch:
    """Finds prompts that kill every worker that processes them, by bisection.

    `killers` maps a stage to the prompt ids found.
    """

    def __init__(self, pools: Sequence[Pool], works: Sequence[Task | ShardStage]) -> None:
        self._pools, self._works = pools, works
        self._open: dict[tuple[int, Item], Bisection] = {}
        self._searched: set[tuple[int, Item]] = set()
        self.killers: dict[str, list[str]] = {}

    def survived(self, position: int, part: PromptSubset) -> None:
        """A subset of prompts was processed without killing its worker."""
        self._open[position, part.of].survived(part.prompt_ids)
        self._queue_next(position, part.of)

    def died(self, position: int, item: Item, error: Exception) -> None:
        """Queue an item again, or bisect it; a subset is split further.

        Raises StageError if workers die while they load the model.
        """
        pool, work = self._pools[position], self._works[position]
        if isinstance(item, PromptSubset):
            bisection = self._open[position, item.of]
            bisection.died(item.prompt_ids)
            if bisection.ends_at_loading:
                assert isinstance(work, BisectableTask)
                raise StageError(_dies_while_loading(work, error)) from error
            self._queue_next(position, item.of)
        elif (
            pool.deaths[item] + 1 < MAX_DEATHS
            or (position, item) in self._searched
            or not isinstance(work, BisectableTask)
        ):
            pool.requeue(item, error)
        else:
            log.warning(
                "%s: %s killed %d workers; searching for the prompts responsible",
                pool.name,
                _label(item),
                MAX_DEATHS,
            )
            self._open[position, item] = Bisection(work.prompt_ids(item))
            self._queue_next(position, item)

    def _queue_next(self, position: int, item: Item) -> None:
        """Queue the subsets to run next; when the search is over, record the prompts found."""
        pool, bisection = self._pools[position], self._open[position, item]
        pool.waiting.extendleft(PromptSubset(item, group) for group in bisection.take_waiting())
        if not bisection.is_over:
            return
        if bisection.guilty:
            self.killers.setdefault(pool.name, []).extend(bisection.guilty)
        else:  # no single prompt kills a worker: run the item once more, then the stage fails
            self._searched.add((position, item))
            pool.deaths[item] = 0
            pool.waiting.append(item)


def _dies_while_loading(work: BisectableTask, error: Exception) -> str:
    return (
        f"{work.name}: its workers die while they load {work.loads}, before they process any "
        f"prompt; last error: {error}. Check that it fits into the machine's memory (`dmesg` shows "
        "what the kernel killed) and that it loads outside prefsweep; then run the same command "
        "again"
    )


class TaskFlow:
    """The flow of tasks: each runs once."""

    def __init__(self, pools: Sequence[Pool], tasks: Sequence[Task]) -> None:
        self.search = KillerSearch(pools, tasks)

    def done(self, position: int, item: Item) -> None:
        """Do nothing: no stage follows a task."""
        if isinstance(item, PromptSubset):
            self.search.survived(position, item)


class ShardFlow:
    """The flow of shards through stages; shards with prompts that kill workers stay unfinished."""

    def __init__(self, pools: Sequence[Pool], stages: Sequence[ShardStage]) -> None:
        self._pools, self._stages = pools, stages
        self.search = KillerSearch(pools, stages)

    def enter(self, position: int, shard: int) -> None:
        """Queue a shard at the first stage, from `position` on, that has not published it yet."""
        for pool, stage in zip(self._pools[position:], self._stages[position:], strict=True):
            if is_missing(stage, shard):
                pool.waiting.append(shard)
                return

    def done(self, position: int, item: Item) -> None:
        """Queue a finished shard at the next stage."""
        if isinstance(item, PromptSubset):
            self.search.survived(position, item)
        else:
            self.enter(position + 1, item)


def run_tasks(
    tasks: Sequence[Task],
    hosts: Hosts,
    num_gpus: Mapping[str, float],
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, list[str]]:
    """Run tasks in parallel. Raises the error of the first task that fails.

    Returns the prompts that kill every worker that processes them, by task. Such a task stays
    unfinished, and so does one that Ray has not placed yet when a stop is requested.
    """
    pools = [_task_pool(task, num_gpus[task.name]) for task in tasks]
    flow = TaskFlow(pools, tasks)
    _drain(pools, hosts, flow, should_stop)
    return flow.search.killers


def run_shards(
    pools: Sequence[Pool], stages: Sequence[ShardStage], num: int, hosts: Hosts
) -> dict[str, list[str]]:
    """Send shards 0 to num - 1 through the stages, skipping those that are in the store.

    Returns the prompts that kill every worker that processes them, by stage; all other shards are
    finished. After a stop request, running shards finish and no more are started. Raises the error
    of a worker, or StageError for a shard that kills workers although none of its prompts does.
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
        if isinstance(item, PromptSubset):
            return host.actor.try_prompts.remote(shared, item.of, item.prompt_ids)
        return host.actor.run_shard.remote(shared, item)

    return Pool(stage.name, start, size, num_gpus)


def _label(item: Item) -> str:
    return f"shard {item}" if isinstance(item, int) else "the task"


def _task_pool(task: Task, num_gpus: float) -> Pool:
    def start(host: Host, item: Item) -> Any:
        if isinstance(item, PromptSubset):
            return host.actor.try_prompts.remote(task, item.of, item.prompt_ids)
        return host.actor.run_task.remote(task)

    return Pool(task.name, start, lambda: 1, num_gpus, deque([task.name]))


def _drain(
    pools: Sequence[Pool],
    hosts: Hosts,
    flow: TaskFlow | ShardFlow,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run until every pool is empty; the flow may queue more items meanwhile."""
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
    """Wait up to POLL_S for one host to finish, and pass its item on."""
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
    """The error to show for a remote failure of a stage; a SweepError is returned unchanged."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, SweepError):
        return cause
    if cause is not None:
        return StageError(f"{name} failed in a worker: {type(cause).__name__}: {cause}\n{error}")
    return StageError(f"{name}: its worker died ({type(error).__name__}: {error})")
