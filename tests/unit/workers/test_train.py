import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl.trainer.dpo_trainer import DPOTrainer

from prefsweep.sweeps.errors import DataError, OutOfMemory, StopRequested, TrialError
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.spec import LoraSpec, TrainingSpec
from prefsweep.workers import hooks as hooks_module
from prefsweep.workers.batches import halved_tokens, max_steps
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer, load_trained
from prefsweep.workers.train import Hooks, PreparedDPOTrainer, train

from .preference_data import stock_trainer, tokenized_pairs
from .training_runs import SPEC, run, trial, weights

LORA = LoraSpec(r=4, target_modules=("c_attn",))


@pytest.mark.parametrize(
    "grid_point",
    [
        trial(),
        trial(loss_type="hinge"),
        trial(loss_type="ipo"),
        trial(f_divergence_type="forward_kl"),
        trial(f_divergence_type="js_divergence", beta=0.5),
        trial(f_divergence_type="alpha_divergence", alpha=0.3),
        trial(f_divergence_type="alpha_divergence", alpha=0.7),
        trial(loss_type="sigmoid+sft", loss_weights=(1.0, 0.5)),
        trial(ld_alpha=0.5),
    ],
    ids=lambda t: f"{t.loss_type}-{t.f_divergence_type}-{t.alpha}-{t.ld_alpha}",
)
def test_losses_are_those_of_stock_trl(
    policy_source: ModelSource, tmp_path: Path, grid_point: TrialSpec
) -> None:
    grid_point = grid_point.model_copy(update={"learning_rate": 2e-4})
    ours = run(policy_source, grid_point, SPEC, tmp_path)
    stock = stock_trainer(policy_source, grid_point, SPEC, tmp_path / "stock")
    stock.train()
    theirs = [entry for entry in stock.state.log_history if "loss" in entry]
    assert [r["step"] for r in ours] == [1, 2, 3, 4]
    for key, rel in (("loss", 1e-5), ("rewards/margins", 1e-5), ("grad_norm", 1e-4)):
        expected = [entry[key] for entry in theirs]
        assert [record[key] for record in ours] == pytest.approx(expected, rel=rel, abs=1e-5)


def test_policy_equal_to_reference_starts_at_log_2(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    assert run(policy_source, trial(), SPEC, tmp_path)[0]["loss"] == pytest.approx(math.log(2))


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_same_trial_gives_the_same_weights_bit_for_bit(
    policy_source: ModelSource, tmp_path: Path, lora: LoraSpec | None
) -> None:
    spec = SPEC.model_copy(update={"lora": lora})
    run(policy_source, trial(), spec, tmp_path / "a")
    torch.manual_seed(999)
    run(policy_source, trial(), spec, tmp_path / "b")
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_saved_weights_load_as_the_trained_policy(
    policy_source: ModelSource, tmp_path: Path, lora: LoraSpec | None
) -> None:
    trained: list[torch.Tensor] = []
    ids = torch.tensor([[5, 6, 7, 8]])

    def keep(step: int, model: Any) -> None:
        if step == SPEC.max_steps:
            with torch.no_grad():
                trained.append(model(ids).logits)

    run(policy_source, trial(), SPEC.model_copy(update={"lora": lora}), tmp_path, on_step=keep)
    with torch.no_grad():
        loaded = load_trained(policy_source, tmp_path / "weights")(ids).logits
        before = load_policy(policy_source)(ids).logits
    assert torch.allclose(loaded, trained[0], atol=1e-5)
    assert not torch.allclose(loaded, before, atol=1e-4)


DROPOUT = LORA.model_copy(update={"lora_dropout": 0.5})


@pytest.mark.parametrize("lora", [None, DROPOUT], ids=["full", "lora with dropout"])
@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_a_stopped_and_resumed_trial_is_an_undisturbed_one_bit_for_bit(
    policy_source: ModelSource, tmp_path: Path, stop_after: int, lora: LoraSpec | None
) -> None:
    """Weights, log lines and mean loss; after a step within a log window, between two windows, and
    at the end of an epoch (of four steps)."""
    fields = {"max_steps": 6, "logging_steps": 3, "lora": lora, "disable_dropout": lora is None}
    spec = SPEC.model_copy(update=fields)
    steps: list[int] = []
    whole, whole_loss = trained(policy_source, spec, tmp_path / "whole")
    first, _ = trained(
        policy_source,
        spec,
        tmp_path / "cut",
        on_step=lambda step, model: steps.append(step),
        should_stop=lambda: steps[-1] == stop_after,
        publish=lambda step, folder: folder.rename(tmp_path / f"step-{step}"),
    )
    assert steps[-1] == stop_after and not (tmp_path / "cut" / "weights").exists()
    rest, rest_loss = trained(
        policy_source, spec, tmp_path / "cut", resume_from=tmp_path / f"step-{stop_after}"
    )
    assert first + rest == whole
    assert rest_loss == whole_loss
    first_weights, second_weights = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(first_weights[name], second_weights[name]) for name in first_weights)


