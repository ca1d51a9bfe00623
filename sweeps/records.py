"""The records that stages pass to each other: plain frozen dataclasses, one per row.

They have no methods and no paths. Log-probabilities are natural logarithms (nats).
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
"""Prefix of a note that counts the rows a stage has dropped, followed by the reason."""
Metrics = dict[str, float | None]
"""Metric name -> value; None if the metric does not apply (no reward, no untrained policy)."""
NOTED = "noted: "
"""Prefix of a note that is logged when its stage is finished."""


def prompt_id(text: str) -> str:
    """ID of a prompt: the first 16 hex digits of the SHA-256 of its canonical UTF-8 text."""
    return hashlib.sha256(canonical_prompt(text).encode()).hexdigest()[:16]


def hash_share(text: str) -> float:
    """A number in [0, 1) from the SHA-256 of a text, uniform over texts."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


Errored = Literal["retry", "restart", "resume", "skip"]
"""What to do with failed trials: retry those with a transient failure; or restart all from scratch,
resume all from their newest checkpoint, or skip all."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt text."""

    prompt_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """One candidate completion of a prompt; `finish_reason` is "eos" or "length".

    `token_ids` are the sampled tokens, including the end token; None for an entered text, and for
    one from a version that did not store them.
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

    The scores are None if the pair was entered without them; the token IDs are None if the texts
    were not sampled.
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
    """Status of a stage or a trial."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


FailureKind = Literal["deterministic", "transient", "out_of_memory"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stage or trial failed: a one-line message, the remote traceback, advice, and the path
    of the trial's log."""

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
    """Whether it was trained before this sweep first started (by another sweep)."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """A finished stage in the report: number of rows, seconds of work, and notes.

    `notes` are counts worth showing, such as {"dropped: tied scores": 12}.
    """

    name: str
    fingerprint: str
    rows: int
    seconds: float
    notes: dict[str, float] = field(default_factory=dict[str, float])
    found: bool = False
    """Whether it was made before this sweep first started (by another sweep)."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Number of values of each series from `edges[i]` up to `edges[i + 1]`; only the last bin
    includes its upper edge."""

    edges: list[float]
    counts: dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Distributions of the preference data; None if their stage is not finished."""

    scores: Histogram | None = None
    """Rewards of all completions, of the chosen and of the rejected ones."""
    margins: Histogram | None = None
    """Reward of the chosen minus reward of the rejected completion of a pair."""
    lengths: Histogram | None = None
    """Tokens of the chosen and the rejected completions."""


@dataclass(frozen=True, slots=True)
class SweepResults:
    """All data of a report. `results[0]` is the untrained policy, once it is evaluated."""

    sweep: str
    spec: dict[str, object]
    stages: list[StageResult]
    results: list[TrialResult]
    environment: dict[str, str]
    """Versions and machines that made the results: name -> value."""
    data: DataFacts = field(default_factory=DataFacts)
    missing: list[str] = field(default_factory=list[str])
    """Stages that are not finished."""
    commands: list[str] = field(default_factory=list[str])
    """Commands that ran the sweep, with their overrides."""
    quarantined: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    """Stage -> ID and text of the prompts that it skips, because they kill every worker."""


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Progress of a stage: `num_done` of `num_total` units (shards, or 1 of 1).

    `rows` of an unfinished stage are the rows of its finished shards.
    """

    name: str
    status: Status
    path: str
    rows: int | None = None
    seconds: float | None = None
    num_done: int = 0
    num_total: int | None = None
    rows_per_s: float | None = None
    """Mean rate of a running sharded stage since its driver started."""
    eta_s: float | None = None
    """Seconds until it is finished, at that rate."""


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """Progress of a trial; `metrics` are its newest training metrics, or the final evaluation."""

    trial_id: str
    name: str
    status: Status
    path: str
    step: int = 0
    max_steps: int | None = None
    seconds: float | None = None
    step_seconds: float | None = None
    """Mean seconds per step of a running trial since it was started or resumed."""
    metrics: Metrics = field(default_factory=dict[str, float | None])
    failure: Failure | None = None
    attempts: int = 0
    """Number of attempts so far."""
    halvings: int = 0
    """How often its micro-batch was halved because it did not fit the memory."""


@dataclass(frozen=True, slots=True)
class DriverStatus:
    """The process that runs a sweep, or died while running it; `since` is seconds since 1970."""

    host: str
    pid: int
    since: float
    alive: bool
    responding: bool = True
    """False if its process exists but is stopped (`kill -STOP`)."""


@dataclass(frozen=True, slots=True)
class SweepStatus:
    """Status of a sweep, as read from the store."""

    sweep: str
    stages: list[StageStatus]
    trials: list[TrialStatus]
    elapsed_s: float | None = None
    eta_s: float | None = None
    driver: DriverStatus | None = None
    """None if no driver holds the sweep's lease."""
    quarantined: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Stage -> IDs of prompts that it skips."""
    storage: str | None = None
    """The store that was read."""
