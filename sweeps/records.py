"""The records that travel between the stages: plain frozen dataclasses, one row each.

They hold no behaviour and no paths. Log-probabilities are natural logarithms (nats).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.same_prompt import canonical_prompt


class Stage(StrEnum):
    """The stages of a sweep, in order."""

    POLICY = "policy"
    REWARD = "reward"
    PROMPTS = "prompts"
    COMPLETIONS = "completions"
    SCORES = "scores"
    PAIRS = "pairs"
    REFERENCE = "reference"
    UNTRAINED = "untrained"
    TRIALS = "trials"
    REPORT = "report"


Split = Literal["train", "test"]
DROPPED = "dropped: "
"""Beginning of a note that counts what a stage has left out, and why."""
Metrics = dict[str, float | None]
"""Metric name to value; None where the metric does not apply (no reward, no untrained policy)."""
NOTED = "noted: "
"""How those notes of a stage begin that are logged when it is done."""


def prompt_id(text: str) -> str:
    """Identity of a prompt: the first 16 hex digits of the SHA-256 of its canonical UTF-8 text."""
    return hashlib.sha256(canonical_prompt(text).encode()).hexdigest()[:16]


Errored = Literal["retry", "restart", "resume", "skip"]
"""What becomes of failed trials: those whose failure may pass are retried; or all of them restart
from scratch, or resume from their newest checkpoint, or are left."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt text."""

    prompt_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """One candidate completion of a prompt; `finish_reason` is "eos" or "length".

    `token_ids` are those that were sampled, with the one that ended them; None for a text that
    was entered, or was made before they were kept.
    """

    prompt_id: str
    sample_idx: int
    prompt: str
    text: str
    finish_reason: str
    token_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """A completion with its reward-model score (higher is better)."""

    prompt_id: str
    sample_idx: int
    prompt: str
    text: str
    finish_reason: str
    score: float
    token_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of one prompt, the preferred one first (Hugging Face preference format).

    The scores are None where the pair was entered without them, the token ids where the texts are
    not sampled ones.
    """

    pair_id: str
    prompt_id: str
    split: Split
    prompt: str
    chosen: str
    rejected: str
    chosen_score: float | None
    rejected_score: float | None
    chosen_finish_reason: str
    rejected_finish_reason: str
    chosen_token_ids: list[int] | None = None
    rejected_token_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """A pair as token ids, with the reference's log-probability of every completion token.

    `ref_chosen_token_logps[i]` is log pi_ref(chosen_ids[i] | prompt_ids, chosen_ids[:i]), fp32.
    """

    pair_id: str
    prompt_id: str
    split: Split
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    ref_chosen_token_logps: list[float]
    ref_rejected_token_logps: list[float]


@dataclass(frozen=True, slots=True)
class EvaluationSample:
    """One held-out completion of a policy.

    `kl` is the sum over positions of the full-vocabulary KL(policy || reference), nats;
    `predictive_entropy` the mean over positions of the policy's entropy, nats;
    `ref_logp` the reference's log-probability of the completion, nats.
    """

    prompt_id: str
    sample_idx: int
    prompt: str
    text: str
    finish_reason: str
    num_tokens: int
    reward: float | None
    kl: float
    predictive_entropy: float
    ref_logp: float


class Status(StrEnum):
    """Where a stage or a trial stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


FailureKind = Literal["deterministic", "transient", "out_of_memory"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stage or trial failed: one line, the remote traceback, what to do about it, and where
    the trial's own log is."""

    kind: FailureKind
    message: str
    traceback: str = ""
    advice: str = ""
    log_path: str = ""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One row of the results: a trial, or the untrained policy (`trial` is None)."""

    trial_id: str
    name: str
    trial: TrialSpec | None
    status: Status
    metrics: Metrics = field(default_factory=dict[str, float | None])
    train_seconds: float | None = None
    failure: Failure | None = None
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    samples: list[EvaluationSample] = field(default_factory=list[EvaluationSample])
    evaluate_seconds: float | None = None
    found: bool = False
    """Whether another sweep had trained it before this one began."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """A finished stage as the report shows it: rows made, seconds of work, and notes.

    `notes` are counts worth showing, such as {"dropped: tied scores": 12}.
    """

    name: str
    fingerprint: str
    rows: int
    seconds: float
    notes: dict[str, float] = field(default_factory=dict[str, float])
    found: bool = False
    """Whether another sweep had made it before this one began."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values of each series lie between `edges[i]` and `edges[i + 1]` (the last edge is
    inside)."""

    edges: list[float]
    counts: dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the preference data looks like; None and [] where its stage is not finished."""

    scores: Histogram | None = None
    """Rewards of all completions, and of the chosen and the rejected ones."""
    margins: Histogram | None = None
    """Reward of the chosen minus reward of the rejected completion of a pair."""
    lengths: Histogram | None = None
    """Tokens of the chosen and the rejected completions."""


@dataclass(frozen=True, slots=True)
class SweepResults:
    """Everything a report is made of. `results[0]` is the untrained policy once it is evaluated."""

    sweep: str
    spec: dict[str, object]
    stages: list[StageResult]
    results: list[TrialResult]
    environment: dict[str, str]
    """Versions and machines that made the results: name to value."""
    data: DataFacts = field(default_factory=DataFacts)
    missing: list[str] = field(default_factory=list[str])
    """Stages that are not finished."""
    commands: list[str] = field(default_factory=list[str])
    """What was typed to run the sweep, its overrides with it."""
    quarantined: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    """Stage -> id and text of the prompts that it leaves out, because they end their workers."""


@dataclass(frozen=True, slots=True)
class StageStatus:
    """How far a stage is: `num_done` of `num_total` units (shards, or 1 of 1).

    `rows` of a stage that is not finished are those of its finished shards.
    """

    name: str
    status: Status
    path: str
    rows: int | None = None
    seconds: float | None = None
    num_done: int = 0
    num_total: int | None = None
    rows_per_s: float | None = None
    """Of a running sharded stage, since its driver started."""
    eta_s: float | None = None
    """Seconds until it is done, at that rate."""


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """How far a trial is; `metrics` are its newest training metrics, or the final evaluation."""

    trial_id: str
    name: str
    status: Status
    path: str
    step: int = 0
    max_steps: int | None = None
    seconds: float | None = None
    step_seconds: float | None = None
    """Of a running one: its pace since it began, or went on from a checkpoint."""
    metrics: Metrics = field(default_factory=dict[str, float | None])
    failure: Failure | None = None
    attempts: int = 0
    """How often it was begun."""
    halvings: int = 0
    """How often its micro-batch was halved, because it did not fit the memory."""


@dataclass(frozen=True, slots=True)
class DriverStatus:
    """The process that runs a sweep, or died while it ran it; `since` is seconds since 1970."""

    host: str
    pid: int
    since: float
    alive: bool
    responding: bool = True
    """False where its process is there but stopped (`kill -STOP`)."""


@dataclass(frozen=True, slots=True)
class SweepStatus:
    """What the store knows of a sweep at one moment."""

    sweep: str
    stages: list[StageStatus]
    trials: list[TrialStatus]
    elapsed_s: float | None = None
    eta_s: float | None = None
    driver: DriverStatus | None = None
    """None where nobody runs the sweep."""
    quarantined: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Stage -> ids of prompts that are left out there."""
    storage: str | None = None
    """The store it was read from."""
