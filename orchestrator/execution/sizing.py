"""How many trials share a GPU, or a node's memory, where the spec says `auto`.

On GPUs one worker runs two steps of the first trial on its largest batch (`workers/probe.py`); what
they took is kept in the store, what is free on the card is looked at every time; so is what did not
fit at all, which another program on the card may have caused. Without GPUs the memory is estimated
from the weights, and matters only where it is short.
"""

import json
from dataclasses import fields
from pathlib import Path

from prefsweep.orchestrator.execution.placement import NodeSize
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tasks.probe import probes_folder
from prefsweep.sweeps.spec import SweepSpec
from prefsweep.workers.probe import GpuMemory

PARTS = (1, 2, 4, 8)
"""Trials that a GPU may be shared by."""
MARGIN = 1.15
"""Room for what two steps do not show: fragmentation, and batches that pack worse."""
PROCESS_BYTES = 1.3 * 2**30
"""Resident memory of a worker that has imported torch and TRL, without any model."""


def probed_shares(sweep: Sweep) -> dict[str, float]:
    """GPU type -> the share of one that a trial got, for the types that it was probed on."""
    store, folder = sweep.store, probes_folder(sweep)
    found = {name: store.read_object(f"{folder}/{name}") for name in store.names(folder)}
    known = {field.name for field in fields(GpuMemory)}
    return {
        name.removesuffix(".json"): trial_share(GpuMemory(**memory))
        for name, memory in found.items()
        if memory.keys() == known
    }


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
