"""Estimates time, GPU-hours, cost and disk space of the unfinished trials.

Times come from trials that ran in this store, sizes from the shapes of the model. Each figure
states its basis; a figure without one is None. Stages before the trials are not included.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from prefsweep.orchestrator.execution.sizing import probed_shares
from prefsweep.orchestrator.state.sweep import Sweep, Trial, open_sweep
from prefsweep.orchestrator.state.sweep_record import read_state
from prefsweep.orchestrator.store.store import Manifest, Store
from prefsweep.orchestrator.tasks.checkpoints import KEPT_CHECKPOINTS
from prefsweep.orchestrator.text import duration, readable_bytes
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.spec import ModelSection, TrainingSpec
from prefsweep.workers.locations import BUILTIN, model_source
from prefsweep.workers.sizes import (
    TrialSize,
    disk_bytes,
    has_weights,
    model_folder,
    tensor_shapes,
    trial_size,
)

log = logging.getLogger(__name__)

MAX_TRIALS_READ = 20
"""Most trials whose times are averaged; each costs reads of the store."""
MAX_SWEEPS_READ = 20
"""Most sweeps that are searched for such trials, the newest first."""


@dataclass(frozen=True)
class TrialTime:
    """Seconds per trial, and their basis."""

    train_s: float
    evaluation_s: float
    on_gpu: bool
    basis: str
    gpus: float | None = None
    """GPUs per trial when they were measured; None if not recorded."""


@dataclass(frozen=True)
class Estimate:
    """The unfinished work and its estimated cost; None where unknown."""

    num_to_train: int
    num_to_evaluate: int
    time: TrialTime | None
    gpus_per_trial: float
    """GPUs per trial: as when `time` was measured, because seconds depend on the share. Without a
    measurement, the value of the spec; for `auto`, the probed share or else 1, the maximum."""
    share_basis: str
    """The source of that share in words; "" for the value of the spec or the maximum."""
    at_most: bool
    """Whether a trial may get a smaller share, which makes the GPU-hours an upper bound."""
    gpu_hour_price: float | None
    size: TrialSize | None
    size_basis: str
    checkpoints_kept: int
    """Checkpoints of a running trial that are on disk at once."""
    free_bytes: int | None
    """Free space of the store's disk; None for an object store."""

    @property
    def trial_hours(self) -> float | None:
        """Hours of all trials if they run one after the other."""
        if self.time is None:
            return None
        train_s = self.num_to_train * self.time.train_s
        return (train_s + self.num_to_evaluate * self.time.evaluation_s) / 3600

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours of all trials; None if the times were not measured on a GPU."""
        if self.time is None or not self.time.on_gpu or self.trial_hours is None:
            return None
        return self.trial_hours * self.gpus_per_trial

    @property
    def cost(self) -> float | None:
        """GPU-hours at the price of the spec."""
        if self.gpu_hours is None or self.gpu_hour_price is None:
            return None
        return self.gpu_hours * self.gpu_hour_price

    @property
    def weights_bytes(self) -> int | None:
        """Bytes of the weights of all trials to train."""
        return None if self.size is None else self.size.weights_bytes * self.num_to_train

    @property
    def checkpoint_bytes(self) -> int | None:
        """Bytes of the checkpoints of one running trial."""
        return None if self.size is None else self.size.checkpoint_bytes * self.checkpoints_kept


def estimate(sweep: Sweep, unfinished: Sequence[Trial]) -> Estimate:
    """Estimate the cost of the `unfinished` trials of a sweep."""
    store, resources = sweep.store, sweep.spec.resources
    num_to_train = sum(
        store.manifest(store.trial(trial.trial_id, "weights")) is None for trial in unfinished
    )
    size, size_basis = _size(sweep) if num_to_train else (None, "")
    time = _time(sweep) if unfinished else None
    share, share_basis = _share(sweep)
    at_most = resources.gpus_per_trial == "auto" and not share_basis
    if time is not None and time.gpus is not None:
        at_most = time.gpus > share or (at_most and time.gpus == 1)
        share, share_basis = time.gpus, "as those had"
    return Estimate(
        num_to_train=num_to_train,
        num_to_evaluate=len(unfinished),
        time=time,
        gpus_per_trial=share,
        share_basis=share_basis,
        at_most=at_most,
        gpu_hour_price=resources.gpu_hour_price,
        size=size,
        size_basis=size_basis,
        checkpoints_kept=KEPT_CHECKPOINTS + 1 if sweep.spec.training.save_steps else 0,
        free_bytes=free_bytes(store),
    )


def _share(sweep: Sweep) -> tuple[float, str]:
    """GPUs per trial and, for `auto`, where they were probed; the largest of several shares."""
    share = sweep.spec.resources.gpus_per_trial
    if share != "auto":
        return share, ""
    probed = ((share, f"as probed on {kind}") for kind, share in probed_shares(sweep).items())
    return max(probed, default=(1.0, ""))


# --- time ----------------------------------------------------------------------------------------


def _time(sweep: Sweep) -> TrialTime | None:
    """Mean time of the most similar trials in this store.

    In this order: trials of this sweep; of the same pairs and training; of the same pairs; of the
    same policy.
    """
    known = set(sweep.store.names("trials"))  # one listing; most trials of other sweeps may be new
    if (times := _mean_time(sweep, known)) is not None:
        return times
    found: dict[int, tuple[TrialTime, float, float, str]] = {}
    for other in _other_sweeps(sweep):
        near, why = _nearness(sweep, other)
        if why and near not in found and (times := _mean_time(other, known)) is not None:
            train, evaluation = _train_scale(sweep, other), _evaluation_scale(sweep, other)
            if train is not None:
                found[near] = (times, train, evaluation, why)
    return _scaled(*found[min(found)]) if found else None


def _scaled(times: TrialTime, train: float, evaluation: float, why: str) -> TrialTime:
    same = train == evaluation == 1.0
    scaled = "" if same else f"; scaled by x {train:.3g} for steps, pairs and tokens"
    return TrialTime(
        times.train_s * train,
        times.evaluation_s * evaluation,
        times.on_gpu,
        f"{times.basis} ({why}{scaled})",
        times.gpus,
    )


def _other_sweeps(sweep: Sweep) -> Iterator[Sweep]:
    """The other sweeps of the store, the most recent first."""
    store = sweep.store

    def updated(name: str) -> float:
        return read_state(store, name).updated

    names = [name for name in store.sweeps() if name != sweep.spec.name]
    for name in sorted(names, key=updated, reverse=True)[:MAX_SWEEPS_READ]:
        try:
            yield open_sweep(name, sweep.storage)
        except UsageError as error:  # written by a version with other fields
            log.debug("no estimate from %s: %s", name, error)


def _nearness(sweep: Sweep, other: Sweep) -> tuple[int, str]:
    """Distance of another sweep's trials (0 is nearest) and the reason; "" if not comparable."""
    if other.fingerprints.policy != sweep.fingerprints.policy or not other.trials:
        return 3, ""
    if (other.spec.training.lora is None) != (sweep.spec.training.lora is None):
        return 3, ""
    if other.fingerprints.reference != sweep.fingerprints.reference:
        return 2, "the same policy"
    mine = sweep.fingerprints.trial_parts(sweep.trials[0].spec)["training"]
    same = other.fingerprints.trial_parts(other.trials[0].spec)["training"] == mine
    return (0, "the same pairs and training") if same else (1, "the same pairs")


