"""Made-up sweeps for the tests of the report; the numbers are plausible and always the same."""

import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from prefsweep.orchestrator.report.page import page_html
from prefsweep.sweeps.grid import GridBlock, TrialSpec, expand, trial_names
from prefsweep.sweeps.records import (
    EvaluationSample,
    Failure,
    Metrics,
    StageResult,
    Status,
    SweepResults,
    TrialResult,
)

GRID = (
    GridBlock(loss_type=("hinge", "sigmoid"), beta=(0.05, 0.2, 1.0), learning_rate=(5e-4,)),
    GridBlock(
        f_divergence_type=("js_divergence", "forward_kl"), beta=(0.1, 0.5), learning_rate=(5e-4,)
    ),
    GridBlock(
        f_divergence_type=("alpha_divergence",),
        alpha=(0.3, 0.7),
        beta=(0.1,),
        learning_rate=(5e-4,),
    ),
)
PROMPTS = (
    "This film is",
    "The second half of the",
    "My wife and I",
    "</script><script>alert(1)</script>",
    "\u202eright to left\u202c and zero\u200bwidth\u2028line & <b>bold</b>",
    "\u05d4\u05e1\u05e8\u05d8 \u05d4\u05d6\u05d4",
)
_WORDS = {
    False: ["slow", "flat", "uneven", "forgettable", "plodding", "script", "scene", "the", "and"],
    True: ["wonderful", "moving", "superb", "tender", "luminous", "story", "cast", "the", "and"],
}
_PULL_AND_GAIN = {
    "reverse_kl": (1.0, 1.0),
    "js_divergence": (0.8, 1.15),
    "forward_kl": (1.5, 0.6),
    "alpha_divergence": (0.9, 1.05),
}
TRACEBACK = (
    "\x1b[36mray::train()\x1b[39m (pid=71, ip=10.0.0.2)\n"
    '  File "train.py", line 88, in <module>\n    loss.backward()\n'
    "workers.NonFiniteLoss: loss is nan at step 20"
)


def sweep_results(
    trials: Sequence[TrialSpec] | None = None, *, seed: int = 0, num_prompts: int = 6
) -> SweepResults:
    """A finished sweep over `trials` (by default 12, one of them failed)."""
    specs = list(trials) if trials is not None else expand(GRID, [0])
    rng = random.Random(seed)
    results = [untrained(rng, num_prompts)]
    for index, (spec, name) in enumerate(zip(specs, trial_names(specs), strict=True)):
        if trials is None and name == "forward_kl-beta0.1":
            results.append(failed(spec, name, index))
        else:
            results.append(succeeded(spec, name, index, rng, num_prompts))
    return SweepResults(
        sweep="demo",
        spec={
            "name": "demo",
            "policy": {"model": "builtin:tiny-gpt2"},
            "reward": {"type": "classifier", "model": "builtin:tiny-classifier"},
            "evaluation": {"num_samples": 2, "max_new_tokens": 32},
        },
        stages=STAGES,
        results=results,
        environment={"python": "3.11.9", "torch": "2.9.0", "device": "cpu, 2 threads"},
    )


STAGES = [
    StageResult("policy", "a1" * 32, 3000, 41.2),
    StageResult("reward", "b2" * 32, 3000, 38.0),
    StageResult("prompts", "c3" * 32, 160, 0.1),
    StageResult("eval_prompts", "c4" * 32, 60, 0.1, {"dropped: duplicates": 3}),
    StageResult("completions", "d4" * 32, 640, 75.3, {"cut at the length limit": 212}),
    StageResult("scores", "e5" * 32, 640, 8.4),
    StageResult("pairs", "f6" * 32, 911, 0.3, {"dropped: tied scores": 12, "test pairs": 187}),
    StageResult("reference", "07" * 32, 911, 12.9),
]


def untrained(rng: random.Random, num_prompts: int = 6) -> TrialResult:
    return TrialResult(
        trial_id="untrained",
        name="untrained",
        trial=None,
        status=Status.SUCCEEDED,
        metrics=metrics(0.21, 0.0, 5.31) | {"win_rate": 0.5},
        samples=with_mean(0.21, samples(rng, 0.4, num_prompts)),
    )


def succeeded(
    spec: TrialSpec, name: str, index: int, rng: random.Random, num_prompts: int = 6
) -> TrialResult:
    pull, gain = _PULL_AND_GAIN[spec.f_divergence_type]
    if spec.loss_type == "hinge":
        pull, gain = 1.3, 0.8
    drift = pull * (1 - 0.5 * (spec.alpha or 0.0)) * 1.9 / (0.12 + spec.beta**0.8)
    reward = 0.21 + gain * 2.4 * (1 - math.exp(-drift / 4)) - 0.02 * drift + rng.gauss(0, 0.05)
    return TrialResult(
        trial_id=f"{index:012x}",
        name=name,
        trial=spec,
        status=Status.SUCCEEDED,
        metrics=metrics(reward, drift, 5.31 - 0.07 * drift / gain + rng.gauss(0, 0.05)),
        train_seconds=30 + 8 * rng.random(),
        history=history(rng, drift),
        samples=with_mean(reward, samples(rng, 0.4 + 0.2 * reward, num_prompts)),
    )


