"""Trains one trial from a grid point and tokenized pairs (with TRL's DPOTrainer).

The pairs contain token IDs and reference log-probabilities, so no reference model is loaded, and
nothing is tokenized. The caller passes `report` and `publish`; this module does not use Ray, W&B
or the store.
"""

import logging
import math
import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
)
from transformers.trainer_utils import TrainOutput
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from prefsweep.sweeps.errors import OutOfMemory, StopRequested, TrialError
from prefsweep.sweeps.fusing import why_not_fused
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import TokenizedPair
from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.adapters import lora_config
from prefsweep.workers.attention import segmented
from prefsweep.workers.batches import (
    MICRO_BATCHES,
    BatchCollator,
    RowSampler,
    batch_size,
    halved_tokens,
    max_tokens,
    preference_dataset,
    row_sampler,
    some_sequences,
)
from prefsweep.workers.deferred import deferred, read, read_metrics
from prefsweep.workers.dropout import require_no_noise, without_dropout
from prefsweep.workers.forward import base_model, has_auxiliary_loss, packs_exactly
from prefsweep.workers.hooks import Hooks as Hooks
from prefsweep.workers.hooks import HooksCallback, checkpoint_folder
from prefsweep.workers.losses import mixes_rows, trl_arguments
from prefsweep.workers.memory import is_out_of_memory
from prefsweep.workers.objective import batch_loss
from prefsweep.workers.packing import IGNORED, OUTPUTS, add_packed_head, packed_outputs, take_plan
from prefsweep.workers.precision import Precision, hold_master_weights, precision
from prefsweep.workers.trial_end import end_metrics, not_finite_at_end, not_finite_in_step
from prefsweep.workers.window import LogWindow, is_of_group

log = logging.getLogger(__name__)


