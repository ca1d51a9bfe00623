"""Makes batches from tokenized pairs: which pairs, in which order, in how many forward passes.

A batch is the data of one optimizer step, including accumulation: a fixed number of pairs, or
complete prompts. It is planned as a unit, with the pairs of a prompt next to each other, and only
split into micro-batches if it has more tokens than one forward pass may have.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import TokenizedPair
from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.packing import Ids, pack
from prefsweep.workers.reference import reference_sums

Example = Mapping[str, Any]
"""A row of `preference_dataset`: one pair."""
PAIRS = "pairs"
"""Column with a prompt's pairs, if batches are counted in prompts."""
MICRO_BATCHES = "micro_batches"
"""Item of a collated batch with its parts, if it was split."""
REFERENCE_SUMS = ("ref_chosen_logps", "ref_rejected_logps")
"""Items of a collated batch with the reference's log-probabilities, one number per pair."""
EPOCHS_LOOKED_AT = 3
"""Number of epochs that are searched for the largest batch; later ones only reshuffle the pairs."""


def preference_dataset(
    pairs: Sequence[TokenizedPair], ld_alpha: float | None, *, by_prompt: bool = False
) -> Dataset:
    """`preference_rows` for TRL's trainer."""
    return Dataset.from_list(preference_rows(pairs, ld_alpha, by_prompt=by_prompt))


def preference_rows(
    pairs: Sequence[TokenizedPair], ld_alpha: float | None, *, by_prompt: bool = False
) -> list[dict[str, Any]]:
    """The train split for collator and sampler: one row per pair, or per prompt if `by_prompt`.

    Raises DataError if it is empty.
    """
    train = [pair for pair in pairs if pair.split == "train"]
    if not train:
        raise DataError(
            "training: no training pair is left; all prompts fill training.max_length. Raise it, "
            "or set training.max_prompt_length"
        )
    rows = [_row(pair, ld_alpha) for pair in train]
    if not by_prompt:
        return rows
    prompts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        prompts.setdefault(row["prompt_id"], []).append(row)
    return [{"prompt_id": name, PAIRS: own} for name, own in prompts.items()]


def flat(rows: Sequence[Example]) -> list[Example]:
    """The pairs of rows, in order."""
    return [pair for row in rows for pair in row.get(PAIRS, [row])]


def together(pairs: Sequence[Example]) -> list[Example]:
    """The pairs, reordered so that those of a prompt are consecutive; prompts, and pairs within
    one, keep their order."""
    first: dict[str, int] = {}
    return sorted(pairs, key=lambda pair: first.setdefault(pair["prompt_id"], len(first)))


def some_sequences(pairs: Sequence[TokenizedPair]) -> list[tuple[Ids, Ids]]:
    """Distinct (prompt_ids, completion_ids) of the first training pairs and of the longest."""
    train = [pair for pair in pairs if pair.split == "train"]
    train = [*train[:4], max(train, key=_longest)]
    return list(
        dict.fromkeys(
            (tuple(pair.prompt_ids), tuple(ids))
            for pair in train
            for ids in (pair.chosen_ids, pair.rejected_ids)
        )
    )


def batch_size(spec: TrainingSpec) -> int:
    """Number of rows of `preference_dataset` per optimizer step."""
    return (spec.prompts_per_batch or spec.per_device_train_batch_size) * (
        spec.gradient_accumulation_steps
    )


def max_steps(spec: TrainingSpec, pairs: Sequence[TokenizedPair]) -> int:
    """Number of optimizer steps of a trial, as counted by transformers' Trainer."""
    if spec.max_steps is not None:
        return spec.max_steps
    train = [pair.prompt_id for pair in pairs if pair.split == "train"]
    num_rows = len(train) if spec.prompts_per_batch is None else len(set(train))
    return math.ceil(spec.num_train_epochs * max(1, math.ceil(num_rows / batch_size(spec))))


