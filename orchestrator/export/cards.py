"""Writes the cards (README.md) of exported models and datasets.

The hub reads the YAML header, so it contains hub ids only; a base model or dataset from elsewhere
is named in the text. Reads no files.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import yaml

from prefsweep.orchestrator.text import DASH, counted, one_line, show
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import Metrics
from prefsweep.sweeps.spec import SweepSpec

Form = Literal["adapter", "merged", "full"]
"""LoRA weights alone, LoRA weights merged into their base, or all weights."""

PLACE = "path/to/this/folder"
"""Placeholder for the folder in the code that loads it."""

_ORDER = (
    "reward_mean",
    "reward_std",
    "win_rate",
    "kl",
    "entropy",
    "entropy_full",
    "predictive_entropy",
    "distinct_1",
    "distinct_2",
    "ref_perplexity",
    "completion_tokens",
    "margin_test",
    "accuracy_test",
)
_INTERVALS = {"reward_mean": "reward_ci", "win_rate": "win_rate_ci"}
"""Metric -> prefix of its 95% interval; the bounds end in "_low" and "_high"."""


@dataclass(frozen=True)
class PairFacts:
    """Size and sources of the preference data."""

    num_train: int
    num_test: int
    num_prompts: int
    hub_datasets: Sequence[str] = ()
    """Hub ids of the datasets of prompts, entry data and the policy's training texts."""


@dataclass(frozen=True)
class ModelFacts:
    """The content of a model's card."""

    spec: SweepSpec
    trial_id: str
    name: str
    trial: TrialSpec
    form: Form
    hub_base: tuple[str, str] | None
    """Hub id and commit of the adapter's base; None if the export contains the base."""
    base_id: str | None
    """Hub id of the model that the policy starts from, for the header."""
    pairs: PairFacts
    num_completions: int
    metrics: Metrics
    untrained: Metrics
    environment: Mapping[str, str]
    repo: str | None = None
    """Hub id the folder is pushed to."""


def model_card(facts: ModelFacts) -> str:
    """README.md of an exported model."""
    is_adapter = facts.form == "adapter"
    datasets = list(facts.pairs.hub_datasets)
    header = {
        **({"base_model": facts.base_id} if facts.base_id else {}),
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["prefsweep", "dpo", "trl", *(["lora"] if is_adapter else [])],
        **({"datasets": datasets} if datasets else {}),
    }
    kind = {
        "adapter": "A LoRA adapter",
        "merged": "A LoRA adapter merged into its base",
        "full": "A model with all weights trained",
    }[facts.form]
    return _document(
        header,
        f"# {facts.name}, from the sweep {facts.spec.name}",
        f"{kind}, by Direct Preference Optimization: trial {facts.trial_id} of a sweep run by "
        "prefsweep. The policy before training, which is also the reference, is "
        f"{_policy(facts.spec)}.",
        "## Grid point",
        _table(("setting", "value"), _grid_rows(facts)),
        "## Data",
        _pairs_text(facts.spec, facts.pairs),
        "## Evaluation",
        f"{counted(facts.num_completions, 'sampled completion')} of held-out prompts, the same "
        "prompts and sampling seeds for both; 95% intervals in brackets.",
        _table(("metric", "this model", "untrained policy"), _metric_rows(facts)),
        "## How to load",
        _code(_loading(facts)),
        *_loading_notes(facts),
        "## Versions",
        _versions(facts.environment),
    )


def dataset_card(
    spec: SweepSpec, pairs: PairFacts, environment: Mapping[str, str], repo: str | None = None
) -> str:
    """README.md of an exported preference dataset."""
    splits = [("train", pairs.num_train), ("test", pairs.num_test)]
    files = [
        {"split": split, "path": f"data/{split}-*.parquet"} for split, number in splits if number
    ]
    sources = list(pairs.hub_datasets)
    header = {
        "task_categories": ["text-generation"],
        "tags": ["prefsweep", "dpo", "trl", "preference"],
        **({"source_datasets": sources} if sources else {}),
        "configs": [{"config_name": "default", "data_files": files}],
    }
    return _document(
        header,
        f"# Preference pairs of the sweep {spec.name}",
        _pairs_text(spec, pairs),
        f"{_origin(spec)} All pairs of a prompt are in the same split.",
        "## Columns",
        _table(
            ("column", "meaning"),
            [
                ("prompt", "the prompt"),
                ("chosen, rejected", "completions, the one with the higher score first"),
                ("chosen_score, rejected_score", "their scores"),
                ("prompt_id", "first 16 hex digits of the SHA-256 of the prompt"),
                ("pair_id", "the prompt and which of its completions were compared"),
            ],
        ),
        "## How to load",
        _code(
            [
                "from datasets import load_dataset",
                "",
                f'pairs = load_dataset("{repo or PLACE}")',
            ]
        ),
        "## Versions",
        _versions(environment),
    )


# --- parts ---------------------------------------------------------------------------------------


def _grid_rows(facts: ModelFacts) -> list[tuple[str, str]]:
    trial, training = facts.trial, facts.spec.training
    unread = {"label_smoothing"} if trial.label_smoothing == 0 else set[str]()
    rows = trial.model_dump(mode="json", exclude=unread, exclude_none=True)
    if training.max_steps is None:
        rows["num_train_epochs"] = training.num_train_epochs
    else:
        rows["max_steps"] = training.max_steps
    size = training.prompts_per_batch or training.per_device_train_batch_size
    unit = "pairs" if training.prompts_per_batch is None else "prompts"
    rows["batch size"] = f"{size * training.gradient_accumulation_steps} {unit}"
    rows["max_length"] = training.max_length
    rows["optim"] = training.optim
    if training.lora is not None:
        rows["lora"] = ", ".join(
            f"{key} {_value(value)}" for key, value in training.lora.model_dump().items()
        )
    rows["dtype of the base"] = facts.spec.policy.dtype
    return [(key, _value(value)) for key, value in rows.items()]


