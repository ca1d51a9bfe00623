"""train: batches packed, cut and ordered give the losses and gradients of whole, padded ones."""

from pathlib import Path
from typing import Literal

import pytest
import torch

from prefsweep.sweeps.grid import LOSS_NAMES
from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.attention import Segments, announce
from prefsweep.workers.batches import RowSampler, row_sampler
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.losses import ROW_MIXING_LOSSES

from .preference_data import stock_trainer
from .training_runs import SPEC, run, trial, weights

GIVEN: dict[str, dict[str, float]] = {
    "exo_pair": {"label_smoothing": 0.1},
    "robust": {"label_smoothing": 0.1},
    "discopop": {"discopop_tau": 0.05},
}


def test_packing_changes_no_loss_and_no_weight_by_more_than_rounding(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    packed = run(policy_source, trial(), SPEC, tmp_path / "packed")
    spec = SPEC.model_copy(update={"packing": "off"})
    padded = run(policy_source, trial(), spec, tmp_path / "padded")
    for key in ("loss", "rewards/margins", "entropy", "logits/chosen", "mean_token_accuracy"):
        values = [record[key] for record in padded]
        assert [record[key] for record in packed] == pytest.approx(values, rel=1e-4, abs=1e-4), key
    first, second = weights(tmp_path / "packed"), weights(tmp_path / "padded")
    # RMS-normalised updates (Adam) turn rounding of tiny gradients into steps of up to 4 x 1e-3
    assert all((first[name] - second[name]).abs().median() < 1e-5 for name in first)


def test_a_model_that_cannot_be_packed_is_trained_unpacked_with_a_line_in_the_log(
    policy_source: ModelSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from prefsweep.workers import forward

    def blind(segments: Segments) -> torch.Tensor:
        mask = announce(segments)
        return mask.logical_or_(mask.flip(-1))  # a model that sees what it should not

    monkeypatch.setattr(forward, "announce", blind)
    spec = SPEC.model_copy(update={"packing": "off"})
    expected = run(policy_source, trial(), spec, tmp_path / "off")
    caplog.clear()  # of the reference's own line
    assert run(policy_source, trial(), SPEC, tmp_path / "blind") == expected
    assert "it is run unpacked" in caplog.text


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize(
    "loss_type", [name for name in LOSS_NAMES if name not in ROW_MIXING_LOSSES]
)
def test_a_cut_batch_gives_the_gradients_of_the_whole(
    policy_source: ModelSource, tmp_path: Path, loss_type: str, packing: str
) -> None:
    point = trial(loss_type=loss_type, learning_rate=1e-5, **GIVEN.get(loss_type, {}))
    update = {"packing": packing, "per_device_train_batch_size": 4, "max_steps": 2}
    spec = SPEC.model_copy(update=update)
    whole = run(policy_source, point, spec, tmp_path / "whole")
    for halvings in (1, 20):
        parts = run(policy_source, point, spec, tmp_path / str(halvings), halvings=halvings)
        for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
            expected = [record[key] for record in whole]
            actual = [record[key] for record in parts]
            assert actual == pytest.approx(expected, rel=2e-5, abs=1e-6), (key, halvings)


def test_a_batch_is_the_effective_one_however_it_is_written(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    whole = run(
        policy_source,
        trial(),
        SPEC.model_copy(update={"per_device_train_batch_size": 4}),
        tmp_path / "whole",
    )
    parts = run(
        policy_source,
        trial(),
        SPEC.model_copy(update={"gradient_accumulation_steps": 2}),
        tmp_path / "parts",
    )
    for key in ("loss", "grad_norm"):
        expected = [record[key] for record in whole]
        assert [record[key] for record in parts] == pytest.approx(expected, rel=1e-4)


def test_every_pair_of_a_step_weighs_the_same_in_one_with_fewer_pairs_too(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    """Eight pairs by threes, three batches to a step. Ours is stock TRL's step of one whole batch;
    stock TRL with accumulation weighs each of the last two pairs as 1.5 of the others."""

    def spec(size: int, accumulated: int) -> TrainingSpec:
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        return SPEC.model_copy(update={**batches, "max_steps": 2})

    def stock(size: int, accumulated: int) -> list[dict[str, float]]:
        folder = tmp_path / f"stock-{size}"
        trainer = stock_trainer(policy_source, trial(), spec(size, accumulated), folder)
        trainer.train()
        return [entry for entry in trainer.state.log_history if "loss" in entry]

    ours = run(policy_source, trial(), spec(3, 3), tmp_path / "ours")
    whole, accumulated = stock(9, 1), stock(3, 3)
    for key in ("loss", "grad_norm"):
        expected = [entry[key] for entry in whole]
        assert [record[key] for record in ours] == pytest.approx(expected, rel=1e-4), key
    assert accumulated[0]["grad_norm"] != pytest.approx(whole[0]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("loss_type", sorted(ROW_MIXING_LOSSES))
def test_losses_that_mix_rows_are_never_cut(
    policy_source: ModelSource, tmp_path: Path, loss_type: str
) -> None:
    spec = SPEC.model_copy(update={"per_device_train_batch_size": 4})
    whole = run(policy_source, trial(loss_type=loss_type), spec, tmp_path / "whole")
    point = trial(loss_type=loss_type)
    assert run(policy_source, point, spec, tmp_path / "parts", halvings=20) == whole


@pytest.mark.parametrize("order", ["shuffled", "by_prompt"])
def test_every_epoch_shuffles_anew_and_by_prompt_keeps_a_prompts_rows_together(
    order: Literal["shuffled", "by_prompt"],
) -> None:
    prompts, spec = [str(i // 3) for i in range(30)], TrainingSpec(order=order)
    sampler = row_sampler(prompts, spec, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(30)) and len(sampler) == 30
    together = [[i % 3 for i in rows] == [0, 1, 2] * 10 for rows in orders]
    assert together == [order == "by_prompt"] * 3
    assert list(row_sampler(prompts, spec, seed=2)) != orders[0]


def test_whole_prompts_come_in_one_order_whatever_the_order_of_pairs() -> None:
    rows = [
        list(row_sampler([*"abcdef"], TrainingSpec(prompts_per_batch=2, order=order), seed=1))
        for order in ("shuffled", "by_prompt")
    ]
    assert rows[0] == rows[1]


def test_epochs_of_a_trial_differ_in_their_order(
    policy_source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    plain = RowSampler.__iter__
    monkeypatch.setattr(
        RowSampler, "__iter__", lambda self: (epochs.append(self._epoch), plain(self))[1]
    )
    run(policy_source, trial(), TrainingSpec(num_train_epochs=2, logging_steps=1), tmp_path)
    assert epochs[-2:] == [0, 1]
