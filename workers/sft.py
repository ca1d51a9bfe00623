"""Trains a policy or a reward classifier from a base model and texts.

It runs the standard trainers (TRL's SFTTrainer, transformers' Trainer) on local folders. Training
is in float32 and bitwise reproducible on the same kind of device with the same number of threads.
This module does not use the store and prints nothing.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from prefsweep.sweeps.errors import DataError, ModelError, SpecError, StageError
from prefsweep.sweeps.spec import FineTuning
from prefsweep.sweeps.validation_messages import listed
from prefsweep.workers.corpus import Row, load_texts
from prefsweep.workers.rendering import finished_ids

HELD_OUT = 0.1
"""Share of the distinct texts that are held out to test a classifier."""


def train_policy(
    base_folder: Path,
    output: Path,
    sft: FineTuning,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> dict[str, float]:
    """Train the causal language model in `base_folder` on the corpus; save it to `output`.

    `dtype` is the type of the saved weights. As in TRL, every text ends with the end-of-text token,
    and the loss is the mean over tokens. Returns train_loss (nats per token, mean over steps),
    steps, num_texts and seconds. Raises ModelError, DataError, and StageError if the loss is not
    finite.
    """
    started = time.monotonic()
    rows = load_texts(sft.corpus)
    with _quiet():
        transformers.set_seed(sft.seed)
        model, tokenizer = _load(transformers.AutoModelForCausalLM, base_folder)
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer in {base_folder} has no end-of-text token")
        limit = _token_limit(model, tokenizer, sft)
        inputs = [list(finished_ids(tokenizer, row.text)[:limit]) for row in rows]
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **_arguments(sft, output),
                max_length=None,  # cut above
                dataset_kwargs={"skip_prepare_dataset": True},
                activation_checkpointing=False,
                bf16=False,
            ),
            train_dataset=Dataset.from_dict({"input_ids": inputs}),
            processing_class=tokenizer,
            callbacks=[_StopAtNonFinite()],
        )
        metrics = _train(trainer)
        _save(model.to(dtype=getattr(torch, dtype)), tokenizer, output)
    return {**metrics, "num_texts": len(rows), "seconds": time.monotonic() - started}


def train_classifier(
    base_folder: Path, output: Path, training: FineTuning, label: str | int
) -> dict[str, float]:
    """Train the sequence classifier in `base_folder` on the labelled corpus; save it to `output`.

    `label` is the label that will be scored; the trained classifier must have it. Labels keep the
    base model's names and IDs if they match, else the model gets a new head. Returns accuracy (on
    the held-out tenth), train_loss (nats per text), steps, num_texts, num_held_out and seconds.
    Raises ModelError, DataError, SpecError for an unknown `label`, and StageError if the loss is
    not finite.
    """
    started = time.monotonic()
    rows = load_texts(training.corpus)
    with _quiet():
        transformers.set_seed(training.seed)
        labels = map_labels([row.label for row in rows], _known_labels(base_folder))
        _check_label(label, labels.names)
        model, tokenizer = _load(
            transformers.AutoModelForSequenceClassification,
            base_folder,
            num_labels=len(labels.names),
            id2label=dict(enumerate(labels.names)),
            label2id={name: index for index, name in enumerate(labels.names)},
            problem_type="single_label_classification",
            ignore_mismatched_sizes=True,
        )
        model.config.pad_token_id = tokenizer.pad_token_id
        train, held_out = _split(_encode(model, tokenizer, rows, labels.ids, training), rows)
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(**_arguments(training, output)),
            train_dataset=train,  # pyright: ignore[reportArgumentType]
            processing_class=tokenizer,
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            callbacks=[_StopAtNonFinite()],
        )
        metrics = _train(trainer)
        metrics["accuracy"] = _accuracy(trainer, held_out)
        _save(model, tokenizer, output)
    counts = {"num_texts": len(rows), "num_held_out": len(held_out)}
    return {**metrics, **counts, "seconds": time.monotonic() - started}


# --- labels --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Labels:
    """The classifier's label names by ID, and the ID of every row."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


def map_labels(labels: Sequence[str | int | None], known: dict[int, str]) -> Labels:
    """Label IDs of the rows; `known` are the base model's label names by ID.

    If the base model has all labels, its names and IDs are used. Otherwise names are numbered in
    alphabetical order, and index i gets the name LABEL_i. Raises DataError for a row without a
    label, for labels of both kinds, and for fewer than two labels.
    """
    for number, label in enumerate(labels, start=1):
        if label is None:
            raise DataError(f"text {number} of the corpus has no label; check label_column")
    kinds = {type(label) for label in labels}
    distinct = set(labels)
    if len(kinds) > 1:
        raise DataError(f"the corpus has names and numbers as labels: {_some(distinct)}")
    if len(distinct) < 2:
        raise DataError(f"a classifier needs two labels or more; the corpus has {_some(distinct)}")
    known_names = tuple(known[index] for index in sorted(known))
    if kinds == {int}:
        indices = [label for label in labels if isinstance(label, int)]
        if min(indices) >= 0 and max(indices) < len(known_names):
            return Labels(known_names, tuple(indices))
        _check_contiguous(set(indices))
        return Labels(tuple(f"LABEL_{i}" for i in range(len(distinct))), tuple(indices))
    names = [label for label in labels if isinstance(label, str)]
    ordered = known_names if distinct <= set(known_names) else tuple(sorted(set(names)))
    ids = {name: index for index, name in enumerate(ordered)}
    return Labels(ordered, tuple(ids[name] for name in names))


