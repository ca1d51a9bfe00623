"""One trial from start to end, wherever it runs: train, publish, evaluate, publish, record.

Whatever happens ends in the trial's status.json; an exception never leaves this file except for a
worker that dies.
"""

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefsweep.orchestrator.evaluations import evaluate_and_publish
from prefsweep.orchestrator.kept import Kept
from prefsweep.orchestrator.store import new_manifest
from prefsweep.orchestrator.sweep import Sweep, Trial
from prefsweep.sweeps.errors import DamagedError, StoreError, SweepError
from prefsweep.sweeps.records import Failure, Metrics, Status

KEPT_CHECKPOINTS = 2


def run_trial(kept: Kept, trial: Trial) -> None:
    """Do what is missing of a trial: weights, then evaluation. Records failures, raises none."""
    sweep = kept.sweep
    log = TrialLog(sweep, trial)
    log.write(Status.RUNNING)
    try:
        _train_and_evaluate(kept, trial, log)
    except Exception as error:  # the trial's border: a failure is data, and others go on
        log.write(Status.FAILED, classify(error))
    else:
        log.write(Status.SUCCEEDED)
    finally:
        _release_memory()


def mark(sweep: Sweep, trial: Trial, status: Status, failure: Failure | None = None) -> None:
    """Record, from outside the trial, where it stands now; what it wrote itself is kept."""
    path = sweep.store.trial(trial.trial_id, "status.json")
    document = sweep.store.read_json(path) or {"name": trial.name, "started": time.time()}
    document |= {
        "status": status,
        "updated": time.time(),
        "failure": None if failure is None else asdict(failure),
    }
    sweep.store.write_json(path, document)


class TrialLog:
    """The trial's two files that grow: metrics.jsonl, the truth of its curves, and status.json."""

    def __init__(self, sweep: Sweep, trial: Trial) -> None:
        self._store, self._trial = sweep.store, trial
        self._started, self._step = time.time(), 0.0
        self._max_steps: float | None = None

    def restart(self, step: int, max_steps: float | None) -> None:
        """Keep the lines up to `step`, from where training goes on."""
        path = self._store.trial(self._trial.trial_id, "metrics.jsonl")
        kept = [r for r in parse_metrics(self._store.read(path)) if r["step"] <= step]
        self._store.write(path, b"".join(_line(record) for record in kept))
        self._step, self._max_steps = float(step), max_steps

    def report(self, record: dict[str, float]) -> None:
        """Append one line of metrics."""
        path = self._store.trial(self._trial.trial_id, "metrics.jsonl")
        self._store.append(path, _line(record))
        self._step = record["step"]

    def write(self, status: Status, failure: Failure | None = None) -> None:
        """Record where the trial stands."""
        document = {
            "status": status,
            "name": self._trial.name,
            "started": self._started,
            "updated": time.time(),
            "step": self._step,
            "max_steps": self._max_steps,
            "failure": None if failure is None else asdict(failure),
        }
        self._store.write_json(self._store.trial(self._trial.trial_id, "status.json"), document)


def classify(error: BaseException) -> Failure:
    """Whether retrying can help: memory and storage may be better next time, a NaN will not."""
    import torch

    message = (
        f"{type(error).__name__}: {error}" if not isinstance(error, SweepError) else str(error)
    )
    remote = "".join(traceback.format_exception(error))
    if isinstance(error, torch.OutOfMemoryError):
        advice = (
            "lower training.per_device_train_batch_size (and raise gradient_accumulation_steps), "
            "or give the trial more of a GPU (resources.gpus_per_trial)"
        )
        return Failure("out_of_memory", message, remote, advice)
    if isinstance(error, StoreError | ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    ):
        return Failure("transient", message, remote, "run the same command again")
    advice = "mend the cause, then run again with --restart-errored"
    return Failure("deterministic", message, remote, advice)