def _mean_time(sweep: Sweep, known: AbstractSet[str]) -> TrialTime | None:
    """Mean time of the finished trials of a sweep; `known` are the trials with a stored folder."""
    store = sweep.store
    pairs: list[tuple[Manifest, Manifest]] = []
    for trial in (trial for trial in sweep.trials if trial.trial_id in known):
        weights = store.manifest(store.trial(trial.trial_id, "weights"))
        evaluated = weights and store.manifest(sweep.evaluation_path(trial.trial_id))
        if weights is not None and evaluated is not None:
            pairs.append((weights, evaluated))
        if len(pairs) == MAX_TRIALS_READ:
            break
    if not pairs:
        return None
    on_gpu = any("gpu_memory_gib" in weights.notes for weights, _ in pairs)
    gpus = [weights.notes["gpus"] for weights, _ in pairs if "gpus" in weights.notes]
    trials = "1 trial" if len(pairs) == 1 else f"{len(pairs)} trials"
    group = max(weights.notes.get("group", 1.0) for weights, _ in pairs)
    grouped = f" in groups of up to {group:g}" if group > 1 else ""
    return TrialTime(
        fmean(_train_seconds(weights) for weights, _ in pairs),
        fmean(evaluated.seconds for _, evaluated in pairs),
        on_gpu,
        f"by {trials} of sweep {sweep.spec.name} on {'a GPU' if on_gpu else 'CPUs'}{grouped}",
        fmean(gpus) if len(gpus) == len(pairs) else None,
    )


def _train_seconds(weights: Manifest) -> float:
    """Training time over all attempts; the manifest's own seconds are those of the last attempt."""
    return max(weights.seconds, weights.notes.get("train_seconds", 0.0))


def _train_scale(sweep: Sweep, other: Sweep) -> float | None:
    """Ratio of training work: steps x pairs (or prompts) x max_length; None if unknown."""
    here, there = _work(sweep), _work(other)
    mine, its = sweep.spec.training, other.spec.training
    if (mine.prompts_per_batch is None) != (its.prompts_per_batch is None):
        return None
    if here is None or there is None:
        return 1.0 if mine == its and _nearness(sweep, other)[0] < 2 else None
    return here / there


def _work(sweep: Sweep) -> float | None:
    training, steps = sweep.spec.training, _num_steps(sweep)
    return None if steps is None else steps * _batch(training) * training.max_length