def _check_contiguous(indices: set[int]) -> None:
    if indices != set(range(len(indices))):
        raise DataError(
            f"label indices must run from 0 without gaps; the corpus has {_some(indices)}. "
            "Select rows with where, or use names"
        )


def _check_label(label: str | int, names: tuple[str, ...]) -> None:
    if label not in names and not (isinstance(label, int) and 0 <= label < len(names)):
        raise SpecError(
            f"reward.label={label!r} is not a label of the trained classifier; "
            f"it has {listed(names)} (or 0 to {len(names) - 1})"
        )


def _some(labels: set[Any]) -> str:
    shown = ", ".join(sorted(map(repr, labels))[:10])
    return shown + (f", ... ({len(labels)} in all)" if len(labels) > 10 else "")


# --- data ----------------------------------------------------------------------------------------


def _encode(
    model: Any, tokenizer: Any, rows: list[Row], ids: tuple[int, ...], training: FineTuning
) -> list[dict[str, Any]]:
    """One {"input_ids", "attention_mask", "labels"} per row."""
    limit = _token_limit(model, tokenizer, training)
    encoded = tokenizer([row.text for row in rows], truncation=True, max_length=limit)
    return [
        {**{name: encoded[name][index] for name in encoded}, "labels": label_id}
        for index, label_id in enumerate(ids)
    ]


def _split(
    examples: list[dict[str, Any]], rows: list[Row]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out examples, split by text: equal texts are in the same part."""
    distinct = sorted({row.text for row in rows}, key=lambda t: hashlib.sha256(t.encode()).digest())
    if len(distinct) < 2:
        raise DataError("a classifier needs two or more different texts, one of them held out")
    held_out = set(distinct[: max(1, round(HELD_OUT * len(distinct)))])
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for example, row in zip(examples, rows, strict=True):
        sides[row.text in held_out].append(example)
    return sides


def _accuracy(trainer: transformers.Trainer, held_out: list[dict[str, Any]]) -> float:
    """Share of the held-out texts whose label has the highest logit."""
    logits_NC, labels_N, _ = trainer.predict(held_out)  # pyright: ignore[reportArgumentType]
    return float((logits_NC.argmax(axis=-1) == labels_N).mean())  # pyright: ignore


# --- training ------------------------------------------------------------------------------------


def _arguments(training: FineTuning, output: Path) -> dict[str, Any]:
    """The arguments of both trainers; all others have their defaults."""
    return {
        "output_dir": str(output),
        "num_train_epochs": training.num_train_epochs,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "learning_rate": training.learning_rate,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "seed": training.seed,
        "lr_scheduler_type": "linear",
        "logging_steps": 10,
        "logging_nan_inf_filter": False,  # otherwise a NaN loss is logged as 0
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


class _StopAtNonFinite(transformers.TrainerCallback):
    """Ends the stage at the first logged loss or gradient norm that is not a finite number."""

    def on_log(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        for name in ("loss", "grad_norm", "train_loss"):
            value = (logs or {}).get(name, 0.0)
            if not math.isfinite(value):
                raise StageError(
                    f"{name} is {value} at step {state.global_step} of {state.max_steps}; "
                    f"lower learning_rate={args.learning_rate}"
                )


def _train(trainer: transformers.Trainer) -> dict[str, float]:
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    return {"train_loss": result.training_loss, "steps": result.global_step}


# --- models --------------------------------------------------------------------------------------


def _load(auto_class: Any, folder: Path, **arguments: Any) -> tuple[Any, Any]:
    """The model in float32, and its tokenizer, with a pad token."""
    try:
        model = auto_class.from_pretrained(folder, dtype=torch.float32, **arguments)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"base model {folder}: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer in {folder} has no token to pad with")
    return model, tokenizer


def _known_labels(folder: Path) -> dict[int, str]:
    """The base model's label names by ID."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"base model {folder}: {error}") from error
    return {int(index): str(name) for index, name in (config.id2label or {}).items()}


def _token_limit(model: Any, tokenizer: Any, training: FineTuning) -> int:
    """Maximum tokens of a text: the spec's limit, or the model's number of positions if smaller."""
    positions = getattr(model.config, "max_position_embeddings", None) or training.max_length
    return min(training.max_length, positions, tokenizer.model_max_length)


def _save(model: Any, tokenizer: Any, output: Path) -> None:
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable the progress bars and advice of transformers inside the block."""
    logging = transformers.utils.logging
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
