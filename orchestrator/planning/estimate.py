"""What the trials that are left will take: time, GPU-hours, cost and disk.

Nothing is guessed: times come from trials that ran in this store, sizes from such trials or from
the shapes of the model, and each figure says so, or is None. The stages before the trials are not
in it.
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
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.locations import model_source
from prefsweep.workers.sizes import TrialSize, model_folder, tensor_shapes, trial_size

log = logging.getLogger(__name__)

MAX_TRIALS_READ = 20
"""Trials whose times are averaged; each costs reads of the store."""
MAX_SWEEPS_READ = 20
"""Sweeps of the store that are looked through for such trials, the newest first."""


@dataclass(frozen=True)
class TrialTime:
    """Seconds of one trial, and what they are based on."""

    train_s: float
    evaluation_s: float
    on_gpu: bool
    basis: str
    gpus: float | None = None
    """The share of a GPU that they had; None if that was not recorded."""


@dataclass(frozen=True)
class Estimate:
    """What is left to do, and what it will take; None is what nobody can know yet."""

    num_to_train: int
    num_to_evaluate: int
    time: TrialTime | None
    gpus_per_trial: float
    """GPUs of a trial: what those had that `time` is of, since seconds depend on the share. Else
    as the spec says; for `auto` as probed, or one, which is the most."""
    share_basis: str
    """Where that share is from, in words; "" for the spec's, or the most."""
    at_most: bool
    """Whether a trial may get less of a GPU than that, and so the hours be fewer."""
    gpu_hour_price: float | None
    size: TrialSize | None
    size_basis: str
    checkpoints_kept: int
    """Checkpoints on disk at once while a trial runs."""
    free_bytes: int | None
    """Free space of the store's disk; None for an object store."""

    @property
    def trial_hours(self) -> float | None:
        """Hours of all trials, one after the other."""
        if self.time is None:
            return None
        train_s = self.num_to_train * self.time.train_s
        return (train_s + self.num_to_evaluate * self.time.evaluation_s) / 3600

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours of all trials; None where none has run on a GPU."""
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
        """Bytes that the results of all trials will take."""
        return None if self.size is None else self.size.weights_bytes * self.num_to_train

    @property
    def checkpoint_bytes(self) -> int | None:
        """Bytes of the checkpoints of one trial while it runs."""
        return None if self.size is None else self.size.checkpoint_bytes * self.checkpoints_kept


def estimate(sweep: Sweep, unfinished: Sequence[Trial]) -> Estimate:
    """What `unfinished` trials of a sweep will take, by what the store knows."""
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
    """GPUs of a trial, and for `auto` where it was probed: the larger share of several."""
    share = sweep.spec.resources.gpus_per_trial
    if share != "auto":
        return share, ""
    probed = ((share, f"as probed on {kind}") for kind, share in probed_shares(sweep).items())
    return max(probed, default=(1.0, ""))


# --- time ----------------------------------------------------------------------------------------


def _time(sweep: Sweep) -> TrialTime | None:
    """Mean of the nearest trials that ran in this store: of this sweep, of the same pairs and
    training, of the same pairs, of the same policy."""
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
    """Other sweeps of the store, those that ran last first."""
    store = sweep.store

    def updated(name: str) -> float:
        return read_state(store, name).updated

    names = [name for name in store.sweeps() if name != sweep.spec.name]
    for name in sorted(names, key=updated, reverse=True)[:MAX_SWEEPS_READ]:
        try:
            yield open_sweep(name, sweep.storage)
        except UsageError as error:  # of a version with other fields: it tells nothing here
            log.debug("no estimate from %s: %s", name, error)


def _nearness(sweep: Sweep, other: Sweep) -> tuple[int, str]:
    """How near another sweep's trials are to this one's, 0 the nearest; "" if they say nothing."""
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
    """Mean of finished trials of one sweep, of those that have a folder in the store."""
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
    return TrialTime(
        fmean(_train_seconds(weights) for weights, _ in pairs),
        fmean(evaluated.seconds for _, evaluated in pairs),
        on_gpu,
        f"by {trials} of sweep {sweep.spec.name} on {'a GPU' if on_gpu else 'CPUs'}",
        fmean(gpus) if len(gpus) == len(pairs) else None,
    )


def _train_seconds(weights: Manifest) -> float:
    """Of all attempts; the manifest's own seconds are those of the last."""
    return max(weights.seconds, weights.notes.get("train_seconds", 0.0))


def _train_scale(sweep: Sweep, other: Sweep) -> float | None:
    """Work of training a trial here against one there: steps x pairs (or prompts) x max_length."""
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
    """Optimizer steps of a trial, to a fraction; None before the number of pairs is known."""
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
    """What a trial writes, by the shapes of the policy; and what that is based on."""
    folder = _policy_folder(sweep)
    if folder is None:
        return None, "the policy is not on this machine yet"
    shapes = tensor_shapes(folder)
    if not shapes:
        return None, "the policy has no safetensors file, which would tell its shapes"
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
