"""Which pairs go into a forward pass together."""

from typing import Any

import pytest

from prefsweep.sweeps.records import TokenizedPair
from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.batches import batch_size, cut, halved_tokens, max_tokens, preference_dataset

A, B, C = [1, 2], [3, 4, 5], [6]


def pair(prompt: int, chosen: list[int], rejected: list[int]) -> TokenizedPair:
    zeros = [[0.0] * len(ids) for ids in (chosen, rejected)]
    ids = [prompt] * 3
    name = f"{prompt}-{chosen}-{rejected}"
    return TokenizedPair(name, str(prompt), "train", ids, chosen, rejected, *zeros)


PAIRS = [pair(1, A, B), pair(1, A, C), pair(2, A, B), pair(2, B, C)]
"""Of prompt 1, A, B, C stand behind 2 tokens: 8 in all, 7 without C; prompt 2 alike."""


def rows() -> list[dict[str, Any]]:
    return list(preference_dataset(PAIRS, None))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("limit", "packed", "sizes"),
    [
        (None, True, [4]),
        (16, True, [4]),
        (15, True, [3, 1]),
        (8, True, [2, 2]),
        (7, True, [1, 1, 1, 1]),
        (1, True, [1, 1, 1, 1]),
        (48, False, [4]),
        (47, False, [3, 1]),
        (24, False, [2, 2]),
    ],
)
def test_parts_hold_as_many_pairs_in_order_as_their_tokens_allow(
    limit: int | None, packed: bool, sizes: list[int]
) -> None:
    parts = cut(rows(), limit, packed=packed)
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part] == rows()


def test_the_limit_is_the_padded_batch_without_accumulation() -> None:
    spec = TrainingSpec(per_device_train_batch_size=2, gradient_accumulation_steps=8)
    assert max_tokens(spec, PAIRS) == 2 * 2 * 6
    assert batch_size(spec) == 16


def test_halved_is_what_the_largest_forward_pass_holds_down_to_one_pair() -> None:
    spec = TrainingSpec(per_device_train_batch_size=2, gradient_accumulation_steps=8)
    # all four pairs have 16 tokens packed, 48 padded, of which the limit lets 24 through
    packed = [halved_tokens(spec, PAIRS, n, seed=0, packed=True) for n in range(4)]
    padded = [halved_tokens(spec, PAIRS, n, seed=0, packed=False) for n in range(3)]
    assert packed == [(16, True), (8, True), (4, False), (2, False)]
    assert padded == [(24, True), (12, False), (6, False)]
    assert halved_tokens(spec, PAIRS, 50, seed=0, packed=True) == (1, False)


def test_the_limit_of_prompts_is_the_largest_ones_packed() -> None:
    spec = TrainingSpec(prompts_per_batch=1, gradient_accumulation_steps=2)
    assert max_tokens(spec, [*PAIRS, pair(3, A, C)]) == 8
    assert batch_size(spec) == 2


def test_rows_by_prompt_hold_all_its_pairs_in_order() -> None:
    dataset = preference_dataset(PAIRS, None, by_prompt=True)
    assert dataset["prompt_id"][:] == ["1", "2"]
    assert [row for prompt in dataset["pairs"] for row in prompt] == rows()
