"""The checks of `prefsweep doctor` on where a run takes place: machine, cluster and storage.

Each looks at one thing and says what it found. None changes anything, but for a file that the
storage checks write, read and delete.
"""

import os
import platform
import uuid
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from prefsweep.orchestrator.execution.nodes import PACKAGES, Node, storage_refusal
from prefsweep.orchestrator.execution.placement import FIELDS, NodeSize, Placement, resources_of
from prefsweep.orchestrator.execution.ray_session import unreachable
from prefsweep.orchestrator.execution.survey import survey
from prefsweep.orchestrator.planning.estimate import free_bytes
from prefsweep.orchestrator.planning.estimate_lines import readable_bytes
from prefsweep.orchestrator.planning.findings import Level, Line
from prefsweep.orchestrator.store.store import Store, absolute
from prefsweep.sweeps.errors import StoreError
from prefsweep.sweeps.spec import SweepSpec

CLUSTER_TIMEOUT_S = 55.0
"""Longest wait for a cluster and its nodes; shorter than the examination's."""


# --- this machine --------------------------------------------------------------------------------


def python() -> Iterator[Line]:
    """The version of Python."""
    from packaging.specifiers import SpecifierSet

    version, wanted = platform.python_version(), metadata.metadata("prefsweep")["Requires-Python"]
    if SpecifierSet(wanted).contains(version, prereleases=True):
        yield Line("python", Level.OK, f"{version} on {platform.system()} {platform.machine()}")
    else:
        yield Line("python", Level.ERROR, version, f"install Python {wanted}")


def packages() -> Iterator[Line]:
    """Versions of what prefsweep is built on, and those that are not what it was made for."""
    from packaging.requirements import Requirement

    for text in metadata.requires("prefsweep") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if not found or not requirement.specifier.contains(found, prereleases=True):
            remedy = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Line("packages", Level.ERROR, f"{requirement.name} {found or 'missing'}", remedy)
    versions = ", ".join(f"{name} {_version(name)}" for name in ("prefsweep", *PACKAGES, "wandb"))
    yield Line("packages", Level.OK, versions)


def cuda() -> Iterator[Line]:
    """GPUs of this machine as torch sees them."""
    import torch

    build = torch.version.cuda  # pyright: ignore[reportAttributeAccessIssue]  set at build time
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names = ", ".join(_gpu(index) for index in range(count))
        yield Line("cuda", Level.OK, f"CUDA {build}: {names}")
        return
    if not Path("/proc/driver/nvidia/version").exists():
        yield Line("cuda", Level.OK, "no GPU here; models run on the CPU")
        return
    remedy = f"torch is built for CUDA {build}; update the driver, or unset CUDA_VISIBLE_DEVICES"
    if build is None:
        remedy = "install a CUDA build of torch that fits the driver"
    found = f"there is an NVIDIA driver, but torch {torch.__version__} uses no GPU"
    yield Line("cuda", Level.WARNING, found, remedy)


def this_machine(spec: SweepSpec | None) -> Iterator[Line]:
    """Whether what the spec asks for is here."""
    import torch

    cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Line("machine", Level.OK, f"{cpus:g} CPUs, {memory_gib:.0f} GiB, {gpus:g} GPUs")
    if spec is not None:
        yield from room(spec, [NodeSize(cpus, gpus)], wait_s=0.0)


def room(spec: SweepSpec, nodes: Sequence[NodeSize], wait_s: float) -> Iterator[Line]:
    """What `resources` and `training` ask for and no node has, judged as a run judges it.

    No error is what a run waits `wait_s` for, because nodes may come.
    """
    placement = Placement(resources_of(spec), lambda: nodes)
    level = Level.WARNING if wait_s else Level.ERROR
    waits = f"; a run waits up to {wait_s:g} s for a node that has it" if wait_s else ""
    for found, remedy in placement.problems(FIELDS):
        yield Line("resources", level, f"{found}{waits}", remedy)
    gpu_comes = wait_s and placement.share("trials")
    if spec.training.fp16 and not placement.num_gpus and not gpu_comes:
        found = "training.fp16=True, but there is no GPU"
        yield Line("resources", Level.ERROR, found, "unset it, or use training.bf16")


def storage_here(storage: str) -> Iterator[Line]:
    """Whether this machine writes and reads the store."""
    store = Store(storage)
    where = store.display("").rstrip("/")
    free = free_bytes(store)
    room = "" if free is None else f"; {readable_bytes(free)} free"
    if store.is_local and not Path(where).exists():
        parent = next(path for path in Path(where).parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            found = f"{where} does not exist, and {parent} is no folder that may be written"
            yield Line("storage", Level.ERROR, found, "name another folder with --storage")
            return
        yield Line("storage", Level.OK, f"{where} is made at the first run{room}")
        return
    token = _write_token(store)
    read = store.read(token)
    store.delete(token)
    if read is None:
        raise StoreError(f"{where}: what was written cannot be read back")
    yield Line("storage", Level.OK, f"{where} is written and read{room}")


# --- a cluster -----------------------------------------------------------------------------------


def cluster(spec: SweepSpec | None, storage: str, address: str) -> Iterator[Line]:
    """The nodes of a cluster: that they answer, are like the driver, and share the storage."""
    if problem := unreachable(address):
        yield Line("cluster", Level.ERROR, *problem)
        yield from storage_here(storage)
        return
    store = Store(absolute(storage))
    nodes = survey(address, store.uri, CLUSTER_TIMEOUT_S)
    yield from cluster_lines(nodes, address)
    yield from storage_lines(nodes, store)
    if spec is not None:
        sizes = [NodeSize(node.cpus, node.gpus) for node in nodes]
        yield from room(spec, sizes, spec.resources.wait_for_nodes_s)


def cluster_lines(nodes: Sequence[Node], address: str) -> Iterator[Line]:
    """One line for the cluster, and one for each node."""
    num = f"{len(nodes)} node" + ("s" if len(nodes) > 1 else "")
    yield Line("cluster", Level.OK, f"{address}: {num}")
    for node in nodes:
        gpus = f"{node.gpus:g} GPUs" + (f" ({', '.join(node.gpu_names)})" if node.gpu_names else "")
        found = f"{node.name}: {node.cpus:g} CPUs, {node.memory_gib:.0f} GiB, {gpus}"
        if node.differences:
            remedy = "install the driver's versions there (constraints.txt), or use one image"
            yield Line("node", Level.ERROR, f"{found}; {node.differences}", remedy)
        elif node.error:
            yield Line("node", Level.ERROR, f"{found}; {node.error}", "end or mend that node")
        else:
            yield Line("node", Level.OK, found if node.cpus else f"{found}; it takes no work")


def storage_lines(nodes: Sequence[Node], store: Store) -> Iterator[Line]:
    """Whether every node that works reads what the driver wrote, and the reverse."""
    where = store.display("").rstrip("/")
    asked = [node for node in nodes if node.cpus and not node.error]
    failed = [node for node in asked if node.storage_error]
    for node in failed:
        found, remedy = storage_refusal(store, node.name, node.storage_error)
        yield Line("storage", Level.ERROR, found, remedy)
    if not failed:
        yield Line("storage", Level.OK, f"{where} is written and read by all {len(asked)} nodes")


# --- parts ---------------------------------------------------------------------------------------


def _write_token(store: Store) -> str:
    """Write a small file into the store; returns its path there."""
    token = store.scratch(f"doctor-{uuid.uuid4().hex[:12]}")
    store.write(token, token.encode())
    return token


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _gpu(index: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
