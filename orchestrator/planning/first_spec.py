"""Writes a first spec, as commented YAML, for the user's data, policy and reward.

The sweep is small but useful: three trials, few prompts and steps.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefsweep.sweeps.schema import EDITOR_LINE
from prefsweep.workers.inspection import Found
from prefsweep.workers.locations import BUILTIN

BUILTIN_TOKENS = 256
"""Maximum input of the built-in models, tokens."""
CHARS_PER_TOKEN = 3
"""Characters per token; a low estimate, so that lengths in tokens are large enough."""
MAX_TRAIN, MAX_EVAL = 96, 32
"""Maximum number of training and held-out prompts."""
MAX_STEPS, BATCH_SIZE = 30, 8
_PLAIN = re.compile(r"[A-Za-z./_~][\w./@+~-]*")
_NOT_TEXT = {"null", "true", "false", "~"}


@dataclass(frozen=True)
class FirstSweep:
    """The choices behind a first spec."""

    name: str
    policy: str
    chat: bool
    reward: Mapping[str, Any] | None
    """The reward section, without the training of built-in models."""
    found: Found | None
    """The inspected data; None for the built-in prompts."""


def write_spec(first: FirstSweep) -> str:
    """The spec as YAML."""
    blocks = [_head(first), _policy(first), _reward(first), _data(first), _sizes(first)]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def described(found: Found) -> str:
    """What the data is, in one line."""
    kind = {"pairs": "pairs", "prompts": "prompts"}.get(found.stage, "completions")
    of_prompts = "" if found.stage == "prompts" else f" of {found.num_prompts:,} prompts"
    parts = [f"{found.num_rows:,} {kind}{of_prompts}"]
    if found.with_scores:
        parts.append(f"{found.with_scores:,} with scores")
    parts.append("chat messages" if found.chat else "plain text")
    lengths = f"prompts of up to {found.prompt_chars:,} characters"
    if found.answer_chars:
        lengths += f", answers of up to {found.answer_chars:,}"
    return f"{', '.join(parts)}; 95% have {lengths}"


def _head(first: FirstSweep) -> list[str]:
    lines = [
        EDITOR_LINE,
        "# Written by `prefsweep init`; `prefsweep explain FIELD` explains a field.",
    ]
    if first.found is not None:
        lines.append(f"# The data: {described(first.found)}.")
    return [*lines, f"name: {_yaml(first.name)}"]


def _policy(first: FirstSweep) -> list[str]:
    lines = [
        "# The model that is trained, as it is before; it is also the reference.",
        "policy:",
        f"  model: {_yaml(first.policy)}",
    ]
    if first.chat:
        lines.append("  chat: {}  # prompts are messages, in the chat template of the tokenizer")
    if first.policy.startswith(BUILTIN):
        lines += [
            "  # Built-in models have random weights: it is trained on the built-in reviews first.",
            "  sft: {corpus: {type: builtin, num_texts: 1200}, num_train_epochs: 2,",
            "        learning_rate: 5e-3, warmup_steps: 30, max_length: 64}",
        ]
    return lines


def _reward(first: FirstSweep) -> list[str]:
    if first.reward is None:
        return [
            "# Without a reward, trials are compared by KL and by accuracy on held-out pairs.",
            "# reward: {type: callable, function: rewards.py:judge}",
        ]
    lines = ["# What scores completions; higher is better."]
    section = {key: value for key, value in first.reward.items() if key != "train"}
    if "train" not in first.reward:
        return [*lines, f"reward: {_yaml(section)}"]
    return [
        *lines,
        "reward:",
        *(f"  {key}: {_yaml(value)}" for key, value in section.items()),
        "  # Built-in models have random weights: it is trained on the built-in reviews first.",
        "  train: {corpus: {type: builtin, num_texts: 2500}, num_train_epochs: 2,",
        "          learning_rate: 1e-3, warmup_steps: 20, max_length: 64}",
    ]


def _data(first: FirstSweep) -> list[str]:
    found = first.found
    if found is None:
        return ["prompts: {type: builtin, num_train: 96, num_eval: 32}", *_generation(first)]
    source = [f"  {key}: {_yaml(value)}" for key, value in found.source.items()]
    if not _is_entered(first):
        num_eval = max(1, min(MAX_EVAL, found.num_prompts // 4))
        num_train = min(MAX_TRAIN, found.num_prompts - num_eval)
        kind = "file" if "path" in found.source else "dataset"
        return [
            f"# {num_train} prompts to make pairs from, and {num_eval} that are held out.",
            "prompts:",
            f"  type: {kind}",
            *source,
            f"  column: {_yaml(found.prompt_column)}",
            f"  num_train: {num_train}",
            f"  num_eval: {num_eval}",
            *_generation(first),
        ]
    lines = [f"# Starts with your {found.stage}.", "entry:", f"  stage: {found.stage}", *source]
    if found.columns:
        lines.append(f"  columns: {_yaml(dict(found.columns))}  # our names: yours")
    if found.stage == "prompts":
        lines += _generation(first)
    rule = "" if found.stage == "pairs" else "rule: all, "
    return [
        *lines,
        "# Prompts whose pairs are held out, by a hash of the prompt.",
        f"pairs: {{{rule}test_fraction: {found.test_fraction}}}",
    ]


def _generation(first: FirstSweep) -> list[str]:
    return [
        "# Candidate completions, from which pairs are made.",
        f"generation: {{num_completions: 4, max_new_tokens: {_new_tokens(first)}, top_p: 0.95}}",
        *([] if _is_entered(first) else ["pairs: {rule: all, test_fraction: 0.2}"]),
    ]


def _is_entered(first: FirstSweep) -> bool:
    """Whether the data is read by an `entry` section instead of a `prompts` section."""
    found = first.found
    return found is not None and not (found.stage == "prompts" and found.prompt_column)


def _sizes(first: FirstSweep) -> list[str]:
    is_builtin = first.policy.startswith(BUILTIN)
    most = f"max_prompts: {MAX_EVAL}, " if _is_entered(first) else ""
    lines = [
        "# Short on purpose: remove max_steps to train for num_train_epochs.",
        "training:",
        f"  max_steps: {_steps(first.found)}",
        f"  per_device_train_batch_size: {BATCH_SIZE}  # pairs",
        f"  max_length: {_max_length(first)}  # tokens of prompt and completion",
        "  logging_steps: 5",
    ]
    if not is_builtin:
        lines.append("  lora: {r: 8, lora_alpha: 16}  # remove it to train all weights")
    return [
        *lines,
        "",
        "# Every combination is a trial. Few steps want a high learning rate; lower it for longer",
        "# training.",
        "grid:",
        "  - {loss_type: sigmoid, beta: [0.05, 0.1, 0.5], learning_rate: 1e-3}",
        "  # - {loss_type: hinge, beta: [0.05, 0.1, 0.5], learning_rate: 1e-3}",
        "# seeds: [0, 1]  # more training seeds tell luck from effect",
        "",
        "# The same for every trial and for the policy before training.",
        f"evaluation: {{{most}max_new_tokens: {_new_tokens(first)}}}",
    ]


def _steps(found: Found | None) -> int:
    """Steps for about three passes over the pairs, at most MAX_STEPS."""
    if found is None or found.stage != "pairs":
        return MAX_STEPS
    pairs = found.num_rows * (1 - found.test_fraction)
    return max(10, min(MAX_STEPS, math.ceil(3 * pairs / BATCH_SIZE)))


def _new_tokens(first: FirstSweep) -> int:
    chars = first.found.answer_chars if first.found else 0
    most = 48 if first.policy.startswith(BUILTIN) else 128
    return min(most, max(16, _tokens(chars))) if chars else min(most, 64)


def _max_length(first: FirstSweep) -> int:
    found = first.found
    if found is None:
        return 128
    most = BUILTIN_TOKENS if first.policy.startswith(BUILTIN) else 1024
    answer = _tokens(found.answer_chars) if found.answer_chars else _new_tokens(first)
    return min(most, max(64, 64 * math.ceil((_tokens(found.prompt_chars) + answer) / 64)))


def _tokens(chars: int) -> int:
    return math.ceil(chars / CHARS_PER_TOKEN)


def _yaml(value: object) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_yaml(key)}: {_yaml(each)}' for key, each in value.items())}}}"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False)
