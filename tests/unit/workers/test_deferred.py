from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prefsweep.sweeps.grid import TrialSpec
from prefsweep.workers.deferred import deferred, ratio, read
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
    with Reads() as reads:
        quotient, nothing = ratio(third, seven), ratio(third, torch.tensor(0))
        average = sum([quotient * 0.25, deferred(third) * 0.75])
    assert reads.num == 0
    expected = third.item() / seven.item()
    values = [quotient, nothing, average, 2.5]
    assert read(values) == [expected, 0.0, 0 + expected * 0.25 + third.item() * 0.75, 2.5]


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
