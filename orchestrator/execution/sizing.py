"""How many trials share a GPU, or a node's memory, when the spec says `auto`.

On GPUs a worker runs two steps of the first trial on its largest batch (`workers/probe.py`). The
measured peak is cached in the store; the free memory of the card is read every time. A peak that
did not fit is measured again, because another program may have used the card. If trials can be
trained as a group, steps of groups are measured instead, and each group gets a full GPU. Without
GPUs, the memory is estimated from the weights and only reserved if a node could run out.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from prefsweep.orchestrator.execution.placement import NodeSize
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tasks.probe import GROUPS, probes_folder
from prefsweep.sweeps.spec import SweepSpec
from prefsweep.workers.probe import WORTH, GpuMemory, GroupStep

PARTS = (1, 2, 4, 8)
"""Numbers of trials that may share a GPU."""
MARGIN = 1.15
"""Headroom for what two steps do not show: fragmentation, and batches that pack worse."""
PROCESS_BYTES = 1.3 * 2**30
"""Resident memory of a worker that has imported torch and TRL, without any model."""


def probed_shares(sweep: Sweep) -> dict[str, float]:
    """GPU type -> the share of one that a trial gets, for the types that were probed."""
    store, folder = sweep.store, probes_folder(sweep)
    found = {name: store.read_object(f"{folder}/{name}") for name in store.names(folder)}
    known = {field.name for field in fields(GpuMemory)}
    return {
        name.removesuffix(".json"): trial_share(GpuMemory(**memory))
        for name, memory in found.items()
        if memory.keys() == known
    }


def trial_share(memory: GpuMemory) -> float:
    """The share of a GPU that a trial gets: the smallest of 1/8, 1/4, 1/2 and 1 such that this many
    trials fit into the free memory."""
    fitting = int(memory.free // (memory.peak * MARGIN))
    return 1 / max((parts for parts in PARTS if parts <= fitting), default=1)


def probed_groups(sweep: Sweep) -> dict[str, tuple[list[GroupStep], int]]:
    """GPU type -> the steps of groups that were probed on it, and the bytes that were free."""
    store, folder = sweep.store, probes_folder(sweep)
    found: dict[str, tuple[list[GroupStep], int]] = {}
    for name in store.names(folder):
        kind, is_of_groups, _ = name.partition(GROUPS)
        document = store.read_object(f"{folder}/{name}")
        if is_of_groups and document.keys() == {"steps", "free"}:
            found[kind] = ([GroupStep(**step) for step in document["steps"]], document["free"])
    return found


def group_size(found: Sequence[GroupStep], free: float) -> int:
    """The size of group that trains the most trial-steps a second in `free` bytes; a larger one has
    to be worth it."""
    best: GroupStep | None = None
    for step in found:
        fits = step.peak * MARGIN <= free
        if fits and (best is None or step.pace >= WORTH * best.pace):
            best = step
    return 1 if best is None else best.size


def policy_size(sweep: Sweep) -> tuple[int, int]:
    """Bytes of the policy's weights, and size of its vocabulary; zeros if neither the store nor a
    local folder has them."""
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


def cpu_memory(spec: SweepSpec, weights: int, vocabulary: int, group: int = 1) -> float:
    """Estimated bytes of a group of trials on the CPU; 0 if the size of the weights is unknown."""
    if not weights:
        return 0.0
    training, copies = spec.training, 2  # the cached base, and the policy that is trained
    if training.lora is None:
        copies += 3  # gradients, and AdamW's two moments
    tokens = 2 * training.per_device_train_batch_size * training.max_length
    logits = 2 * tokens * vocabulary * 4  # themselves and their gradient, fp32
    return PROCESS_BYTES + copies * weights + group * logits


def reserved_memory(needed: float, nodes: list[NodeSize], cpus_per_worker: int) -> float:
    """Bytes to reserve for a trial: what it needs if a node could run more trials than fit, else 0.

    At most the memory of the largest node: a larger trial runs there alone and may not fit.
    """
    short = any(node.memory < needed * (node.cpus // cpus_per_worker) for node in nodes)
    largest = max((node.memory for node in nodes if node.cpus >= cpus_per_worker), default=0.0)
    return min(needed, largest) if short else 0.0