def train(
    trial: TrialSpec,
    spec: TrainingSpec,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[TokenizedPair],
    output_dir: Path,
    hooks: Hooks,
) -> dict[str, float]:
    """Train `model` on the pairs of the train split and save adapter or weights in `output_dir`.

    `output_dir` only gets the final weights; checkpoints are passed to `hooks.publish`, which may
    move their folder. Returns train_seconds, steps, train_loss (mean over steps) and, on CUDA,
    gpu_memory_gib (peak). Raises TrialError at the next log step, checkpoint or end
    after a non-finite loss or gradient (fp16 may skip some steps, but not all), OutOfMemory if
    memory runs out, and StopRequested if training was stopped early.
    """
    if _runs_as_group(spec, model, hooks.resume_from):
        # imported here because it imports this module
        from prefsweep.workers.fused import UnfusableError, train_group

        try:
            (outcome,) = train_group([trial], spec, model, tokenizer, pairs, [output_dir], [hooks])
        except UnfusableError:
            pass  # the reason has been logged; TRL's trainer trains it
        else:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    work_dir = output_dir.parent / f"{output_dir.name}-work"
    computing = precision(spec, model)
    hold_master_weights(spec, model)
    trainer = PreparedDPOTrainer(
        model=model,
        args=training_arguments(trial, spec, computing, work_dir),
        train_dataset=preference_dataset(
            pairs, trial.ld_alpha, by_prompt=spec.prompts_per_batch is not None
        ),
        processing_class=tokenizer,
        peft_config=None if spec.lora is None else lora_config(spec.lora, model),
        callbacks=[HooksCallback(hooks, spec.save_steps)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.window.go_on_from(hooks.resume_from)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    trainer.trial, trainer.spec, trainer.remedy = trial, spec, computing.remedy
    trainer.packing = spec.packing == "auto" and _packs(trained, pairs)
    tokens_after = partial(halved_tokens, spec, pairs, seed=trial.seed, packed=trainer.packing)
    limit = max_tokens(spec, pairs) if not hooks.halvings else tokens_after(hooks.halvings)[0]
    limit = None if mixes_rows(trial) else limit
    assert isinstance(tokenizer.pad_token_id, int), "load_tokenizer sets a pad token"
    trainer.data_collator = BatchCollator(tokenizer.pad_token_id, limit, packed=trainer.packing)
    quiet = without_dropout(trained) if spec.disable_dropout else nullcontext()
    with quiet, segmented(base_model(trained)) if trainer.packing else nullcontext():
        if spec.disable_dropout:
            require_no_noise(trained, some_sequences(pairs))
        outcome = _fit(
            trainer,
            hooks.resume_from,
            can_halve=lambda: limit is not None and tokens_after(hooks.halvings)[1],
        )
    if trainer.num_skipped == outcome.global_step:
        raise TrialError(
            f"the gradient was not finite in any of the {trainer.num_skipped} steps, and fp16's "
            f"loss scaling has skipped them all; {computing.remedy}"
        )
    _check_finite(trained, computing.remedy)
    trained.save_pretrained(str(output_dir))
    if not isinstance(trained, PeftModel):
        tokenizer.save_pretrained(str(output_dir))
    return end_metrics(trainer.window.seconds, outcome.training_loss, outcome.global_step)


def _runs_as_group(spec: TrainingSpec, model: PreTrainedModel, resume_from: Path | None) -> bool:
    """Whether a trial is run as a group of one, which needs half as many kernel launches.

    On the CPU in fp32 it is not, so that its results stay bit-identical. A resumed trial is run in
    the same way as its checkpoint was.
    """
    if resume_from is not None:
        return is_of_group(resume_from)
    can = why_not_fused(spec, str(model.dtype).removeprefix("torch.")) is None
    return can and (spec.bf16 or model.device.type != "cpu")


class PreparedDPOTrainer(DPOTrainer):
    """TRL's trainer for columns that are already tokenized and have reference sums.

    Batches are run packed, in the order of `training.order`. It replaces private methods of TRL
    1.16 (tests compare with the stock trainer). Nothing is read from the device between two log
    steps; a loss or gradient that is not finite ends the training at the next log step, checkpoint
    or end, whichever comes first.
    """

    trial: TrialSpec
    """The trial whose loss is computed."""
    spec: TrainingSpec
    """The training section, with the order of batches."""
    packing = False
    """Whether batches are run packed."""
    remedy = ""
    """What to change if a loss or gradient is not finite."""
    num_skipped = 0
    """Number of steps that fp16's loss scaling has skipped."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._share = 1.0
        self._unchecked: list[tuple[int, str, Any]] = []
        """(step, name, value) of losses and gradient norms that have not been checked yet."""
        self.window = LogWindow(self)
        self.add_callback(self.window)
        add_packed_head(base_model(self.model))

    def _get_train_sampler(self, train_dataset: Any = None) -> RowSampler:
        assert isinstance(self.train_dataset, Dataset)
        return row_sampler(list(self.train_dataset["prompt_id"]), self.spec, self.args.seed)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        inputs = dict(inputs)
        plan = take_plan(inputs)
        if self.packing and plan is not None:
            outputs, aux_loss = packed_outputs(model, plan), None
        else:
            answer = self._padded_outputs(model, inputs)
            outputs = {name: getattr(answer, name) for name in OUTPUTS}
            aux_loss = answer.aux_loss if self.aux_loss_enabled else None
        loss, metrics = batch_loss(self.trial, self.trial.beta, outputs, inputs)
        if aux_loss is not None:
            loss = loss + self.router_aux_loss_coef * aux_loss
            metrics["aux_loss"] = deferred(aux_loss)
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        self._unchecked.append((self.state.global_step + 1, "loss", loss.detach()))
        return loss * self._share

    def _padded_outputs(self, model: Any, inputs: dict[str, torch.Tensor]) -> Any:
        """Per-token outputs of TRL's head, on TRL's batch."""
        ids_BT = inputs["input_ids"]
        routers = {"output_router_logits": True} if self.aux_loss_enabled else {}
        return model(
            input_ids=ids_BT,
            attention_mask=inputs["attention_mask"],
            labels=ids_BT.masked_fill(inputs["completion_mask"] == 0, IGNORED),
            use_cache=False,
            fused_lm_head=True,
            **routers,
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Forward and backward pass of one batch. A split batch runs in parts, each weighted by its
        share of the pairs, in the loss and in the metrics."""
        parts = inputs.get(MICRO_BATCHES)
        if parts is None:
            return super().training_step(model, inputs, num_items_in_batch)
        sizes = [len(part["ref_chosen_logps"]) for part in parts]
        shares = [size / sum(sizes) for size in sizes]
        loss = torch.zeros((), device=self.args.device)
        for part, self._share in zip(parts, shares, strict=True):
            loss = loss + super().training_step(model, part, num_items_in_batch)
        self._share = 1.0
        for values in self._metrics["train"].values():
            own = values[-len(parts) :]
            values[-len(parts) :] = [sum(map(operator.mul, own, shares))]
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        step = self.state.global_step + 1
        if self._scaler_skips() and not math.isfinite(float(grad_norm)):
            self.num_skipped += 1
        else:
            self._unchecked.append((step, "gradient norm", grad_norm))
        if step % self.args.logging_steps == 0 or step >= self.state.max_steps:
            self.check_finite()
        return grad_norm

    def check_finite(self) -> None:
        """Raises TrialError if a loss or a gradient since the last check is not finite."""
        unchecked, self._unchecked = self._unchecked, []
        values = read(deferred(v) if torch.is_tensor(v) else v for _, _, v in unchecked)
        for (step, what, _), value in zip(unchecked, values, strict=True):
            if not math.isfinite(value):
                raise not_finite_in_step(what, value, step, self.remedy)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Read the window's metrics from the device, then log them."""
        metrics = self._metrics["train"]
        metrics.update(read_metrics(metrics))
        super().log(logs, start_time)

    def _scaler_skips(self) -> bool:
        """Whether fp16's loss scaling skips a step whose gradient is not finite.

        The initial scale is too large for many models, and is halved until the gradient is finite.
        If the gradient is still not finite at the smallest scale, the scale is not the reason.
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        outcome = super()._init_training_state(max_steps, *args, **kwargs)
        # a checkpoint contains the logging_steps it was made with; use the spec's instead
        self.state.compute_steps(self.args, max_steps)
        return outcome

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.check_finite()
        super()._save_checkpoint(model, trial)
        self.window.save(checkpoint_folder(self.args, self.state))


def _packs(model: PreTrainedModel | PeftModel, pairs: Sequence[TokenizedPair]) -> bool:
    """Whether batches are run packed. If not, a line in the log says why."""
    if has_auxiliary_loss(base_model(model)):
        name = type(base_model(model)).__name__
        log.info("%s: its auxiliary loss needs padded rows; it is trained unpacked", name)
        return False
    return packs_exactly(model, some_sequences(pairs))


def _fit(
    trainer: PreparedDPOTrainer, resume_from: Path | None, can_halve: Callable[[], bool]
) -> TrainOutput:
    try:
        outcome = trainer.train(
            resume_from_checkpoint=None if resume_from is None else str(resume_from)
        )
    except TrialError:
        # if an earlier unchecked value is not finite, raise that error instead
        trainer.check_finite()
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        step = trainer.state.global_step + 1
        shortage = OutOfMemory(f"step {step} of the training does not fit the memory: {error}")
        shortage.can_halve = can_halve()
        raise shortage from error
    if outcome.global_step < trainer.state.max_steps:
        raise StopRequested(f"training was asked to stop after step {outcome.global_step}")
    return outcome


def _check_finite(model: torch.nn.Module, remedy: str) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise not_finite_at_end(name, remedy)


def training_arguments(
    trial: TrialSpec, spec: TrainingSpec, computing: Precision, work_dir: Path
) -> DPOConfig:
    """The arguments of TRL and transformers for a trial."""
    return DPOConfig(
        output_dir=str(work_dir),
        learning_rate=trial.learning_rate,
        num_train_epochs=spec.num_train_epochs,
        max_steps=spec.max_steps or -1,
        per_device_train_batch_size=batch_size(spec),  # BatchCollator splits it
        optim=spec.optim,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        lr_scheduler_type=spec.lr_scheduler_type,
        warmup_steps=spec.warmup_steps,
        bf16=computing.bf16,
        fp16=computing.fp16,
        activation_checkpointing=spec.gradient_checkpointing,
        disable_dropout=spec.disable_dropout,
        seed=trial.seed,
        logging_steps=spec.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",  # HooksCallback decides when
        max_length=None,  # the columns are cut already
        precompute_ref_log_probs=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,  # prompt_id and the pairs of a prompt are needed
        report_to="none",
        disable_tqdm=True,
        **trl_arguments(trial),
    )
