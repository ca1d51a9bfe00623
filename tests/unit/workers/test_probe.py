"""The pairs that a probe trains on are those of the largest batches."""

from prefsweep.sweeps.records import Split, TokenizedPair
from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.probe import largest_batches


def pair(
    name: str, prompt: int, chosen: int, rejected: int, split: Split = "train"
) -> TokenizedPair:
    return TokenizedPair(
        f"{name}-{chosen}", name, split, [1] * prompt, [2] * chosen, [3] * rejected, [], []
    )


PAIRS = [
    pair("short", 2, 1, 1),
    pair("long", 2, 1, 50),
    pair("long", 2, 3, 4),
    pair("held out", 90, 90, 90, "test"),
    pair("middle", 20, 5, 1),
]


def test_the_longest_pairs_come_first_and_none_of_the_test_split() -> None:
    spec = TrainingSpec(per_device_train_batch_size=1, gradient_accumulation_steps=3)
    names = [p.prompt_id for p in largest_batches(PAIRS, spec, 1)]
    assert names == ["long", "long", "middle"]
    assert len(largest_batches(PAIRS, spec, 9)) == 4


def test_where_batches_are_of_prompts_all_their_pairs_come() -> None:
    spec = TrainingSpec(prompts_per_batch=1)
    assert [p.prompt_id for p in largest_batches(PAIRS, spec, 2)] == ["long", "long", "middle"]
