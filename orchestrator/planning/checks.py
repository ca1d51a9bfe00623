"""The checks of `prefsweep doctor`: machine, cluster, storage, models, data and tracking.

Each check yields lines with a level, a finding and a remedy. A check starts and downloads nothing;
the storage check writes, reads and deletes one small file.
"""

import os
import platform
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path

from prefsweep.orchestrator.execution.nodes import PACKAGES, Node, storage_refusal
from prefsweep.orchestrator.execution.placement import FIELDS, NodeSize, Placement, resources_of
from prefsweep.orchestrator.execution.ray_session import unreachable
from prefsweep.orchestrator.execution.survey import survey
from prefsweep.orchestrator.planning.estimate import (
    Estimate,
    estimate,
    estimate_lines,
    free_bytes,
)
from prefsweep.orchestrator.store.store import Store, absolute
from prefsweep.orchestrator.text import readable_bytes
from prefsweep.sweeps.errors import StoreError, SweepError
from prefsweep.sweeps.spec import (
    ClassifierReward,
    ModelSection,
    PolicySpec,
    Reward,
    SweepSpec,
)
from prefsweep.workers.functions import load_function
from prefsweep.workers.locations import BUILTIN, model_identity, model_source
from prefsweep.workers.sizes import disk_bytes, has_weights, model_folder


