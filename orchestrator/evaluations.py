"""Evaluations in a worker: of the untrained policy (a task) and of a trial's, alike."""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from prefsweep.orchestrator.kept import Kept
from prefsweep.orchestrator.store import new_manifest
from prefsweep.orchestrator.sweep import UNTRAINED, Sweep
from prefsweep.sweeps.records import EvaluationSample, Metrics
from prefsweep.workers import tables


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


def evaluate_and_publish(
    kept: Kept, trial_id: str, policy: Any, reference: Any, beta: float = 0.0
) -> Metrics:
    """Evaluate a policy on the held-out prompts and publish metrics.json and samples.parquet."""
    from prefsweep.workers.evaluate import evaluate, margin_metrics
    from prefsweep.workers.statistics import paired_metrics

    sweep, started = kept.sweep, time.monotonic()
    metrics, samples = evaluate(
        policy,
        reference,
        kept.tokenizer,
        kept.eval_prompts,
        kept.scorer,
        sweep.spec.evaluation,
        sweep.spec.policy.chat,
    )
    if trial_id == UNTRAINED:
        metrics |= paired_metrics(samples, samples) | {"margin_test": 0.0, "accuracy_test": None}
    else:
        metrics |= paired_metrics(samples, kept.untrained_samples)
        metrics |= margin_metrics(policy, kept.pairs, beta)
    with sweep.store.staging() as folder:
        output = folder / "evaluation"
        output.mkdir()
        (output / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True))
        tables.write_records(samples, EvaluationSample, output / "samples.parquet")
        manifest = new_manifest(
            sweep.fingerprints.evaluation(trial_id), len(samples), time.monotonic() - started
        )
        sweep.store.publish(sweep.evaluation_path(trial_id), output, manifest)
    return metrics