def max_tokens(spec: TrainingSpec, pairs: Sequence[TokenizedPair]) -> int:
    """Maximum tokens of a forward pass: those of one padded batch without accumulation (if batches
    count prompts: of the largest prompts, packed)."""
    rows = _pairs_of_rows(spec, pairs)
    if spec.prompts_per_batch is None:
        longest = max((_num_tokens(row, packed=False) for row in rows), default=1)
        return spec.per_device_train_batch_size * longest
    sizes = sorted((_num_tokens(row, packed=True) for row in rows), reverse=True)
    return max(1, sum(sizes[: spec.prompts_per_batch]))


def halved_tokens(
    spec: TrainingSpec,
    pairs: Sequence[TokenizedPair],
    halvings: int,
    *,
    seed: int,
    packed: bool,
) -> tuple[int, bool]:
    """Maximum tokens of a forward pass after `halvings`, and whether halving again would help.

    Halving starts from the trial's largest batch if that is below `max_tokens`, so that the
    first halving has an effect. A forward pass always has at least one pair, even if the maximum is
    smaller.
    """
    largest = min(max_tokens(spec, pairs), _largest_batch(spec, pairs, seed, packed=packed))
    one_pair = max(
        _num_tokens([pair], packed=packed) for row in _pairs_of_rows(spec, pairs) for pair in row
    )
    limit = max(1, largest >> halvings)
    return limit, limit > one_pair


def _largest_batch(
    spec: TrainingSpec, pairs: Sequence[TokenizedPair], seed: int, *, packed: bool
) -> int:
    """Tokens of the largest batch of the first epochs."""
    rows, size = _pairs_of_rows(spec, pairs), batch_size(spec)
    sampler = row_sampler([row[0]["prompt_id"] for row in rows], spec, seed)
    num_epochs = math.ceil(max_steps(spec, pairs) * size / len(rows))
    largest = 0
    for epoch in range(min(num_epochs, EPOCHS_LOOKED_AT)):
        sampler.set_epoch(epoch)
        order = list(sampler)
        for start in range(0, len(order), size):
            batch = [pair for row in order[start : start + size] for pair in rows[row]]
            largest = max(largest, _num_tokens(batch, packed=packed))
    return largest


def _pairs_of_rows(spec: TrainingSpec, pairs: Sequence[TokenizedPair]) -> list[list[Example]]:
    """The training pairs of each row of `preference_dataset`."""
    train = [_row(pair, None) for pair in pairs if pair.split == "train"]
    if spec.prompts_per_batch is None:
        return [[row] for row in train]
    prompts: dict[str, list[Example]] = {}
    for row in train:
        prompts.setdefault(row["prompt_id"], []).append(row)
    return list(prompts.values())


def row_sampler(prompt_ids: Sequence[str], spec: TrainingSpec, seed: int) -> "RowSampler":
    """The sampler for `training.order`; `prompt_ids` has the prompt of each row."""
    return RowSampler(prompt_ids if spec.order == "by_prompt" else range(len(prompt_ids)), seed)


class RowSampler(Sampler[int]):
    """Row numbers in a seeded shuffle of groups; the rows of a group are consecutive, in order.

    Each epoch is shuffled differently. The shuffle only depends on seed and epoch, so a resumed
    trial has the same order.
    """

    def __init__(self, groups: Sequence[str] | range, seed: int) -> None:
        """`groups` has the group of each row."""
        self._rows: dict[str | int, list[int]] = {}
        for row, group in enumerate(groups):
            self._rows.setdefault(group, []).append(row)
        self._num_rows, self._seed, self._epoch = len(groups), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[int]:
        groups = list(self._rows)
        random.Random(f"{self._seed}:{self._epoch}").shuffle(groups)
        return (row for group in groups for row in self._rows[group])


