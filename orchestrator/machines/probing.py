"""How many trials share a GPU, or a node's memory, where the spec says `auto`.

On GPUs one worker runs two steps of the first trial on its largest batch (`workers/probe.py`); what
they took is kept in the store, what is free on the card is looked at every time; so is what did not
fit at all, which another program on the card may have caused. Without GPUs the memory is estimated
from the weights, and matters only where it is short.
"""

import json
import re
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path

from prefsweep.orchestrator.kept import Kept
from prefsweep.orchestrator.machines.placement import NodeSize
from prefsweep.orchestrator.sweep import Sweep
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.identity import canonical_json
from prefsweep.sweeps.spec import SweepSpec
from prefsweep.workers.probe import GpuMemory

PARTS = (1, 2, 4, 8)
"""Trials that a GPU may be shared by."""
MARGIN = 1.15
"""Room for what two steps do not show: fragmentation, and batches that pack worse."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9+._-]+")
PROCESS_BYTES = 1.3 * 2**30
"""Resident memory of a worker that has imported torch and TRL, without any model."""


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
        return f"{_probes(self.sweep)}/{_NOT_IN_NAMES.sub('-', self.gpu_type) or 'gpu'}.json"

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


def probed_shares(sweep: Sweep) -> dict[str, float]:
    """GPU type -> the share of one that a trial got, for the types that it was probed on."""
    store, folder = sweep.store, _probes(sweep)
    found = {name: store.read_object(f"{folder}/{name}") for name in store.names(folder)}
    known = {field.name for field in fields(GpuMemory)}
    return {
        name.removesuffix(".json"): trial_share(GpuMemory(**memory))
        for name, memory in found.items()
        if memory.keys() == known
    }


def _probes(sweep: Sweep) -> str:
    """The folder of what was found for a model and batch."""
    spec = sweep.spec
    key = {
        "policy": sweep.fingerprints.policy,
        "dtype": spec.policy.dtype,
        "training": spec.training.model_dump(mode="json", exclude={"max_steps"}),
        "reference": sweep.fingerprints.reference,
    }
    return sweep.store.artifact("probe", sha256(canonical_json(key).encode()).hexdigest())


def trial_share(memory: GpuMemory) -> float:
    """The share of a GPU that a trial gets: the smallest of 1/8, 1/4, 1/2, 1 whose trials fit
    together into what is free."""
    fitting = int(memory.free // (memory.peak * MARGIN))
    return 1 / max((parts for parts in PARTS if parts <= fitting), default=1)


def policy_size(sweep: Sweep) -> tuple[int, int]:
    """Bytes of the policy's weights, and tokens of its vocabulary; zeros where neither the store
    nor a folder here has them."""
    if sweep.made["policy"]:
        manifest = sweep.store.manifest(sweep.path("policy"))
        sizes = {} if manifest is None else {n: e.size for n, e in manifest.files.items()}
        config = sweep.store.read_json(f"{sweep.path('policy')}/config.json")
    else:
        folder = Path(sweep.spec.policy.model).expanduser()
        sizes = {file.name: file.stat().st_size for file in folder.glob("*")}
        config_file = folder / "config.json"
        config = json.loads(config_file.read_text("utf-8")) if config_file.is_file() else None
    weights = sum(size for name, size in sizes.items() if name.endswith((".safetensors", ".bin")))
    return weights, (config or {}).get("vocab_size", 0)


def cpu_memory(spec: SweepSpec, weights: int, vocabulary: int) -> float:
    """About the bytes that a trial on the CPU takes; 0 where the weights are not known."""
    if not weights:
        return 0.0
    training, copies = spec.training, 2  # the kept base, and the policy that is trained
    if training.lora is None:
        copies += 3  # gradients, and AdamW's two moments
    tokens = 2 * training.per_device_train_batch_size * training.max_length
    logits = 2 * tokens * vocabulary * 4  # themselves and their gradient, fp32
    return PROCESS_BYTES + copies * weights + logits


def reserved_memory(needed: float, nodes: list[NodeSize], cpus_per_worker: int) -> float:
    """Bytes to reserve for a trial: what it needs where a node would run more than fit, else 0.

    Never more than the largest node has: there a trial runs alone, and may be too large.
    """
    short = any(node.memory < needed * (node.cpus // cpus_per_worker) for node in nodes)
    largest = max((node.memory for node in nodes if node.cpus >= cpus_per_worker), default=0.0)
    return min(needed, largest) if short else 0.0
