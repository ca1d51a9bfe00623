"""The same sweep inline and on Ray, with one and with two generators: equal, bit for bit."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from prefsweep.orchestrator.execution.cluster import InlineCluster, RayCluster
from prefsweep.orchestrator.execution.hosts import Host, Hosts
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps.errors import ClusterError, DataError
from prefsweep.sweeps.records import Status

from .small import content, small_sweep, table, weights

pytestmark = pytest.mark.usefixtures("warm_workers")

STAGES = ("prompts", "completions", "scores", "pairs", "reference")


def run_on_ray(sweep: Sweep, until: str = "report", num_cpus: int = 3) -> list[Status]:
    results = run_sweep(
        sweep, lambda: RayCluster(sweep.spec.resources, num_cpus=num_cpus), until=until
    )
    return [result.status for result in results]


@pytest.fixture
def inline(finished_sweep: Sweep) -> Sweep:
    return finished_sweep


@pytest.fixture(scope="module")
def on_ray(warm_workers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    sweep = small_sweep(tmp_path_factory.mktemp("ray"), "resources.num_generators=2")
    assert run_on_ray(sweep) == [Status.SUCCEEDED] * 3
    yield sweep


def test_two_generators_on_ray_give_what_inline_gives_byte_for_byte(
    inline: Sweep, on_ray: Sweep
) -> None:
    for stage in STAGES:
        assert content(on_ray, stage) == content(inline, stage), stage
    assert len(content(inline, "completions")) == 4
    assert weights(on_ray) == weights(inline)
    assert table(on_ray) == table(inline)


def test_workers_that_want_one_gpu_take_turns_and_give_the_same(
    inline: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[float] = []
    lease = Hosts.lease

    def counted(self: Hosts, num_gpus: float) -> Host:
        host = lease(self, num_gpus)
        at_once.append(sum(leased.num_gpus for leased in self._leased))
        assert at_once[-1] <= 1, "a host that waits for a GPU may wait for ever"
        return host

    monkeypatch.setattr(Hosts, "lease", counted)
    sweep = small_sweep(tmp_path, "resources.num_generators=2")
    resources = sweep.spec.resources
    run_sweep(sweep, lambda: RayCluster(resources, num_cpus=4, num_gpus=1), until="scores")
    for stage in ("completions", "scores"):
        assert content(sweep, stage) == content(inline, stage), stage
    assert at_once.count(1) >= 4, "policy, reward, a generator and a scorer had it"


def test_running_again_starts_no_cluster_and_changes_nothing(on_ray: Sweep) -> None:
    def no_cluster() -> RayCluster:
        raise AssertionError("a finished sweep needs no cluster")

    folder = Path(on_ray.store.display("."))
    before = {
        file: file.stat().st_mtime_ns
        for part in ("artifacts", "trials")
        for file in (folder / part).rglob("*")
        if file.is_file()
    }
    results = run_sweep(on_ray, no_cluster)
    assert [result.status for result in results] == [Status.SUCCEEDED] * 3
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_longer_grid_runs_only_what_is_new(on_ray: Sweep) -> None:
    grid = "grid=[{loss_type: [sigmoid, hinge], beta: [0.1, 0.5], learning_rate: 1e-3}]"
    longer = small_sweep(Path(on_ray.storage), grid)
    old = {trial.trial_id for trial in on_ray.trials}
    before = weights(on_ray)
    ran: list[str] = []

    class Counting(InlineCluster):
        def run_trials(self, sweep, trials) -> None:
            ran.extend(trial.name for trial in trials)
            super().run_trials(sweep, trials)

    results = run_sweep(longer, lambda: Counting(longer.spec.resources))
    assert sorted(ran) == ["hinge-beta0.5", "sigmoid-beta0.5"]
    assert len(results) == 5
    assert {t.trial_id for t in longer.trials} > old
    assert {name: weights(longer)[name] for name in before} == before


def test_one_generator_a_killed_shard_worker_and_a_killed_trial_give_the_same(
    inline: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = "resources.num_generators=1"
    sweep = small_sweep(Path("runs"), one)  # relative: Tune's workers run in another folder
    victims = {"_HostActor": 1, "ImplicitFunc": 1}
    killer = Killer(victims)
    with killer:
        statuses = run_on_ray(sweep, num_cpus=2)
    assert killer.killed == victims
    assert statuses == [Status.SUCCEEDED] * 3
    for stage in STAGES:
        assert content(sweep, stage) == content(inline, stage), stage
    assert weights(sweep) == weights(inline)
    assert table(sweep) == table(inline)


def test_an_error_in_a_worker_comes_back_as_it_was_raised(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, "prompts.num_train=100000")
    with pytest.raises(DataError, match="num_train=100000"):
        run_on_ray(sweep)


def test_more_gpus_than_there_are_is_refused(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, "resources.gpus_per_generator=1")
    with pytest.raises(
        ClusterError, match=r"resources.gpus_per_generator=1, but the cluster has 0 GPUs"
    ):
        run_on_ray(sweep, until="completions")
    assert not ray.is_initialized()


class Killer:
    """Kills, with SIGKILL, the first workers that Ray started for this test's actors."""

    def __init__(self, wanted: dict[str, int]) -> None:
        self._wanted = dict(wanted)
        self.killed = dict.fromkeys(wanted, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                    for name, num in self._wanted.items():
                        # Ray titles a busy worker ray::NAME.method
                        if num and title.startswith("ray::") and f"{name}." in title:
                            time.sleep(0.2)
                            os.kill(process.pid, signal.SIGKILL)
                            self._wanted[name] -= 1
                            self.killed[name] += 1
                except (psutil.NoSuchProcess, ProcessLookupError):
                    continue
