"""Evaluates policies in a worker: the untrained policy (a task) and those of trials, equally."""

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
from prefsweep.orchestrator.tasks.cache import WorkerCache
from prefsweep.orchestrator.tasks.shards import reward_named
from prefsweep.sweeps.errors import StopRequested
from prefsweep.sweeps.records import EvaluationSample, Metrics
from prefsweep.workers import tables

log = logging.getLogger(__name__)

ShouldStop = Callable[[], bool]
SMALLEST_TOKENS = 128
"""Tokens of a forward pass below which it is not halved further."""


@dataclass(frozen=True)
class EvaluateUntrained:
    """Evaluates the policy before training, in the same way as every trial."""

    sweep: Sweep
    name: str = UNTRAINED

    def done(self) -> bool:
        return self.sweep.store.manifest(self.sweep.evaluation_path(UNTRAINED)) is not None

    def run(self) -> None:
        cache = WorkerCache(self.sweep)
        policy = cache.policy()
        evaluate_and_publish(cache, UNTRAINED, policy, lambda: nullcontext(policy))

    def prompt_ids(self, index: int) -> list[str]:
        """The held-out prompts, any of which may kill the worker."""
        return [prompt.prompt_id for prompt in WorkerCache(self.sweep).eval_prompts]

    @property
    def loads(self) -> str:
        """The fields that name the models it runs, with their values."""
        scored_by = "" if self.sweep.spec.reward is None else f" and {reward_named(self.sweep)}"
        return f"{named_input(self.sweep.spec, 'policy')}{scored_by}"

    def load(self) -> tuple[Any, ...]:
        """What `work` needs: the worker's cache, then its models."""
        cache = WorkerCache(self.sweep)
        return cache, cache.policy(), cache.tokenizer, cache.scorer

    def work(
        self, worker: tuple[Any, ...], index: int, only: Sequence[str] | None = None
    ) -> list[EvaluationSample]:
        """Evaluate the policy on the held-out prompts in `only`, without publishing."""
        cache, policy, *_ = worker
        return evaluate_fitting(cache, policy, lambda: nullcontext(policy), only=only)[1]


def evaluate_and_publish(
    cache: WorkerCache,
    trial_id: str,
    policy: Any,
    reference: Any,
    beta: float = 0.0,
    should_stop: ShouldStop = lambda: False,
) -> Metrics:
    """Evaluate a policy on the held-out prompts and publish metrics.json and samples.parquet.

    Raises StopRequested, without publishing, after a stop request.
    """
    from prefsweep.workers.evaluate import margin_metrics
    from prefsweep.workers.statistics import paired_metrics

    sweep, started = cache.sweep, time.monotonic()
    metrics, samples, batching = evaluate_fitting(cache, policy, reference, should_stop)
    if trial_id == UNTRAINED:
        metrics |= paired_metrics(samples, samples) | {"margin_test": 0.0, "accuracy_test": None}
    else:
        metrics |= paired_metrics(samples, cache.untrained_samples)
        spec = sweep.spec
        as_trained = replace(batching, half=spec.training.autocast(spec.policy.dtype))
        metrics |= margin_metrics(policy, cache.pairs, beta, as_trained)
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
    cache: WorkerCache,
    policy: Any,
    reference: Any,
    should_stop: ShouldStop = lambda: False,
    only: Sequence[str] | None = None,
) -> tuple[Metrics, list[EvaluationSample], Any]:
    """Run `evaluate`, halving its passes if they do not fit the memory.

    Returns metrics, samples and the Batching. If `only` is given, only these held-out prompts are
    evaluated. The sampled tokens do not depend on the passes; the metrics do, by rounding.
    """
    from prefsweep.workers.evaluate import evaluate
    from prefsweep.workers.forward import BATCH_TOKENS, Batching
    from prefsweep.workers.memory import is_out_of_memory, release_memory

    def before_each() -> None:
        if should_stop():
            raise StopRequested("the evaluation was stopped; it will be repeated completely")

    spec, chat = cache.sweep.spec.evaluation, cache.sweep.spec.policy.chat
    packs = cache.sweep.spec.training.packing == "auto"
    prompts = [p for p in cache.eval_prompts if only is None or p.prompt_id in only]
    halvings = 0
    while True:
        batching = Batching(halvings, before_each, packs)
        models = (policy, reference, cache.tokenizer, prompts, cache.scorer)
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
    cache: WorkerCache, trial_id: str, policy: Any, beta: float, should_stop: ShouldStop
) -> None:
    """Evaluate a trial's trained policy and publish the results."""
    reference = _reference_of(cache, policy)
    evaluate_and_publish(cache, trial_id, policy, reference, beta, should_stop=should_stop)


def evaluate_now(cache: WorkerCache, model: Any) -> Metrics:
    """Evaluate during training; the model's mode and the tokenizer are restored."""
    tokenizer = cache.tokenizer
    padding_side, tokenizer.padding_side = tokenizer.padding_side, "left"
    was_training = model.training
    model.eval()
    try:
        return evaluate_fitting(cache, model, _reference_of(cache, model))[0]
    finally:
        model.train(was_training)
        tokenizer.padding_side = padding_side


def _reference_of(cache: WorkerCache, policy: Any) -> Any:
    """A policy's reference: its base with the adapter disabled, or the policy before training."""
    from peft import PeftModel

    if isinstance(policy, PeftModel):

        @contextmanager
        def adapter_off() -> Iterator[PeftModel]:
            with policy.disable_adapter():
                yield policy

        return adapter_off
    reference = cache.reference(policy.dtype)
    return lambda: nullcontext(reference)
