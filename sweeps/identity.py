"""Hashes of everything a result depends on: fingerprints of stages and evaluations, and trial IDs.

A fingerprint is the SHA-256 of canonical JSON with: the fields of the stage's section that affect
the result, the fingerprints of the stages it reads, the identities of inputs outside the spec
(`Inputs`), and the version of the stage's code, bumped by hand when its output changes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefsweep.sweeps.entry import ARTEFACTS
from prefsweep.sweeps.functions import function_file
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.spec import (
    CallableReward,
    ChatSpec,
    FirstTokens,
    Reward,
    Section,
    SweepSpec,
)

STAGE_VERSIONS: Mapping[str, int] = {
    "policy": 2,
    "reward": 1,
    "prompts": 3,
    "eval_prompts": 3,
    "completions": 4,
    "scores": 2,
    "pairs": 2,
    "reference": 5,
    "trial": 5,
    "evaluation": 7,
    "entry": 2,
}
"""Versions of the stages' code, and of the code that reads data given by `entry`. Bump one when its
output for the same inputs changes."""


@dataclass(frozen=True)
class Inputs:
    """Identities of inputs that the spec only names (commit or content hash): models, data, and the
    file of a reward function."""

    policy: str
    policy_corpus: str
    reward: str
    reward_corpus: str
    prompts: str
    entry: str = ""
    quarantined: Mapping[str, Sequence[str]] = field(
        default_factory=dict[str, list[str]], hash=False
    )
    """Stage -> IDs of prompts that it skips, because they kill every worker."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(stage: str, parts: Mapping[str, Any]) -> str:
    """64 hex digits for `stage` and everything its output depends on."""
    document = {"stage": stage, "version": STAGE_VERSIONS[stage], **parts}
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()


class Fingerprints:
    """All identities of a sweep, computed without running a stage or reading a file."""

    def __init__(self, spec: SweepSpec, inputs: Inputs) -> None:
        self._spec = spec
        self.parts: dict[str, dict[str, Any]] = {}
        """Stage -> the parts that its fingerprint is made of, to explain why one changed."""
        self._inputs = inputs
        self._entered = None if spec.entry is None else ARTEFACTS[spec.entry.stage]
        policy, reward = spec.policy, spec.reward
        self.policy = self._stage(
            "policy", section=_fields(policy), weights=inputs.policy, corpus=inputs.policy_corpus
        )
        self._scoring = None if reward is None else _scoring(reward)
        training = None if reward is None else _fields(reward).get("train")
        self.reward = self._stage(
            "reward", training=training, weights=inputs.reward, corpus=inputs.reward_corpus
        )
        self.prompts = self._enterable("prompts", self._prompts_parts)
        self.completions = self._enterable(
            "completions",
            lambda: {
                "section": _fields(spec.generation),
                "prompts": self.prompts,
                "policy": self.policy,
            },
        )
        self.scores = self._enterable(
            "scores",
            lambda: {
                "section": self._scoring,
                "completions": self.completions,
                "reward": self.reward,
            },
        )
        self.pairs = self._enterable(
            "pairs", lambda: {"section": _fields(spec.pairs), "scores": self.scores}
        )
        self.eval_prompts = self._stage("eval_prompts", **self._eval_prompts_parts())
        training = spec.training
        tokenization = {
            "max_length": training.max_length,
            "max_prompt_length": training.max_prompt_length,
            "eos": training.eos,
        }
        half = training.autocast(spec.policy.dtype)
        if half is not None:
            tokenization["autocast"] = half
        self.reference = self._stage(
            "reference", section=tokenization, pairs=self.pairs, policy=self.policy
        )

    def trial_id(self, trial: TrialSpec) -> str:
        """12 hex digits for everything that determines the trial's weights."""
        return fingerprint("trial", self.trial_parts(trial))[:12]

    def trial_parts(self, trial: TrialSpec) -> dict[str, Any]:
        """The parts that the trial's ID is made of."""
        training = self._spec.training
        section = _fields(training, _NOT_WEIGHTS)
        if training.max_steps is not None:
            del section["num_train_epochs"]
        unit = "batch_size" if training.prompts_per_batch is None else "prompts_per_batch"
        size = training.prompts_per_batch or training.per_device_train_batch_size
        section[unit] = size * training.gradient_accumulation_steps
        if training.prompts_per_batch is not None:
            del section["order"]
        return {"training": section, "trial": _fields(trial), "reference": self.reference}

    @property
    def untrained(self) -> str:
        """The fingerprint of the evaluation of the policy before training."""
        return self.evaluation("untrained")

    def evaluation(self, trial_id: str) -> str:
        """The fingerprint of one trial's evaluation; "untrained" is the policy before training."""
        return fingerprint("evaluation", self.evaluation_parts() | {"trial_id": trial_id})

    def evaluation_parts(self) -> dict[str, Any]:
        """The parts of every evaluation's fingerprint, except the trial ID."""
        # prompts are quarantined by the evaluation of the untrained policy, which runs first
        left_out = self._inputs.quarantined.get("untrained")
        return ({"quarantined": sorted(left_out)} if left_out else {}) | {
            "section": _fields(self._spec.evaluation, _NOT_SAMPLES),
            "eval_prompts": self.eval_prompts,
            "reward": self.reward,
            "scoring": self._scoring,
            "policy": self.policy,
        }

    def _prompts_parts(self) -> dict[str, Any]:
        prompts = self._spec.prompts
        assert prompts is not None
        fixed_train = prompts.num_train is not None
        tokenizer = self.policy if isinstance(prompts.take, FirstTokens) else None
        drop = {"path", "label_column", "num_eval"} if fixed_train else {"path", "label_column"}
        return {
            "section": _fields(prompts, drop),
            "source": self._inputs.prompts,
            "tokenizer": tokenizer,
        }

    def _eval_prompts_parts(self) -> dict[str, Any]:
        prompts, pairs = self._spec.prompts, self._spec.pairs
        entered = {} if self._entered is None else {"entry": getattr(self, self._entered)}
        if prompts is not None:
            section = _fields(prompts, {"path", "label_column"})
            return self._prompts_parts() | {"section": section} | entered
        rule = {"seed": pairs.seed, "test_fraction": pairs.test_fraction}
        return entered | {"split": rule, "max_prompts": self._spec.evaluation.max_prompts}

    def _enterable(self, name: str, parts: Callable[[], dict[str, Any]]) -> str:
        """The fingerprint of a stage whose output may come from `entry` instead. Stages before the
        entry have none ("")."""
        entry = self._spec.entry
        if entry is None or (self._entered in self.parts):
            return self._stage(name, **parts())
        if name != self._entered:
            return ""
        pairs = self._spec.pairs
        rule: dict[str, Any] = {"seed": pairs.seed, "test_fraction": pairs.test_fraction}
        if pairs.min_margin:
            rule["min_margin"] = pairs.min_margin
        data = {
            "source": self._inputs.entry,
            "config": entry.config,
            "split": entry.split,
            "columns": entry.column_names,
            "reader": STAGE_VERSIONS["entry"],
        }
        return self._stage(name, entry=data, **({"split": rule} if name == "pairs" else {}))

    def _stage(self, name: str, **parts: Any) -> str:
        left_out = self._inputs.quarantined.get(name)
        if left_out:
            parts["quarantined"] = sorted(left_out)
        self.parts[name] = parts
        return fingerprint(name, parts)


