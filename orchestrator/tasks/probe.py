"""Measures the GPU memory of a trial, and of groups of trials, and stores it for later sweeps."""

import re
from dataclasses import asdict, dataclass
from hashlib import sha256

from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.identity import canonical_json
from prefsweep.workers.probe import GpuMemory, GroupStep

GROUPS = "-groups-"
"""Part of the names of files with measurements of groups."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9+._-]+")


@dataclass(frozen=True)
class ProbeTrial:
    """The memory of a trial and of its GPU -> a small JSON file in the store."""

    sweep: Sweep
    trial: TrialSpec
    gpu_type: str
    name: str = "probe"

    @property
    def path(self) -> str:
        """Path of the measurement of a model, batch and GPU type."""
        return f"{probes_folder(self.sweep)}/{_NOT_IN_NAMES.sub('-', self.gpu_type) or 'gpu'}.json"

    def done(self) -> bool:
        return False

    def run(self) -> None:
        from prefsweep.workers.probe import gpu_room, probe_gpu

        known = self.sweep.store.read_json(self.path)
        if known is not None and known["peak"] < known["total"]:
            free, total = gpu_room()
            found = GpuMemory(known["peak"], free, total)
        else:
            cache = WorkerCache(self.sweep)
            training = self.sweep.spec.training
            models = (cache.policy, cache.tokenizer)
            with self.sweep.store.staging() as folder:
                found = probe_gpu(self.trial, training, *models, cache.pairs, folder)
        self.sweep.store.write_json(self.path, asdict(found))

    def found(self) -> GpuMemory:
        """The measurement that `run` has stored."""
        return GpuMemory(**self.sweep.store.read_json(self.path))


@dataclass(frozen=True)
class ProbeGroups:
    """Measures training steps of groups of trials on their GPU."""

    sweep: Sweep
    trials: tuple[TrialSpec, ...]
    gpu_type: str
    name: str = "probe"

    @property
    def path(self) -> str:
        """Path of the measurement of a model, batch, GPU type and number of trials."""
        kind = _NOT_IN_NAMES.sub("-", self.gpu_type) or "gpu"
        return f"{probes_folder(self.sweep)}/{kind}{GROUPS}{len(self.trials)}.json"

    def done(self) -> bool:
        return False

    def run(self) -> None:
        from prefsweep.workers.probe import gpu_room, probe_groups

        free, _ = gpu_room()
        known = self.sweep.store.read_json(self.path)
        if known is None:
            cache, training = WorkerCache(self.sweep), self.sweep.spec.training
            models = (cache.policy, cache.tokenizer)
            with self.sweep.store.staging() as folder:
                found = probe_groups(self.trials, training, *models, cache.pairs, folder)
            known = {"steps": [asdict(step) for step in found]}
        self.sweep.store.write_json(self.path, known | {"free": free})

    def found(self) -> tuple[list[GroupStep], int]:
        """The measurement that `run` has stored, and the free bytes of the GPU."""
        document = self.sweep.store.read_json(self.path)
        return [GroupStep(**step) for step in document["steps"]], document["free"]


def probes_folder(sweep: Sweep) -> str:
    """The folder of the measurements for a model and batch."""
    spec = sweep.spec
    key = {
        "policy": sweep.fingerprints.policy,
        "dtype": spec.policy.dtype,
        "training": spec.training.model_dump(mode="json", exclude={"max_steps", "fuse"}),
        "reference": sweep.fingerprints.reference,
    }
    return sweep.store.artifact("probe", sha256(canonical_json(key).encode()).hexdigest())
