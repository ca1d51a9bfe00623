"""A probe trains on the pairs of the largest batches, and that they do not fit is an answer."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefsweep.sweeps.errors import OutOfMemory
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import Split, TokenizedPair
from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers import fused, probe, train
from prefsweep.workers.probe import GpuMemory, largest_batches, probe_gpu, probe_groups


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
    spec = TrainingSpec(
        per_device_train_batch_size=1, gradient_accumulation_steps=3, order="by_prompt"
    )
    names = [p.prompt_id for p in largest_batches(PAIRS, spec, 1)]
    assert names == ["long", "long", "middle"]
    assert len(largest_batches(PAIRS, spec, 9)) == 4


def test_shuffled_pairs_share_no_prompt_where_there_are_others() -> None:
    spec = TrainingSpec(per_device_train_batch_size=4)
    names = [p.prompt_id for p in largest_batches(PAIRS, spec, 1)]
    assert names == ["long", "middle", "short", "long"]


def test_where_batches_are_of_prompts_all_their_pairs_come() -> None:
    spec = TrainingSpec(prompts_per_batch=1)
    assert [p.prompt_id for p in largest_batches(PAIRS, spec, 2)] == ["long", "long", "middle"]


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise error

    return call


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., GpuMemory]:
    """A card of 80 bytes of which 60 are free, and a training that ends as it is told."""
    monkeypatch.setattr(probe, "gpu_room", lambda: (60, 80))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)

    def run(load: Callable[[], Any], fit: Callable[..., Any]) -> GpuMemory:
        def trained(trial: object, spec: object, model: object, *_: object) -> None:
            fit()

        monkeypatch.setattr(train, "train", trained)
        trial = TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=1e-3)
        spec = TrainingSpec.model_validate({})
        return probe_gpu(trial, spec, load, None, PAIRS, tmp_path)  # pyright: ignore

    return run


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemory("step 1 of the training does not fit the memory"),  # as train tells it
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_a_trial_that_does_not_fit_takes_the_whole_card(
    on_a_card: Callable[..., GpuMemory], error: Exception
) -> None:
    whole = GpuMemory(peak=80, free=60, total=80)
    assert on_a_card(lambda: None, raising(error)) == whole
    assert on_a_card(raising(error), lambda: None) == whole, "the model alone does not"


def trials(num: int) -> list[TrialSpec]:
    return [TrialSpec(loss_type="sigmoid", beta=0.1 + i, learning_rate=1e-3) for i in range(num)]


@pytest.mark.parametrize(
    ("num", "seconds", "fitting", "sizes"),
    [
        (6, lambda size: 0.1, 6, [1, 2, 4, 6]),  # a step costs the same for any number
        (18, lambda size: 0.1, 5, [1, 2, 4]),  # eight do not fit
        (18, lambda size: 0.1 * max(1, size / 4), 99, [1, 2, 4, 8]),  # eight are not worth it
        (18, lambda size: 0.1 * size, 99, [1, 2]),  # nor are two
        (2, lambda size: 0.1, 0, []),
    ],
)
def test_groups_are_probed_while_they_fit_and_pay(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    num: int,
    seconds: Callable[[int], float],
    fitting: int,
    sizes: list[int],
) -> None:
    """A card of which the peak is told, and a clock that a step sets forward."""
    now = [0.0]

    def trained(some: list[TrialSpec], spec: TrainingSpec, *rest: Any) -> None:
        if len(some) > fitting:
            raise OutOfMemory("step 1 of the training does not fit the memory")
        hooks = rest[-1]
        for step in range(1, (spec.max_steps or 0) + 1):
            now[0] += 60.0 if step == 1 else seconds(len(some))
            for own in hooks:
                if own.on_step is not None:
                    own.on_step(step, None)

    monkeypatch.setattr(fused, "train_group", trained)
    monkeypatch.setattr(probe, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 7)
    spec = TrainingSpec.model_validate({"lora": {}})
    found = probe_groups(trials(num), spec, lambda: None, None, PAIRS, tmp_path)  # pyright: ignore
    assert [step.size for step in found] == sizes
    for step in found:
        assert (step.seconds, step.peak) == (pytest.approx(seconds(step.size)), 7)


def test_a_model_that_cannot_be_trained_in_groups_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fused, "train_group", raising(fused.UnfusableError("it has no plain head")))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    spec = TrainingSpec.model_validate({"lora": {}})
    data = (None, PAIRS, tmp_path)
    assert probe_groups(trials(2), spec, lambda: None, *data) == []  # pyright: ignore


def test_other_errors_of_a_probe_are_told(on_a_card: Callable[..., GpuMemory]) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        on_a_card(lambda: None, raising(RuntimeError("shapes do not match")))
