"""An Estimate in words: the lines of time, cost and disk that `plan` and `doctor` show.

Every line says what its figure is based on, or why there is none.
"""

from collections.abc import Iterator

from prefsweep.orchestrator.planning.estimate import Estimate
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps.spec import ModelSection
from prefsweep.workers.locations import BUILTIN, model_source
from prefsweep.workers.sizes import disk_bytes, has_weights, model_folder


def estimate_lines(found: Estimate) -> Iterator[str]:
    """The estimate as `plan` and `doctor` show it."""
    if not found.num_to_evaluate:
        return
    yield f"time: {_time_line(found)}"
    if found.cost is not None:
        price = f"{found.gpu_hours:.2f} GPU-hours at {found.gpu_hour_price:g}"
        at_most = "at most " if found.at_most else ""
        yield f"cost: {at_most}{found.cost:.2f} ({price}), without the stages before"
    if found.num_to_train:
        yield f"disk: {_disk_line(found)}"


def model_lines(sweep: Sweep) -> Iterator[str]:
    """Where each model that is used as it is found lies, or that it has to be downloaded."""
    for field, section in (("policy", sweep.spec.policy), ("reward", sweep.spec.reward)):
        if not isinstance(section, ModelSection) or section.model.startswith(BUILTIN):
            continue
        folder = model_folder(model_source(section))
        if folder is None or not has_weights(folder):
            yield f"{field} {section.model}: not on this machine; it is downloaded"
        else:
            yield f"{field} {section.model}: {readable_bytes(disk_bytes(folder))} on this machine"


def _time_line(found: Estimate) -> str:
    if found.time is None or found.trial_hours is None:
        return (
            "not known, because no trial of this policy, trained like this (LoRA or all weights), "
            "has run in this store; run a grid of one first, and plan again"
        )
    each = f"{found.time.train_s:.3g} s to train and {found.time.evaluation_s:.3g} s to evaluate"
    based = f"{each}, {found.time.basis}"
    if found.gpu_hours is None:
        return f"{_duration(found.trial_hours)} of trials, one after the other ({based})"
    at_most = "at most " if found.at_most else ""
    basis = f", {found.share_basis}" if found.share_basis else ""
    share = f"{found.gpus_per_trial:g} GPU a trial{basis}"
    return f"{at_most}{found.gpu_hours:.2f} GPU-hours of trials ({share}; {based})"


def _disk_line(found: Estimate) -> str:
    free = "" if found.free_bytes is None else f"; {readable_bytes(found.free_bytes)} free"
    if found.size is None or found.weights_bytes is None:
        return f"not known, because {found.size_basis}{free}"
    each = f"{readable_bytes(found.size.weights_bytes)} a trial, {found.size_basis}"
    line = f"{readable_bytes(found.weights_bytes)} of weights ({each})"
    if found.checkpoint_bytes:
        line += f", and while a trial runs {readable_bytes(found.checkpoint_bytes)} of checkpoints"
    return line + free


def _duration(hours: float) -> str:
    minutes = hours * 60
    return (
        f"{minutes * 60:.0f} s"
        if minutes < 2
        else (f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} hours")
    )


def readable_bytes(num: float) -> str:
    """Bytes with a decimal unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num < 1000:
            return f"{num:.3g} {unit}"
        num /= 1000
    return f"{num:.3g} TB"