def _metric_rows(facts: ModelFacts) -> list[tuple[str, str, str]]:
    bounds = {f"{prefix}_{end}" for prefix in _INTERVALS.values() for end in ("low", "high")}
    others = sorted((facts.metrics.keys() | facts.untrained.keys()) - set(_ORDER) - bounds)
    rows = [
        (name, _with_interval(facts.metrics, name), _with_interval(facts.untrained, name))
        for name in [*_ORDER, *others]
    ]
    return [row for row in rows if row[1:] != (DASH, DASH)]


def _with_interval(metrics: Metrics, name: str) -> str:
    prefix = _INTERVALS.get(name)
    low, high = metrics.get(f"{prefix}_low"), metrics.get(f"{prefix}_high")
    value = show(metrics.get(name))
    return value if low is None or high is None else f"{value} [{show(low)}, {show(high)}]"


def _pairs_text(spec: SweepSpec, pairs: PairFacts) -> str:
    return (
        f"{counted(pairs.num_train, 'training pair')} and {counted(pairs.num_test, 'test pair')} "
        f"from {counted(pairs.num_prompts, 'prompt')} (source: {_source(spec)}). "
        f"Reward: {_reward(spec)}."
    )


def _source(spec: SweepSpec) -> str:
    source: Any = spec.prompts if spec.entry is None else spec.entry
    if source is None or getattr(source, "type", None) == "unconditional":
        return "none"
    where = getattr(source, "dataset", None) or getattr(source, "path", None)
    return _name(where) if where else "texts that come with prefsweep"


def _origin(spec: SweepSpec) -> str:
    if spec.entry is None or spec.entry.stage == "prompts":
        return f"The completions were sampled from {_policy(spec)}."
    what = "pairs" if spec.entry.stage == "pairs" else "completions"
    return f"The {what} were given; they were not sampled for this sweep."


def _policy(spec: SweepSpec) -> str:
    trained = "" if spec.policy.sft is None else ", fine-tuned for this sweep first"
    return f"{_name(spec.policy.model)}{trained}"


def _reward(spec: SweepSpec) -> str:
    reward = spec.reward
    if reward is None:
        return "none"
    if reward.type == "classifier":
        trained = ", trained for this sweep" if reward.train is not None else ""
        return f"{reward.output} of {_text(reward.label)} by {_name(reward.model)}{trained}"
    if reward.type == "callable":
        return f"the function {_text(PurePath(reward.function).name)}"  # no path of this disk
    return "compound score of the VADER lexicon"


def _name(reference: str) -> str:
    """A hub id or built-in name unchanged; only the last part of a local path."""
    is_path = reference.startswith(("/", ".", "~")) or reference.count("/") > 1
    return _text(PurePath(reference).name if is_path else reference)


def _loading(facts: ModelFacts) -> list[str]:
    place, remote = facts.repo or PLACE, facts.spec.policy.trust_remote_code
    extra = ", trust_remote_code=True" if remote else ""
    if facts.form != "adapter":
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{place}"{extra})',
            f'tokenizer = AutoTokenizer.from_pretrained("{place}"{extra})',
        ]
    if facts.hub_base is not None:
        dtype = facts.spec.policy.dtype
        return [
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer",
            "",
            f'model = AutoPeftModelForCausalLM.from_pretrained("{place}", dtype="{dtype}"{extra})',
            f'tokenizer = AutoTokenizer.from_pretrained("{place}"{extra})',
        ]
    download = f'snapshot_download("{place}")' if facts.repo else f'"{place}"'
    return [
        *(["from huggingface_hub import snapshot_download"] if facts.repo else []),
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"folder = {download}",
        f'base = AutoModelForCausalLM.from_pretrained(f"{{folder}}/base"{extra})',
        "model = PeftModel.from_pretrained(base, folder)",
        f"tokenizer = AutoTokenizer.from_pretrained(folder{extra})",
    ]


def _loading_notes(facts: ModelFacts) -> list[str]:
    dtype = facts.spec.policy.dtype
    if facts.form == "merged" and dtype != "float32":
        return [f"The weights were merged in float32 and rounded to {dtype}."]
    if facts.form != "adapter":
        return []
    if facts.hub_base is not None:
        model, commit = facts.hub_base
        return [f"The adapter needs its base {model} at commit {commit}, downloaded with it."]
    return [
        "The base is part of this export, in base/. AutoPeftModelForCausalLM loads the folder in "
        "one call where it was exported, and only there: adapter_config.json names the base by its "
        "absolute path, because peft resolves no relative ones. `prefsweep export --merge` makes "
        "one self-contained model."
    ]


def _versions(environment: Mapping[str, str]) -> str:
    """Versions without the name of the machine, which stays private."""
    known = {name: value for name, value in environment.items() if name != "host"}
    return ", ".join(f"{name} {_text(value)}" for name, value in known.items())


# --- Markdown ------------------------------------------------------------------------------------


def _document(header: Mapping[str, Any], *parts: str) -> str:
    front = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _code(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_value(item) for item in value)
    return _text(value)


def _text(value: object) -> str:
    """A value as one line of Markdown, with all markup escaped."""
    line = one_line(str(value)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", line)