class BatchCollator:
    """Rows of the dataset -> TRL's collated batch, with the layout to run it packed.

    The pairs of a prompt are made consecutive, so that its tokens are computed in few passes. If
    the batch has more than `max_tokens` tokens (None: no limit), it is split: MICRO_BATCHES has its
    parts, each collated separately. `packed` determines how tokens are counted.
    """

    def __init__(self, pad_token_id: int, max_tokens: int | None, *, packed: bool) -> None:
        self._pad_token_id, self._max_tokens, self.packed = pad_token_id, max_tokens, packed

    def __call__(self, rows: Sequence[Example]) -> dict[str, Any]:
        pairs = together(flat(rows))
        parts = [self._collate(part) for part in cut(pairs, self._max_tokens, packed=self.packed)]
        if len(parts) == 1:
            return parts[0]
        return {"input_ids": parts[0]["input_ids"], MICRO_BATCHES: parts}

    def _collate(self, pairs: Sequence[Example]) -> dict[str, torch.Tensor]:
        sequences = [
            (tuple(pair["prompt_ids"]), tuple(pair[half]))
            for half in ("chosen_ids", "rejected_ids")
            for pair in pairs
        ]
        batch = padded(sequences, self._pad_token_id)
        for name in REFERENCE_SUMS:
            batch[name] = torch.tensor([pair[name] for pair in pairs])
        if not any(completion_ids for _, completion_ids in sequences):
            return batch
        return batch | pack(sequences, batch["input_ids"].shape[1]).tensors()


def padded(sequences: Sequence[tuple[Ids, Ids]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """TRL's batch of (prompt_ids, completion_ids): IDs, attention and completion mask (B, T)."""
    shape = (len(sequences), max(len(prompt) + len(ids) for prompt, ids in sequences))
    input_ids = np.full(shape, pad_token_id)
    attention_mask, completion_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, (prompt, ids) in enumerate(sequences):
        begin, end = len(prompt), len(prompt) + len(ids)
        input_ids[row, :end] = prompt + ids
        attention_mask[row, :end] = 1
        completion_mask[row, begin:end] = 1
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask),
        "completion_mask": torch.from_numpy(completion_mask),
    }


def cut(pairs: Sequence[Example], max_tokens: int | None, *, packed: bool) -> list[list[Example]]:
    """Split pairs, in order, into parts of at most `max_tokens` tokens, or of one pair."""
    if max_tokens is None or _num_tokens(pairs, packed=packed) <= max_tokens:
        return [list(pairs)]
    parts: list[list[Example]] = [[]]
    for pair in pairs:
        if parts[-1] and _num_tokens([*parts[-1], pair], packed=packed) > max_tokens:
            parts.append([])
        parts[-1].append(pair)
    return parts


def _num_tokens(pairs: Sequence[Example], *, packed: bool) -> int:
    """Number of tokens in a forward pass over pairs: distinct ones, or those of padded rows."""
    if not packed:
        longest = max(
            len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
            for pair in pairs
        )
        return 2 * len(pairs) * longest
    completions = {
        (tuple(pair["prompt_ids"]), tuple(pair[half]))
        for pair in pairs
        for half in ("chosen_ids", "rejected_ids")
    }
    prompts = {prompt_ids for prompt_ids, _ in completions}
    return sum(len(ids) - 1 for ids in prompts) + sum(len(ids) for _, ids in completions)


def _longest(pair: TokenizedPair) -> int:
    """Number of tokens of the longer sequence of a pair."""
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def _row(pair: TokenizedPair, ld_alpha: float | None) -> dict[str, Any]:
    ref_chosen_logps, ref_rejected_logps = reference_sums(pair, ld_alpha)
    return {
        "prompt_id": pair.prompt_id,
        "prompt_ids": pair.prompt_ids,
        "chosen_ids": pair.chosen_ids,
        "rejected_ids": pair.rejected_ids,
        "ref_chosen_logps": ref_chosen_logps,
        "ref_rejected_logps": ref_rejected_logps,
    }
