"""Measures the GPU memory of a trial, and groups of trials; what was found is kept in the store,
for every later sweep."""

import re
from dataclasses import asdict, dataclass
from hashlib import sha256

from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tasks.cache import Kept
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.identity import canonical_json
from prefsweep.workers.probe import GpuMemory, GroupStep

GROUPS = "-groups-"
"""In the names of files that are of groups."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9+._-]+")


@dataclass(frozen=True)
class ProbeTrial:
    """The memory of a trial and of the GPU it will be on -> a small JSON in the store."""

    sweep: Sweep
    trial: TrialSpec
    gpu_type: str
    name: str = "probe"

    @property
    def path(self) -> str:
        """By model, batch and GPU type."""
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
            kept = Kept(self.sweep)
            training = self.sweep.spec.training
            models = (kept.policy, kept.tokenizer)
            with self.sweep.store.staging() as folder:
                found = probe_gpu(self.trial, training, *models, kept.pairs, folder)
        self.sweep.store.write_json(self.path, asdict(found))

    def found(self) -> GpuMemory:
        """What `run` has found."""
        return GpuMemory(**self.sweep.store.read_json(self.path))


@dataclass(frozen=True)
class ProbeGroups:
    """Trials that can be trained as one -> steps of groups of them on the GPU they will be on."""

    sweep: Sweep
    trials: tuple[TrialSpec, ...]
    gpu_type: str
    name: str = "probe"

    @property
    def path(self) -> str:
        """By model, batch, GPU type and number of trials."""
        kind = _NOT_IN_NAMES.sub("-", self.gpu_type) or "gpu"
        return f"{probes_folder(self.sweep)}/{kind}{GROUPS}{len(self.trials)}.json"

    def done(self) -> bool:
        return False

    def run(self) -> None:
        from prefsweep.workers.probe import gpu_room, probe_groups

        free, _ = gpu_room()
        known = self.sweep.store.read_json(self.path)
        if known is None:
            kept, training = Kept(self.sweep), self.sweep.spec.training
            models = (kept.policy, kept.tokenizer)
            with self.sweep.store.staging() as folder:
                found = probe_groups(self.trials, training, *models, kept.pairs, folder)
            known = {"steps": [asdict(step) for step in found]}
        self.sweep.store.write_json(self.path, known | {"free": free})

    def found(self) -> tuple[list[GroupStep], int]:
        """What `run` has found, and the bytes that are free on the GPU."""
        document = self.sweep.store.read_json(self.path)
        return [GroupStep(**step) for step in document["steps"]], document["free"]


def probes_folder(sweep: Sweep) -> str:
    """The folder of what was found for a model and batch."""
    spec = sweep.spec
    key = {
        "policy": sweep.fingerprints.policy,
        "dtype": spec.policy.dtype,
        "training": spec.training.model_dump(mode="json", exclude={"max_steps", "fuse"}),
        "reference": sweep.fingerprints.reference,
    }
    return sweep.store.artifact("probe", sha256(canonical_json(key).encode()).hexdigest())