def _num_steps(sweep: Sweep) -> float | None:
    """Optimizer steps of a trial, as a fraction; None before the number of pairs is known."""
    training = sweep.spec.training
    if training.max_steps is not None:
        return training.max_steps
    pairs = sweep.store.manifest(sweep.path("pairs"))
    if pairs is None or "test pairs" not in pairs.notes or training.prompts_per_batch is not None:
        return None
    return training.num_train_epochs * (pairs.rows - pairs.notes["test pairs"]) / _batch(training)


def _batch(training: TrainingSpec) -> int:
    size = training.prompts_per_batch or training.per_device_train_batch_size
    return size * training.gradient_accumulation_steps


def _evaluation_scale(sweep: Sweep, other: Sweep) -> float:
    return _evaluation_work(sweep) / _evaluation_work(other)


def _evaluation_work(sweep: Sweep) -> float:
    spec = sweep.spec
    num = spec.evaluation.max_prompts if spec.prompts is None else spec.prompts.num_eval
    return num * spec.evaluation.num_samples * spec.evaluation.max_new_tokens


# --- disk ----------------------------------------------------------------------------------------


def _size(sweep: Sweep) -> tuple[TrialSize | None, str]:
    """Bytes that a trial writes, from the shapes of the policy, and the basis."""
    folder = _policy_folder(sweep)
    if folder is None:
        return None, "the policy is not on this machine yet"
    shapes = tensor_shapes(folder)
    if not shapes:
        return None, "the policy has no safetensors file to read shapes from"
    lora = sweep.spec.training.lora
    basis = "all weights" if lora is None else f"LoRA r={lora.r}"
    return trial_size(shapes, sweep.spec.training), basis


def _policy_folder(sweep: Sweep) -> Path | None:
    if not sweep.made["policy"]:
        return model_folder(model_source(sweep.spec.policy))
    path = sweep.path("policy")
    if not sweep.store.is_local or sweep.store.manifest(path) is None:
        return None
    return Path(sweep.store.display(path))


def free_bytes(store: Store) -> int | None:
    """Free space of the store's disk; None for an object store."""
    if not store.is_local:
        return None
    folder = Path(store.display("."))
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


# --- lines ----------------------------------------------------------------------------------------


def estimate_lines(found: Estimate) -> Iterator[str]:
    """The estimate as lines of `plan` and `doctor`, each with its basis or why it is unknown."""
    if not found.num_to_evaluate:
        return
    yield f"time: {_time_line(found)}"
    if found.cost is not None:
        price = f"{found.gpu_hours:.2f} GPU-hours at {found.gpu_hour_price:g}"
        at_most = "at most " if found.at_most else ""
        yield f"cost: {at_most}{found.cost:.2f} ({price}), excluding the stages before the trials"
    if found.num_to_train:
        yield f"disk: {_disk_line(found)}"


def model_lines(sweep: Sweep) -> Iterator[str]:
    """One line per model that is used as it is: its size here, or that it must be downloaded."""
    for field, section in (("policy", sweep.spec.policy), ("reward", sweep.spec.reward)):
        if not isinstance(section, ModelSection) or section.model.startswith(BUILTIN):
            continue
        folder = model_folder(model_source(section))
        if folder is None or not has_weights(folder):
            yield f"{field} {section.model}: not on this machine; it will be downloaded"
        else:
            yield f"{field} {section.model}: {readable_bytes(disk_bytes(folder))} on this machine"


def _time_line(found: Estimate) -> str:
    if found.time is None or found.trial_hours is None:
        return (
            "unknown, because no trial of this policy with this kind of training (LoRA or all "
            "weights) has run in this store; run a grid of one trial first, then plan again"
        )
    each = f"{found.time.train_s:.3g} s to train and {found.time.evaluation_s:.3g} s to evaluate"
    based = f"{each}, {found.time.basis}"
    if found.gpu_hours is None:
        return f"{duration(3600 * found.trial_hours)} of trials, one after the other ({based})"
    at_most = "at most " if found.at_most else ""
    basis = f", {found.share_basis}" if found.share_basis else ""
    share = f"{found.gpus_per_trial:g} GPU a trial{basis}"
    return f"{at_most}{found.gpu_hours:.2f} GPU-hours of trials ({share}; {based})"


def _disk_line(found: Estimate) -> str:
    free = "" if found.free_bytes is None else f"; {readable_bytes(found.free_bytes)} free"
    if found.size is None or found.weights_bytes is None:
        return f"unknown, because {found.size_basis}{free}"
    each = f"{readable_bytes(found.size.weights_bytes)} a trial, {found.size_basis}"
    line = f"{readable_bytes(found.weights_bytes)} of weights ({each})"
    if found.checkpoint_bytes:
        line += f", plus {readable_bytes(found.checkpoint_bytes)} of checkpoints while a trial runs"
    return line + free
