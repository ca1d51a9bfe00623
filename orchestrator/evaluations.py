"""Evaluations in a worker: of the untrained policy (a task) and of a trial's, alike."""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefsweep.orchestrator.stages import read_records
from prefsweep.orchestrator.store import new_manifest
from prefsweep.orchestrator.sweep import UNTRAINED, Sweep
from prefsweep.sweeps.records import EvaluationSample, Metrics, Prompt, TokenizedPair
from prefsweep.workers import tables

if TYPE_CHECKING:
    from prefsweep.workers.score import Scorer


@dataclass(frozen=True)
class EvaluateUntrained:
    """The policy before training, evaluated as every trial is."""

    sweep: Sweep
    name: str = UNTRAINED

    def done(self) -> bool:
        return self.sweep.store.manifest(self.sweep.evaluation_path(UNTRAINED)) is not None

    def run(self) -> None:
        from prefsweep.workers.models import load_policy, load_tokenizer

        source = self.sweep.policy_source()
        policy = load_policy(source)
        evaluate_and_publish(
            self.sweep, UNTRAINED, policy, lambda: nullcontext(policy), load_tokenizer(source)
        )


def scorer_of(sweep: Sweep) -> "Scorer | None":
    """What scores the samples; None for a sweep without a reward."""
    from prefsweep.workers.score import make_scorer

    reward = sweep.spec.reward
    return (
        None
        if reward is None
        else make_scorer(reward, sweep.reward_source(), sweep.spec.policy.chat)
    )


def evaluate_and_publish(
    sweep: Sweep, trial_id: str, policy: Any, reference: Any, tokenizer: Any, beta: float = 0.0
) -> Metrics:
    """Evaluate a policy on the held-out prompts and publish metrics.json and samples.parquet."""
    from prefsweep.workers.evaluate import evaluate, margin_metrics, win_metrics

    started = time.monotonic()
    scorer = scorer_of(sweep)
    prompts = read_records(sweep, "eval_prompts", Prompt)
    metrics, samples = evaluate(
        policy,
        reference,
        tokenizer,
        prompts,
        scorer,
        sweep.spec.evaluation,
        sweep.spec.policy.chat,
    )
    if trial_id == UNTRAINED:
        metrics |= win_metrics(samples, samples) | {"margin_test": 0.0, "accuracy_test": None}
    else:
        untrained = sweep.store.fetch(sweep.evaluation_path(UNTRAINED)) / "samples.parquet"
        metrics |= win_metrics(samples, tables.read_records(EvaluationSample, [untrained]))
        pairs = read_records(sweep, "reference", TokenizedPair)
        metrics |= margin_metrics(policy, pairs, beta)
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
