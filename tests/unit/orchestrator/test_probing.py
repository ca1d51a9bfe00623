"""From a trial's memory to its share: of a GPU by a probe's numbers, of a node by an estimate."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefsweep.orchestrator.execution import cluster
from prefsweep.orchestrator.execution.cluster import RayCluster
from prefsweep.orchestrator.execution.placement import NodeSize, Placement
from prefsweep.orchestrator.execution.sizing import (
    PROCESS_BYTES,
    cpu_memory,
    policy_size,
    probed_groups,
    probed_shares,
    reserved_memory,
    trial_share,
)
from prefsweep.orchestrator.state.sweep import Sweep, resolve
from prefsweep.orchestrator.tasks import probe as probe_task
from prefsweep.orchestrator.tasks.probe import ProbeGroups, ProbeTrial
from prefsweep.sweeps.load import load_spec
from prefsweep.workers import probe as workers_probe
from prefsweep.workers.probe import GpuMemory, GroupStep

GIB = 2**30


@pytest.mark.parametrize(
    ("peak_gib", "free_gib", "share"),
    [
        (60, 80, 1),  # one fits
        (30, 80, 1 / 2),
        (20, 80, 1 / 2),  # three would fit, of a third each; halves are simpler and safe
        (17, 80, 1 / 4),
        (2, 80, 1 / 8),  # forty would fit
        (17, 40, 1 / 2),  # others have the other half of the card
        (90, 80, 1),  # does not fit: alone, with the micro-batch halved as it goes
    ],
)
def test_a_share_leaves_room_for_all_trials_on_the_card(
    peak_gib: int, free_gib: int, share: float
) -> None:
    memory = GpuMemory(peak_gib * GIB, free_gib * GIB, 80 * GIB)
    assert trial_share(memory) == share


def test_a_probe_is_kept_by_model_batch_and_gpu(tmp_path: Path) -> None:
    def path(gpu: str, *overrides: str) -> str:
        sweep = resolve(load_spec("quickstart", list(overrides)), str(tmp_path))
        return ProbeTrial(sweep, sweep.trials[0].spec, gpu).path

    same = path("H100")
    assert path("H100", "name=another", "evaluation.num_samples=3") == same
    assert path("H100", "training.max_steps=7") == same
    assert path("A100") != same
    assert path("H100", "training.per_device_train_batch_size=2") != same
    assert path("H100", "policy.sft.seed=5") != same


def test_a_probe_that_did_not_fit_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = resolve(load_spec("quickstart", []), str(tmp_path))
    probe = ProbeTrial(sweep, sweep.trials[0].spec, "H100")
    answers = [GpuMemory(80, 9, 80), GpuMemory(30, 79, 80)]
    kept = SimpleNamespace(policy=None, tokenizer=None, pairs=[])
    monkeypatch.setattr(probe_task, "WorkerCache", lambda _: kept)
    monkeypatch.setattr(workers_probe, "probe_gpu", lambda *_: answers.pop(0))
    monkeypatch.setattr(workers_probe, "gpu_room", lambda: (70, 80))
    found = [probe.run() or probe.found() for _ in range(3)]
    assert found[0].peak == 80, "a neighbour had the card"
    assert found[1:] == [GpuMemory(30, 79, 80), GpuMemory(30, 70, 80)]


def test_several_kinds_of_gpu_are_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = resolve(load_spec("quickstart", []), str(tmp_path))
    monkeypatch.setattr(cluster, "gpu_types", lambda: ["A10G", "H100"])
    node = NodeSize(cpus=8, gpus=2)
    mixed: Any = RayCluster.__new__(RayCluster)
    mixed._resources = sweep.spec.resources
    mixed._placement = Placement(sweep.spec.resources, lambda: [node])
    assert mixed._gpus_per_trial(sweep, sweep.trials[0]) == 1.0


def on_gpus(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, steps: list[GroupStep]) -> Any:
    """A cluster with four cards of one kind, on which a probe finds `steps` in 80 free bytes."""

    class Probe(ProbeGroups):
        def found(self) -> tuple[list[GroupStep], int]:
            return steps, 80

    monkeypatch.setattr(cluster, "gpu_types", lambda: ["H100"])
    monkeypatch.setattr(cluster, "run_tasks", lambda tasks, *_: ran.extend(tasks))
    ran: list[Any] = []
    gpus: Any = RayCluster.__new__(RayCluster)
    gpus._resources, gpus._hosts, gpus._group_probe, gpus.ran = (
        sweep.spec.resources,
        None,
        Probe,
        ran,
    )
    gpus._placement = Placement(sweep.spec.resources, lambda: [NodeSize(cpus=8, gpus=4)])
    monkeypatch.setattr(gpus, "_gpus_per_trial", lambda *_: 0.25)
    return gpus


LORA = "training.lora={r: 4}"
PAYS = [GroupStep(1, 0.1, 2), GroupStep(2, 0.1, 3), GroupStep(4, 0.1, 4)]


@pytest.mark.parametrize(
    ("overrides", "steps", "shares", "is_probed"),
    [
        ([LORA], PAYS, (1.0, 4), True),
        ([LORA], [GroupStep(1, 0.1, 2), GroupStep(2, 0.2, 3)], (0.25, 1), True),  # does not pay
        ([LORA], [], (0.25, 1), True),  # the model cannot be trained so
        ([LORA, "training.fuse=3"], PAYS, (1.0, 3), False),
        ([LORA, "training.fuse=off"], PAYS, (0.25, 1), False),
        ([LORA, "resources.gpus_per_trial=0.05"], PAYS, (0.05, 2), True),  # in a part of the card
        ([], PAYS, (0.25, 1), False),  # all weights are trained
        ([LORA, "seeds=[1]", "grid=[{beta: 0.1, learning_rate: 1e-3}]"], PAYS, (0.25, 1), False),
    ],
)
def test_a_group_has_a_whole_gpu_and_the_size_that_was_asked_for_or_pays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    steps: list[GroupStep],
    shares: tuple[float, int],
    is_probed: bool,
) -> None:
    sweep = resolve(load_spec("quickstart", overrides), str(tmp_path))
    gpus = on_gpus(sweep, monkeypatch, steps)
    assert gpus._shares(sweep, sweep.trials) == shares
    assert len(gpus.ran) == is_probed


def test_steps_of_groups_are_measured_once_and_the_free_memory_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = resolve(load_spec("quickstart", [LORA]), str(tmp_path))
    specs = tuple(trial.spec for trial in sweep.trials)
    free, answers = [70, 60], [PAYS]
    kept = SimpleNamespace(policy=None, tokenizer=None, pairs=[])
    monkeypatch.setattr(probe_task, "WorkerCache", lambda _: kept)
    monkeypatch.setattr(workers_probe, "probe_groups", lambda *_: answers.pop(0))
    monkeypatch.setattr(workers_probe, "gpu_room", lambda: (free.pop(0), 80))
    probe = ProbeGroups(sweep, specs, "H100")
    assert [probe.run() or probe.found() for _ in range(2)] == [(PAYS, 70), (PAYS, 60)]
    assert probed_groups(sweep) == {"H100": (PAYS, 60)} and probed_shares(sweep) == {}


def test_memory_on_the_cpu_grows_with_weights_and_batch(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 500}))
    batch = ["training.per_device_train_batch_size=4", "training.max_length=100"]
    spec = load_spec("quickstart", ["policy.sft=null", f"policy.model={tmp_path}", *batch])
    sweep = resolve(spec, str(tmp_path / "store"))
    assert policy_size(sweep) == (1000, 500)
    logits = 2 * 4 * 100 * 2 * 500 * 4
    copies = 2 if spec.training.lora else 5
    assert cpu_memory(spec, 1000, 500) == PROCESS_BYTES + copies * 1000 + logits
    assert cpu_memory(spec, 0, 0) == 0.0, "a hub model whose weights are elsewhere"


def test_memory_is_reserved_only_where_it_is_short() -> None:
    roomy, narrow = NodeSize(cpus=8, memory=32 * GIB), NodeSize(cpus=8, memory=6 * GIB)
    assert reserved_memory(2.0 * GIB, [roomy], 1) == 0.0
    assert reserved_memory(2.0 * GIB, [roomy, narrow], 1) == 2.0 * GIB
    assert reserved_memory(2.0 * GIB, [roomy, narrow], 4) == 0.0
    assert reserved_memory(9.0 * GIB, [narrow], 1) == 6.0 * GIB, "alone on the largest node"