_NOT_SAMPLES = {"eval_steps", "max_prompts", "confirm_best"}
_NOT_WEIGHTS = {
    "per_device_train_batch_size",
    "prompts_per_batch",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "packing",
    "fuse",
    "logging_steps",
    "save_steps",
    "max_length",
    "max_prompt_length",
    "eos",
}
"""Training fields that do not affect the weights, or are in the reference's fingerprint."""


def _fields(
    section: Section | TrialSpec, drop: set[str] | frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The section as JSON, without `drop` and without paths (identities of inputs replace them)."""
    fields = section.model_dump(mode="json", exclude=set(drop))
    for name in ("model", "revision"):
        fields.pop(name, None)
    if fields.get("chat") and section.chat.date == ChatSpec().date:  # pyright: ignore
        del fields["chat"]["date"]  # added later; sweeps that do not set it keep their identities
    for child in ("sft", "train"):
        if fields.get(child):
            fields[child]["corpus"].pop("path", None)
            if child == "sft":
                fields[child]["corpus"].pop("label_column", None)
    return fields


def _scoring(reward: Reward) -> dict[str, Any]:
    """The fields that determine scores, without training; for a function in a file, only its name
    is included."""
    fields = _fields(reward, {"train"})
    if isinstance(reward, CallableReward) and function_file(reward):
        fields["function"] = reward.function.rpartition(":")[2]  # Inputs.reward has the content
    return fields


def needs_making(spec: SweepSpec) -> dict[str, bool]:
    """Whether the sweep makes the policy and the reward model, or uses existing ones."""
    policy, reward = spec.policy, spec.reward
    return {
        "policy": policy.sft is not None
        or policy.gguf_file is not None
        or policy.model.startswith("builtin:"),
        "reward": reward is not None
        and reward.type == "classifier"
        and (reward.train is not None or reward.model.startswith("builtin:")),
    }
