"""Evaluations in a worker: of the untrained policy (a task) and of a trial's, alike."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from prefsweep.orchestrator.state.inputs import named_input
from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep
from prefsweep.orchestrator.store.store import new_manifest
from prefsweep.orchestrator.tasks.cache import Kept
from prefsweep.orchestrator.tasks.shards import reward_named
from prefsweep.sweeps.errors import StopRequested
from prefsweep.sweeps.records import EvaluationSample, Metrics
from prefsweep.workers import tables

log = logging.getLogger(__name__)

ShouldStop = Callable[[], bool]
SMALLEST_TOKENS = 128
"""Of a forward pass that does not fit; from there on, halving is no use."""


@dataclass(frozen=True)
class EvaluateUntrained:
    """The policy before training, evaluated as every trial is."""

    sweep: Sweep
    name: str = UNTRAINED

    def done(self) -> bool:
        return self.sweep.store.manifest(self.sweep.evaluation_path(UNTRAINED)) is not None

    def run(self) -> None:
        kept = Kept(self.sweep)
        policy = kept.policy()
        evaluate_and_publish(kept, UNTRAINED, policy, lambda: nullcontext(policy))

    def prompt_ids(self, index: int) -> list[str]:
        """The held-out prompts, each of which may be what ends the worker."""
        return [prompt.prompt_id for prompt in Kept(self.sweep).eval_prompts]

    @property
    def loads(self) -> str:
        """The models that it runs."""
        scored_by = "" if self.sweep.spec.reward is None else f" and {reward_named(self.sweep)}"
        return f"{named_input(self.sweep.spec, 'policy')}{scored_by}"

    def load(self) -> tuple[Any, ...]:
        """What a worker needs to try some of them: what is kept, then its models."""
        kept = Kept(self.sweep)
        return kept, kept.policy(), kept.tokenizer, kept.scorer

    def work(
        self, worker: tuple[Any, ...], index: int, only: Sequence[str] | None = None
    ) -> list[EvaluationSample]:
        """Evaluate the policy on the held-out prompts in `only`; nothing is published."""
        kept, policy, *_ = worker
        return evaluate_fitting(kept, policy, lambda: nullcontext(policy), only=only)[1]


def evaluate_and_publish(
    kept: Kept,
    trial_id: str,
    policy: Any,
    reference: Any,
    beta: float = 0.0,
    should_stop: ShouldStop = lambda: False,
) -> Metrics:
    """Evaluate a policy on the held-out prompts and publish metrics.json and samples.parquet.

    Raises StopRequested, having published nothing, if it is to stop.
    """
    from prefsweep.workers.evaluate import margin_metrics
    from prefsweep.workers.statistics import paired_metrics

    sweep, started = kept.sweep, time.monotonic()
    metrics, samples, batching = evaluate_fitting(kept, policy, reference, should_stop)
    if trial_id == UNTRAINED:
        metrics |= paired_metrics(samples, samples) | {"margin_test": 0.0, "accuracy_test": None}
    else:
        metrics |= paired_metrics(samples, kept.untrained_samples)
        spec = sweep.spec
        as_trained = replace(batching, half=spec.training.autocast(spec.policy.dtype))
        metrics |= margin_metrics(policy, kept.pairs, beta, as_trained)
    with sweep.store.staging() as folder:
        output = folder / "evaluation"
        output.mkdir()
        (output / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True))
        tables.write_records(samples, EvaluationSample, output / "samples.parquet")
        manifest = new_manifest(
            sweep.fingerprints.evaluation(trial_id),
            len(samples),
            time.monotonic() - started,
            {"halvings": float(batching.halvings)} if batching.halvings else None,
        )
        sweep.store.publish(sweep.evaluation_path(trial_id), output, manifest)
    return metrics


def evaluate_fitting(
    kept: Kept,
    policy: Any,
    reference: Any,
    should_stop: ShouldStop = lambda: False,
    only: Sequence[str] | None = None,
) -> tuple[Metrics, list[EvaluationSample], Any]:
    """`evaluate`, in halved passes where they do not fit the memory: (metrics, samples, Batching).

    Of the held-out prompts, those in `only` where they are given.

    Which samples are drawn does not depend on the passes; their numbers do, by rounding.
    """
    from prefsweep.workers.evaluate import evaluate
    from prefsweep.workers.forward import BATCH_TOKENS, Batching
    from prefsweep.workers.memory import is_out_of_memory, release_memory

    def before_each() -> None:
        if should_stop():
            raise StopRequested("the evaluation was asked to stop; it is done again as a whole")

    spec, chat = kept.sweep.spec.evaluation, kept.sweep.spec.policy.chat
    packs = kept.sweep.spec.training.packing == "auto"
    prompts = [p for p in kept.eval_prompts if only is None or p.prompt_id in only]
    halvings = 0
    while True:
        batching = Batching(halvings, before_each, packs)
        models = (policy, reference, kept.tokenizer, prompts, kept.scorer)
        try:
            return *evaluate(*models, spec, chat, batching), batching
        except Exception as error:
            smallest = max(spec.batch_size, BATCH_TOKENS // SMALLEST_TOKENS) >> halvings <= 1
            if smallest or not is_out_of_memory(error):
                raise
            log.warning("the evaluation does not fit the memory (%s); halving its passes", error)
        release_memory()
        halvings += 1


def evaluate_trained(
    kept: Kept, trial_id: str, policy: Any, beta: float, should_stop: ShouldStop
) -> None:
    """Evaluate a trial's trained policy and publish what it gives."""
    reference = _reference_of(kept, policy)
    evaluate_and_publish(kept, trial_id, policy, reference, beta, should_stop=should_stop)


def evaluate_now(kept: Kept, model: Any) -> Metrics:
    """An evaluation on the way; leaves the trainer's mode and tokenizer as they were."""
    tokenizer = kept.tokenizer
    padding_side, tokenizer.padding_side = tokenizer.padding_side, "left"
    was_training = model.training
    model.eval()
    try:
        return evaluate_fitting(kept, model, _reference_of(kept, model))[0]
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
    reference = kept.reference(policy.dtype)
    return lambda: nullcontext(reference)