class Level(StrEnum):
    """Severity of a line; a run fails on an error."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Line:
    """One finding of a check, with its remedy."""

    check: str
    level: Level
    found: str
    remedy: str = ""


@dataclass
class Check:
    """A check and, once it has run, its lines."""

    name: str
    find: Callable[[], Iterable[Line]]
    on_timeout: Level = Level.WARNING
    """Level of the line that reports a timeout."""
    lines: list[Line] = field(default_factory=list[Line])

    def run(self) -> None:
        """Run the check; an exception becomes a line."""
        try:
            self.lines = list(self.find())
        except SweepError as error:
            self.lines = [Line(self.name, Level.ERROR, str(error))]
        except Exception as error:  # one failing check must not stop the others
            found = f"the check failed: {type(error).__name__}: {error}"
            self.lines = [Line(self.name, Level.WARNING, found)]


ESTIMATE = "estimate"
"""Name of the check that resolves the sweep, as a run does first."""


def basic_checks(spec: SweepSpec | None, storage: str, address: str | None) -> list[Check]:
    """The checks of all but trackers, in the order of the output; without a spec, those that need
    none."""
    checks = [
        Check("python", python),
        Check("packages", packages),
        Check("cuda", cuda),
    ]
    if address is None:
        checks.append(Check("machine", lambda: this_machine(spec)))
        checks.append(Check("storage", lambda: storage_here(storage), Level.ERROR))
    else:
        checks.append(Check("cluster", lambda: cluster(spec, storage, address), Level.ERROR))
    if spec is not None:
        checks.append(Check("policy", lambda: [model(spec.policy, "policy")]))
        if spec.reward is not None:
            reward = spec.reward
            checks.append(Check("reward", lambda: [scorer(reward)]))
        checks.append(Check("data", lambda: data(spec)))
        checks.append(Check(ESTIMATE, lambda: left_to_do(spec, storage)))
    return checks


def model(section: ModelSection, field: str) -> Line:
    """Whether a model is on this machine or can be downloaded. Downloads no weights."""
    if section.model.startswith(BUILTIN):
        model_identity(section, f"{field}.model")
        return Line(field, Level.OK, f"{section.model} comes with prefsweep")
    if isinstance(section, PolicySpec) and section.gguf_file and util.find_spec("gguf") is None:
        found = f"{section.model}: its GGUF file needs the package gguf"
        return Line(field, Level.ERROR, found, "pip install gguf")
    source = model_source(section)
    is_folder = Path(source.path).is_dir()
    if not is_folder:
        model_identity(section, f"{field}.model")  # asks the hub or its cache; raises ModelError
    folder = model_folder(source)
    if folder is not None and has_weights(folder):
        where = str(folder) if is_folder else "in the local Hugging Face cache"
        size = readable_bytes(disk_bytes(folder))
        return Line(field, Level.OK, f"{section.model}: {size}, {where}")
    if is_folder:
        found = f"{folder} has no weights (model.safetensors)"
        return Line(field, Level.ERROR, found, f"correct {field}.model")
    if os.environ.get("HF_HUB_OFFLINE"):
        found = f"{section.model}: its configuration is cached, but not its weights"
        remedy = (
            f"unset HF_HUB_OFFLINE, or `hf download {section.model}` on a machine with a network"
        )
        return Line(field, Level.ERROR, found, remedy)
    return Line(field, Level.OK, f"{section.model} is on the hub; workers download it")


def scorer(reward: Reward) -> Line:
    """Whether the reward can be computed."""
    if isinstance(reward, ClassifierReward):
        return model(reward, "reward")
    if reward.type == "callable":
        load_function(reward.function)
        return Line("reward", Level.OK, f"{reward.function} is importable here")
    if util.find_spec("vaderSentiment") is None:
        remedy = "pip install vaderSentiment"
        return Line("reward", Level.ERROR, "the package vaderSentiment is missing", remedy)
    return Line("reward", Level.OK, "VADER's lexicon")


def data(spec: SweepSpec) -> Iterator[Line]:
    """Whether prompts, corpora and entry data exist."""
    from prefsweep.workers.corpus import source_identity
    from prefsweep.workers.entry import entry_identity

    reward = spec.reward.train if isinstance(spec.reward, ClassifierReward) else None
    sources = {
        "prompts": spec.prompts,
        "policy.sft.corpus": spec.policy.sft and spec.policy.sft.corpus,
        "reward.train.corpus": reward and reward.corpus,
    }
    lines = [Line(name, Level.OK, source_identity(s)) for name, s in sources.items() if s]
    if spec.entry is not None:
        lines.append(Line("entry", Level.OK, entry_identity(spec.entry)))
    yield from lines


def left_to_do(spec: SweepSpec, storage: str) -> Iterator[Line]:
    """Estimated time, cost and disk space of unfinished trials. Raises what a run would."""
    from prefsweep.orchestrator.planning.groups import group_lines
    from prefsweep.orchestrator.state.sweep import resolve
    from prefsweep.orchestrator.state.trial_record import is_finished

    sweep = resolve(spec, storage)
    left = [trial for trial in sweep.trials if not is_finished(sweep, trial.trial_id)]
    found = estimate(sweep, left)
    num_found = len(sweep.trials) - len(left)
    yield Line("trials", Level.OK, f"{len(left)} to run, {num_found} cached")
    for line in (*group_lines(sweep, left), *estimate_lines(found)):
        name, _, text = line.partition(": ")
        yield Line(name, Level.OK, text) if name != "disk" else _disk(found, text)


def _disk(found: Estimate, text: str) -> Line:
    needed = (found.weights_bytes or 0) + (found.checkpoint_bytes or 0)
    if found.free_bytes is not None and needed > found.free_bytes:
        remedy = "free space, use another --storage, or train adapters (training.lora)"
        return Line("disk", Level.ERROR, text, remedy)
    return Line("disk", Level.OK, text)


CLUSTER_TIMEOUT_S = 55.0
"""Timeout for the cluster and its nodes; shorter than that of the doctor."""


# --- this machine --------------------------------------------------------------------------------


def python() -> Iterator[Line]:
    """Whether this version of Python is supported."""
    from packaging.specifiers import SpecifierSet

    version, wanted = platform.python_version(), metadata.metadata("prefsweep")["Requires-Python"]
    if SpecifierSet(wanted).contains(version, prereleases=True):
        yield Line("python", Level.OK, f"{version} on {platform.system()} {platform.machine()}")
    else:
        yield Line("python", Level.ERROR, version, f"install Python {wanted}")


def packages() -> Iterator[Line]:
    """Versions of the dependencies; an error for each that is missing or outside its range."""
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
    """The GPUs of this machine that torch can use."""
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
        remedy = "install a CUDA build of torch that matches the driver"
    found = f"there is an NVIDIA driver, but torch {torch.__version__} finds no GPU"
    yield Line("cuda", Level.WARNING, found, remedy)


def this_machine(spec: SweepSpec | None) -> Iterator[Line]:
    """Whether this machine has the resources that the spec requests."""
    import torch

    cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Line("machine", Level.OK, f"{cpus:g} CPUs, {memory_gib:.0f} GiB, {gpus:g} GPUs")
    if spec is not None:
        yield from room(spec, [NodeSize(cpus, gpus)], wait_s=0.0)


def room(spec: SweepSpec, nodes: Sequence[NodeSize], wait_s: float) -> Iterator[Line]:
    """Requests of `resources` and `training` that no node can satisfy, by the rules of a run.

    If a run would wait for nodes (`wait_s` > 0), a missing resource is only a warning.
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
    """Whether this machine can write and read the store."""
    store = Store(storage)
    where = store.display("").rstrip("/")
    free = free_bytes(store)
    room = "" if free is None else f"; {readable_bytes(free)} free"
    if store.is_local and not Path(where).exists():
        parent = next(path for path in Path(where).parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            found = f"{where} does not exist, and {parent} is not a writable folder"
            yield Line("storage", Level.ERROR, found, "choose another folder with --storage")
            return
        yield Line("storage", Level.OK, f"{where} will be created by the first run{room}")
        return
    token = _write_token(store)
    read = store.read(token)
    store.delete(token)
    if read is None:
        raise StoreError(f"{where}: a file that was just written cannot be read")
    yield Line("storage", Level.OK, f"{where} is writable and readable{room}")


# --- a cluster -----------------------------------------------------------------------------------


def cluster(spec: SweepSpec | None, storage: str, address: str) -> Iterator[Line]:
    """Whether the nodes of a cluster respond, match the driver, and share the storage."""
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
    """One line for the cluster and one per node."""
    num = f"{len(nodes)} node" + ("s" if len(nodes) > 1 else "")
    yield Line("cluster", Level.OK, f"{address}: {num}")
    for node in nodes:
        gpus = f"{node.gpus:g} GPUs" + (f" ({', '.join(node.gpu_names)})" if node.gpu_names else "")
        found = f"{node.name}: {node.cpus:g} CPUs, {node.memory_gib:.0f} GiB, {gpus}"
        if node.differences:
            remedy = "install the driver's versions there (constraints.txt), or use one image"
            yield Line("node", Level.ERROR, f"{found}; {node.differences}", remedy)
        elif node.error:
            yield Line("node", Level.ERROR, f"{found}; {node.error}", "repair or remove that node")
        else:
            yield Line("node", Level.OK, found if node.cpus else f"{found}; it runs no work")


def storage_lines(nodes: Sequence[Node], store: Store) -> Iterator[Line]:
    """Whether every worker node can read files of the driver, and the reverse."""
    where = store.display("").rstrip("/")
    asked = [node for node in nodes if node.cpus and not node.error]
    failed = [node for node in asked if node.storage_error]
    for node in failed:
        found, remedy = storage_refusal(store, node.name, node.storage_error)
        yield Line("storage", Level.ERROR, found, remedy)
    if not failed:
        yield Line(
            "storage", Level.OK, f"{where} is writable and readable on all {len(asked)} nodes"
        )


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