def failed(spec: TrialSpec, name: str, index: int) -> TrialResult:
    return TrialResult(
        trial_id=f"{index:012x}",
        name=name,
        trial=spec,
        status=Status.FAILED,
        failure=Failure(
            kind="deterministic",
            message="loss is nan at step 20",
            traceback=TRACEBACK,
            advice="Lower learning_rate or raise beta, then run again with --restart-errored.",
        ),
        history=[{"step": 10.0, "loss": 4.2, "grad_norm": 91.0}],
    )


def metrics(reward: float, kl: float, entropy: float) -> dict[str, float | None]:
    return {
        "reward_mean": reward,
        "reward_std": 1.1,
        "reward_ci_low": reward - 0.19,
        "reward_ci_high": reward + 0.2,
        "win_rate": 0.5 + 0.12 * reward,
        "win_rate_ci_low": 0.4 + 0.12 * reward,
        "win_rate_ci_high": 0.58 + 0.12 * reward,
        "entropy": entropy,
        "entropy_full": None,
        "predictive_entropy": 0.7 * entropy,
        "kl": kl,
        "distinct_1": 0.21,
        "distinct_2": 0.62,
        "ref_perplexity": 14.2 + kl,
        "completion_tokens": 30.5,
        "margin_test": 0.1 * kl,
        "accuracy_test": 0.5 + 0.02 * kl,
    }


def history(rng: random.Random, drift: float) -> list[dict[str, float]]:
    records: list[dict[str, float]] = []
    for step in range(5, 201, 5):
        done = 1 - math.exp(-step / 70)
        margin = 0.1 * drift * done + rng.gauss(0, 0.03)
        records.append(
            {
                "step": float(step),
                "epoch": step / 100,
                "loss": 0.693 - 0.25 * done + rng.gauss(0, 0.02),
                "grad_norm": 2.2 * math.exp(-step / 150) + 0.3 * rng.random(),
                "learning_rate": 5e-4 * (1 - step / 200),
                "rewards/margins": margin,
                "rewards/accuracies": min(1.0, 0.5 + 0.3 * done + rng.gauss(0, 0.03)),
            }
        )
    return records


def samples(rng: random.Random, positive: float, num_prompts: int) -> list[EvaluationSample]:
    rows: list[EvaluationSample] = []
    for index in range(num_prompts):
        prompt = PROMPTS[index % len(PROMPTS)]
        for sample_idx in range(2):
            text = " ".join(rng.choice(_WORDS[rng.random() < positive]) for _ in range(26))
            rows.append(
                EvaluationSample(
                    prompt_id=f"{index:016x}",
                    sample_idx=sample_idx,
                    prompt=prompt,
                    text=f" {text}",
                    finish_reason=rng.choice(["eos", "length"]),
                    num_tokens=30,
                    reward=rng.gauss(2.5 * positive - 1, 0.7),
                    kl=4 * positive,
                    predictive_entropy=3.1,
                    ref_logp=-88.0,
                )
            )
    return rows


def with_mean(mean: float, rows: list[EvaluationSample]) -> list[EvaluationSample]:
    """The samples with their rewards moved to this mean, which the metrics tell."""
    moved = mean - statistics.fmean(row.reward or 0.0 for row in rows)
    return [replace(row, reward=(row.reward or 0.0) + moved) for row in rows]


def tiny(start: Metrics, rewards_and_kls: list[tuple[float, float]]) -> SweepResults:
    """An untrained policy and sigmoid trials with beta 0.1, 0.2, ..."""
    results = [TrialResult("untrained", "untrained", None, Status.SUCCEEDED, start)]
    for index, (reward, kl) in enumerate(rewards_and_kls, start=1):
        spec = TrialSpec(loss_type="sigmoid", beta=index / 10, learning_rate=1e-5)
        metrics: Metrics = {"reward_mean": reward, "kl": kl}
        name = f"sigmoid-beta{index / 10}"
        results.append(TrialResult(f"{index:012x}", name, spec, Status.SUCCEEDED, metrics, 2.5))
    return SweepResults("tiny", {}, [], results, {})


# --- the page, as a browser takes it apart -------------------------------------------------------


class Page(HTMLParser):
    """Tags with attributes, visible text, and the content of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.raw:
            self.raw[self._inside][-1] += data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.raw["script"][0])


def page(results: SweepResults) -> Page:
    """The page, taken apart."""
    return Page(page_html(results))
