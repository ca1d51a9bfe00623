from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prefsweep.sweeps.grid import TrialSpec
from prefsweep.workers.deferred import Deferring, deferred, read
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.train import PreparedDPOTrainer

from .training_runs import SPEC, run, trial


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: reads of scalars, and of how many are True."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += func.name() in ("aten::_local_scalar_dense", "aten::nonzero")
        return func(*args, **(kwargs or {}))


def test_numbers_are_read_in_one_transfer_as_python_would_have_computed_them() -> None:
    third, seven = torch.tensor(1 / 3), torch.tensor(7)
    quotient = deferred(third) / deferred(seven)
    average = sum([quotient * 0.25, quotient * 0.75])
    with Reads() as reads:
        assert quotient > 0 and quotient // 1 == 0
    assert reads.num == 0
    expected = third.item() / seven.item()
    assert read([quotient, average, 2.5]) == [expected, 0 + expected * 0.25 + expected * 0.75, 2.5]


def test_selecting_by_a_mask_takes_the_places_of_its_half() -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]])
    chosen, rejected = mask.chunk(2)
    values = torch.tensor([[1.0, 2, 3]])
    places = (torch.tensor([1, 2]), torch.tensor([2]))
    with Reads() as reads, Deferring(*places):
        assert bool(mask.sum() > 100), "truth is assumed"
        first, second = values[chosen.bool()], values[rejected.bool()]
        number = first.sum().item()
    assert reads.num == 0
    assert first.tolist() == [2, 3] and second.tolist() == [3]
    assert read([number]) == [5.0]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("grid_point", [trial(loss_type="sigmoid+sft"), trial(ld_alpha=0.5)])
def test_nothing_is_read_in_a_packed_loss_and_its_gradient(
    policy_source: ModelSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grid_point: TrialSpec,
) -> None:
    plain = PreparedDPOTrainer.training_step
    counted = Reads()

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        with counted:
            return plain(self, *args, **kwargs)

    monkeypatch.setattr(PreparedDPOTrainer, "training_step", step)
    spec = SPEC.model_copy(update={"max_steps": 2, "logging_steps": 2})
    records = run(policy_source, grid_point, spec, tmp_path)
    assert counted.num == 0
    assert len(records) == 1 and records[0]["logits/chosen"] != 0