def parse_metrics(data: bytes | None) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl; a half-written last line is left out."""
    records: list[dict[str, float]] = []
    for line in (data or b"").decode(errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def _train_and_evaluate(kept: Kept, trial: Trial, log: TrialLog) -> None:
    """Do what is missing; weights that turn out to be damaged when they are read are made again."""
    store = kept.sweep.store
    weights = store.trial(trial.trial_id, "weights")
    while store.manifest(kept.sweep.evaluation_path(trial.trial_id)) is None:
        if store.manifest(weights) is None:
            _train(kept, trial, log)
        try:
            _evaluate(kept, trial)
        except DamagedError:
            if store.manifest(weights) is not None:  # something else was put aside
                raise


def _train(kept: Kept, trial: Trial, log: TrialLog) -> None:
    from prefsweep.workers.batches import max_steps
    from prefsweep.workers.train import Hooks, train

    sweep, started = kept.sweep, time.monotonic()
    store = sweep.store
    document = {
        "trial": trial.spec.model_dump(mode="json"),
        "parts": sweep.fingerprints.trial_parts(trial.spec),
    }
    store.write_json(store.trial(trial.trial_id, "trial.json"), document)
    step, checkpoint = newest_checkpoint(sweep, trial)
    log.restart(step, max_steps(sweep.spec.training, kept.pairs))
    log.write(Status.RUNNING)

    def report(record: dict[str, float]) -> None:
        log.report(record)
        log.write(Status.RUNNING)

    def on_step(step: int, model: Any) -> None:
        every = sweep.spec.evaluation.eval_steps
        if every is not None and step % every == 0:
            metrics = _evaluate_now(kept, model)
            numbers = {f"eval/{k}": v for k, v in metrics.items() if v is not None}
            log.report({"step": float(step), **numbers})

    hooks = Hooks(
        report=report,
        publish=lambda step, folder: _publish_checkpoint(sweep, trial, step, folder),
        on_step=on_step,
        resume_from=checkpoint,
    )
    with store.staging() as folder:
        output = folder / "weights"
        notes = train(
            trial.spec,
            sweep.spec.training,
            kept.policy(),
            kept.tokenizer,
            kept.pairs,
            output,
            hooks,
        )
        manifest = new_manifest(trial.trial_id, 1, time.monotonic() - started, notes)
        store.publish(store.trial(trial.trial_id, "weights"), output, manifest)
    store.delete(store.trial(trial.trial_id, "checkpoints"))


def newest_checkpoint(sweep: Sweep, trial: Trial) -> tuple[int, Path | None]:
    """Step and local folder of the newest checkpoint that is whole; (0, None) if there is none."""
    store = sweep.store
    for name in reversed(store.names(store.trial(trial.trial_id, "checkpoints"))):
        try:
            folder = store.fetch(store.trial(trial.trial_id, "checkpoints", name))
        except StoreError:
            continue
        return int(name.removeprefix("step-")), folder
    return 0, None


def _publish_checkpoint(sweep: Sweep, trial: Trial, step: int, folder: Path) -> None:
    import shutil

    store = sweep.store
    with store.staging() as staging:
        copy = staging / "checkpoint"
        # training_args.bin is a pickle that nothing needs
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("training_args.bin"))
        manifest = new_manifest(trial.trial_id, step, 0.0)
        store.publish(
            store.trial(trial.trial_id, "checkpoints", f"step-{step:06d}"), copy, manifest
        )
    for old in store.names(store.trial(trial.trial_id, "checkpoints"))[:-KEPT_CHECKPOINTS]:
        store.delete(store.trial(trial.trial_id, "checkpoints", old))


def _evaluate(kept: Kept, trial: Trial) -> None:
    from prefsweep.workers.models import load_trained

    store = kept.sweep.store
    weights = store.fetch(store.trial(trial.trial_id, "weights"))
    policy = load_trained(kept.sweep.policy_source(), weights, kept.policy)
    evaluate_and_publish(kept, trial.trial_id, policy, _reference_of(kept, policy), trial.spec.beta)


def _evaluate_now(kept: Kept, model: Any) -> Metrics:
    """An evaluation on the way; leaves the trainer's mode and tokenizer as they were."""
    from prefsweep.workers.evaluate import evaluate

    spec, tokenizer = kept.sweep.spec, kept.tokenizer
    padding_side, tokenizer.padding_side = tokenizer.padding_side, "left"
    was_training = model.training
    model.eval()
    try:
        return evaluate(
            model,
            _reference_of(kept, model),
            tokenizer,
            kept.eval_prompts,
            kept.scorer,
            spec.evaluation,
            spec.policy.chat,
        )[0]
    finally:
        model.train(was_training)
        tokenizer.padding_side = padding_side


def _reference_of(kept: Kept, policy: Any) -> Any:
    """The reference of a policy: its base with the adapter off, or the policy before training."""
    from peft import PeftModel

    if isinstance(policy, PeftModel):

        @contextmanager
        def adapter_off() -> Iterator[PeftModel]:
            with policy.disable_adapter():
                yield policy

        return adapter_off
    reference = kept.reference()
    return lambda: nullcontext(reference)


def _line(record: dict[str, float]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _release_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