def trained(
    source: ModelSource, spec: TrainingSpec, folder: Path, **hooks: Any
) -> tuple[list[dict[str, float]], float | None]:
    """The log lines and the mean loss; None if it was stopped."""
    records: list[dict[str, float]] = []
    try:
        metrics = train(
            trial(),
            spec,
            load_policy(source),
            load_tokenizer(source),
            tokenized_pairs(source),
            folder / "weights",
            Hooks(report=records.append, **hooks),
        )
    except StopRequested:
        return records, None
    return records, metrics["train_loss"]


def test_a_request_to_stop_at_the_last_step_comes_too_late(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    run(
        policy_source,
        trial(),
        SPEC.model_copy(update={"max_steps": 1}),
        tmp_path,
        should_stop=lambda: True,
    )
    assert weights(tmp_path)


@pytest.mark.parametrize(("save_steps", "saved"), [(2, [2, 4]), (None, []), ("auto", [])])
def test_checkpoints_are_published_every_save_steps(
    policy_source: ModelSource, tmp_path: Path, save_steps: Any, saved: list[int]
) -> None:
    spec = SPEC.model_copy(update={"max_steps": 5, "save_steps": save_steps})
    steps: list[int] = []
    run(policy_source, trial(), spec, tmp_path, publish=lambda step, folder: steps.append(step))
    assert steps == saved


def test_auto_saves_by_time_and_less_often_where_saving_is_slow(
    policy_source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now_s = 0.0

        def monotonic(self) -> float:
            return self.now_s

    clock = Clock()
    steps: list[int] = []
    monkeypatch.setattr(hooks_module, "time", clock)

    def a_step_of_400_seconds(step: int, model: Any) -> None:
        clock.now_s += 400

    def save_for_a_minute(step: int, folder: Path) -> None:
        clock.now_s += 60
        steps.append(step)

    spec = SPEC.model_copy(update={"max_steps": 9, "save_steps": "auto"})
    hooks: dict[str, Any] = {"on_step": a_step_of_400_seconds, "publish": save_for_a_minute}
    run(policy_source, trial(), spec, tmp_path, **hooks)
    assert steps == [2, 5, 8]  # after 800 s, then every 60 s / 5% = 1200 s


def test_a_loss_that_is_not_finite_stops_before_the_update(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    model = load_policy(policy_source)
    steps: list[int] = []

    def poison(step: int, trained: Any) -> None:
        steps.append(step)
        if step == 2:
            with torch.no_grad():
                next(trained.parameters()).fill_(float("nan"))

    with pytest.raises(TrialError, match=r"loss is nan at step 3.*lower the learning rate"):
        train(
            trial(),
            SPEC,
            model,
            load_tokenizer(policy_source),
            tokenized_pairs(policy_source),
            tmp_path / "weights",
            Hooks(report=lambda record: None, on_step=poison),
        )
    assert steps == [1, 2]
    assert not (tmp_path / "weights").exists()


def trainer_with(monkeypatch: pytest.MonkeyPatch, scale: float | None) -> PreparedDPOTrainer:
    """A trainer whose steps have what gradient norm one hands it; a scale is that of fp16."""
    monkeypatch.setattr(DPOTrainer, "_get_grad_norm", lambda self, model, grad_norm: grad_norm)
    trainer = object.__new__(PreparedDPOTrainer)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.accelerator = SimpleNamespace(scaler=scaler)  # pyright: ignore
    trainer.state = SimpleNamespace(global_step=2, max_steps=9)  # pyright: ignore
    trainer.args = SimpleNamespace(logging_steps=1)  # pyright: ignore
    trainer._unchecked = []
    return trainer


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_fails_the_trial_unless_fp16_skips_the_step(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    skipping = trainer_with(monkeypatch, 2.0**16)
    assert skipping._get_grad_norm(None, 1.0) == 1.0 and skipping.num_skipped == 0
    assert str(skipping._get_grad_norm(None, torch.tensor(value))) == f"tensor({value})"
    assert skipping.num_skipped == 1
    for scale in (None, 1.0):  # bf16 and fp32 have no scale; and one that is used up helps nobody
        with pytest.raises(TrialError, match=f"gradient norm is {value} at step 3"):
            trainer_with(monkeypatch, scale)._get_grad_norm(None, torch.tensor(value))


def test_a_training_of_which_fp16_skips_every_step_is_no_result(
    policy_source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some steps may be skipped; their gradient norm is not among the metrics."""
    norms = iter([math.inf, math.nan, *[1.0] * 2, *[math.inf] * 4])
    monkeypatch.setattr(DPOTrainer, "_get_grad_norm", lambda self, model, grad_norm: next(norms))
    monkeypatch.setattr(PreparedDPOTrainer, "_scaler_skips", lambda self: True)
    records = run(policy_source, trial(), SPEC, tmp_path / "some")
    assert [record.get("grad_norm") for record in records] == [None, None, 1.0, 1.0]
    with pytest.raises(TrialError, match=r"not finite in any of the 4 steps.*; lower the"):
        run(policy_source, trial(), SPEC, tmp_path / "all")
    assert not (tmp_path / "all" / "weights").exists()


def test_weights_that_the_last_update_spoils_are_no_result(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0})
    with pytest.raises(
        TrialError, match=r"not finite after the last step; lower the learning rate"
    ):
        run(policy_source, trial(learning_rate=3e38, beta=100.0), spec, tmp_path)
    assert not (tmp_path / "weights").exists()


def test_a_batch_that_does_not_fit_is_cut_by_the_first_halving_already(
    policy_source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to one pair; each half really is half, though packed batches are far from the limit."""
    spec = SPEC.model_copy(update={"per_device_train_batch_size": 4, "max_steps": 1})
    pairs = tokenized_pairs(policy_source)
    plain = PreparedDPOTrainer._compute_loss
    sizes: list[int] = []

    def recorded(self: Any, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        sizes.append(len(inputs["ref_chosen_logps"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, model, inputs, return_outputs)

    monkeypatch.setattr(PreparedDPOTrainer, "_compute_loss", recorded)
    halvings = 0
    while True:
        try:
            run(policy_source, trial(), spec, tmp_path / str(halvings), halvings=halvings)
            break
        except OutOfMemory as error:
            assert error.can_halve, sizes
            assert "step 1 of the training does not fit the memory: CUDA out of" in str(error)
            halvings += 1
    assert sizes[0] == 4 and sizes[1] < 4 and sizes[-4:] == [1, 1, 1, 1]
    assert halvings <= 3
    one_pair = spec.model_copy(update={"per_device_train_batch_size": 1})
    for packed in (True, False):
        assert not halved_tokens(one_pair, pairs, 0, seed=0, packed=packed)[1]


def test_a_loss_that_mixes_rows_cannot_be_halved(
    policy_source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PreparedDPOTrainer, "_compute_loss", full)
    with pytest.raises(OutOfMemory) as raised:
        run(policy_source, trial(loss_type="aot"), SPEC, tmp_path)
    assert not raised.value.can_halve


def test_no_training_pair_is_refused(policy_source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training pair is left"):
        train(
            trial(),
            SPEC,
            load_policy(policy_source),
            load_tokenizer(policy_source),
            tokenized_pairs(policy_source, num_test=8),
            tmp_path / "weights",
            Hooks(report=lambda record: None),
        )


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (TrainingSpec(max_steps=7), 7),
        (TrainingSpec(num_train_epochs=2, per_device_train_batch_size=3), 6),
        (
            TrainingSpec(
                num_train_epochs=3, per_device_train_batch_size=3, gradient_accumulation_steps=2
            ),
            6,
        ),
        (TrainingSpec(num_train_epochs=3, prompts_per_batch=3), 9),
        (
            TrainingSpec(num_train_epochs=3, prompts_per_batch=2, gradient_accumulation_steps=2),
            6,
        ),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(
    policy_source: ModelSource, tmp_path: Path, spec: TrainingSpec, expected: int
) -> None:
    assert max_steps(spec, tokenized_pairs(policy_source)) == expected
    records = run(policy_source, trial(), spec.model_copy(update={"logging_steps": 1}), tmp_path)
    assert records[-1]["step"] == expected
