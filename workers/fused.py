"""Trains K LoRA trials with the same model, pairs and order together, with few kernel launches.

Each trial has its own loss, beta, learning rate and schedule, clipping, optimizer, metrics,
checkpoints and failure. A trial whose loss or gradient is not finite leaves the group. Its row is
then computed with the bare model, so that the other trials' numbers do not change by a bit. Nothing
is read from the device between two log steps. A group of one is a single trial with few launches.

Shapes: K trials, N positions that predict a token, E values per hidden state.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefsweep.sweeps.errors import OutOfMemory, StopRequested
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import TokenizedPair
from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.attention import announce, segmented
from prefsweep.workers.batches import (
    MICRO_BATCHES,
    REFERENCE_SUMS,
    BatchCollator,
    batch_size,
    flat,
    halved_tokens,
    max_steps,
    max_tokens,
    preference_rows,
    row_sampler,
    some_sequences,
    together,
)
from prefsweep.workers.dropout import require_no_noise, without_dropout
from prefsweep.workers.forward import has_auxiliary_loss, packs_exactly
from prefsweep.workers.group_attention import attend, gathers
from prefsweep.workers.group_loss import GroupLoss
from prefsweep.workers.head import FrozenHead, is_plain_head, token_outputs
from prefsweep.workers.hooks import Hooks, SaveClock
from prefsweep.workers.lora_stack import AdapterStack
from prefsweep.workers.losses import mixes_rows
from prefsweep.workers.memory import is_out_of_memory
from prefsweep.workers.packing import OUTPUTS, take_plan, unpack
from prefsweep.workers.precision import autocast, precision
from prefsweep.workers.row_optim import RowOptimizer
from prefsweep.workers.solo import Solo
from prefsweep.workers.train import lora_config, training_arguments

Outcome = dict[str, float] | Exception
"""A trial's metrics, or the error that ended it: TrialError, StopRequested, or one of its hooks."""


class UnfusableError(Exception):
    """The model cannot be trained in groups."""


def train_group(
    trials: Sequence[TrialSpec],
    spec: TrainingSpec,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[TokenizedPair],
    output_dirs: Sequence[Path],
    hooks: Sequence[Hooks],
) -> list[Outcome]:
    """Train LoRA trials of one seed together; each adapter is saved in its folder, as by `train`.

    Either all trials resume from checkpoints of the same step, or none does. The metrics are those
    of `train`, and "group": the size of the largest group in which a step was trained, if above
    one. Raises OutOfMemory for all trials, and UnfusableError before training if the model's
    attention cannot be packed.
    """
    if has_auxiliary_loss(model):
        raise UnfusableError(f"{type(model).__name__} has an auxiliary loss over padded rows")
    sequences = some_sequences(pairs)
    if not packs_exactly(model, sequences) or not is_plain_head(model):
        raise UnfusableError(f"{type(model).__name__} cannot be run packed")
    group = _Group(trials, spec, model, tokenizer, pairs, output_dirs, hooks)
    try:
        with without_dropout(model), segmented(model):
            require_no_noise(model, sequences)
            group.run()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        shortage = OutOfMemory(
            f"step {group.step + 1} of the training of {len(trials)} trials does not fit the "
            f"memory: {error}"
        )
        shortage.can_halve = len(trials) > 1 or group.can_halve()
        raise shortage from error
    return group.outcomes


class _Group:
    def __init__(
        self,
        trials: Sequence[TrialSpec],
        spec: TrainingSpec,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[TokenizedPair],
        output_dirs: Sequence[Path],
        hooks: Sequence[Hooks],
    ) -> None:
        assert spec.lora is not None and len({trial.seed for trial in trials}) == 1
        self._trials, self._spec, self._model, self._pairs = trials, spec, model, pairs
        self._device = torch.device(model.device)
        self._half = torch.bfloat16 if spec.bf16 else None
        config = lora_config(spec.lora, model)
        seed = trials[0].seed
        self._stack = AdapterStack(model, config, len(trials), seed=seed, half=self._half)
        if spec.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.total = max_steps(spec, pairs)
        computing = precision(spec, model)
        arguments = [training_arguments(trial, spec, computing, output_dirs[0]) for trial in trials]
        stack = self._stack
        self._optimizer = RowOptimizer(stack.values_KP, stack.grads_KP, arguments, self.total)
        self._solos = [
            Solo(stack, self._optimizer, index, output_dir, own, computing.remedy)
            for index, (output_dir, own) in enumerate(zip(output_dirs, hooks, strict=True))
        ]
        self.outcomes: list[Outcome] = []
        begun = [solo.own(solo.resume) for solo in self._solos]
        steps = {step for step in begun if step is not None}
        assert len(steps) <= 1, "a group resumes at one step"
        self.step = next(iter(steps), self.total)  # none: no trial can continue
        self._rows = {
            trial.ld_alpha: preference_rows(
                pairs, trial.ld_alpha, by_prompt=spec.prompts_per_batch is not None
            )
            for trial in trials
        }
        self._loss = GroupLoss(trials, self._device)
        head = model.get_output_embeddings()
        self._head = FrozenHead.of(head, self._half, num_rows=len(trials))
        self._clock = SaveClock(spec.save_steps)
        self._halvings = max(own.halvings for own in hooks)
        self._limit = self._token_limit()
        pad = tokenizer.pad_token_id
        assert isinstance(pad, int), "load_tokenizer sets a pad token"
        self._collator = BatchCollator(pad, self._limit, packed=True)

    def run(self) -> None:
        """Run all remaining steps, and finish each trial."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._model.train()
        started = time.monotonic()
        for batch in self._batches():
            self._train_step(batch)
            self.step += 1
            seconds, started = time.monotonic() - started, time.monotonic()
            running = [solo for solo in self._solos if solo.is_running]
            for solo in running:
                solo.seconds += seconds / len(running)
            self._after_step(running)
            if not any(solo.is_running for solo in self._solos):
                break
        self.outcomes = [solo.finish(self.total) for solo in self._solos]

    def can_halve(self) -> bool:
        """Whether a forward pass can have fewer tokens."""
        return self._limit is not None and self._halved(self._halvings)[1]

    def _train_step(self, batch: dict[str, Any]) -> None:
        parts = batch.get(MICRO_BATCHES, [batch])
        sizes = [len(part[REFERENCE_SUMS[0]]) for part in parts]
        self._stack.grads_KP.zero_()
        losses_K, numbers = torch.zeros(len(self._trials), device=self._device), []
        with self._stack.applied():  # also for the backward pass, which may recompute
            for part, size in zip(parts, sizes, strict=True):
                share = size / sum(sizes)
                part_losses_K, part_numbers = self._losses(self._moved(part))
                part_losses_K = part_losses_K * share if share < 1 else part_losses_K
                self._stack.backward(part_losses_K.sum())
                losses_K += part_losses_K.detach()
                numbers += [(share, each) for each in part_numbers]
        norms_K = self._clip()
        self._optimizer.step(self.step)
        for solo in self._solos:
            solo.take(self.step + 1, losses_K, norms_K, numbers)
        self._stack.refresh()

    def _losses(self, part: dict[str, Any]) -> Any:
        plan = take_plan(part)
        references = {
            a: {name: part[f"{name}{_suffix(a)}"] for name in REFERENCE_SUMS} for a in self._rows
        }
        if plan is None:  # all completions are empty: there is a loss, but no gradient
            rows, length = part["input_ids"].shape
            shape = (len(self._trials), rows, length - 1)
            none = torch.zeros(shape, device=self._device, requires_grad=True)
            return self._loss(dict.fromkeys(OUTPUTS, none), part, references)
        body, head = self._model.base_model, self._model.get_output_embeddings()
        at = gathers(plan.segments)
        with autocast("bfloat16" if self._half else None, self._device):
            hidden_KLE = body(
                input_ids=plan.input_ids.expand(len(self._trials), -1),
                attention_mask=announce(plan.segments, partial(attend, at)),
                position_ids=plan.position_ids,
                use_cache=False,
            ).last_hidden_state
            hidden_NE = hidden_KLE.index_select(1, plan.predicting).flatten(0, 1)
            labels_N = plan.labels.repeat(len(self._trials))
            tokens = token_outputs(hidden_NE, head, labels_N, self._head)
        outputs = {
            name: unpack(getattr(tokens, name).view(len(self._trials), -1), plan.gather)
            for name in OUTPUTS
        }
        return self._loss(outputs, part, references)

    def _clip(self) -> torch.Tensor:
        """Clip each trial's gradient by its norm; returns the norms (K,) before clipping."""
        grads_KP, limit = self._stack.grads_KP, self._spec.max_grad_norm
        norms_K = torch.linalg.vector_norm(grads_KP, dim=1)
        if limit > 0:
            grads_KP.mul_((limit / (norms_K + 1e-6)).clamp(max=1.0)[:, None])
        return norms_K

    def _after_step(self, running: Sequence[Solo]) -> None:
        logs = self.step % self._spec.logging_steps == 0
        for solo in running:
            if logs:
                solo.check()
            solo.own(partial(solo.look, self.step))
            if logs:
                solo.own(partial(solo.log, self.step, self._epoch()))
        if self.step >= self.total:
            return
        stopping = [solo for solo in running if solo.own(solo.wants_to_stop)]
        due = self._clock.is_due(self.step)
        for solo in running if due else stopping:
            solo.own(partial(solo.save, self.step))
        if due or stopping:
            self._clock.saved()
        for solo in stopping:
            if solo.is_running:
                solo.end(StopRequested(f"training was asked to stop after step {self.step}"))
        self._clock.begin()

    def _epoch(self) -> float:
        epoch, step = divmod(self.step - 1, self._steps_per_epoch())
        return epoch + (step + 1) / self._steps_per_epoch()

    def _steps_per_epoch(self) -> int:
        num_rows = len(next(iter(self._rows.values())))
        return -(-num_rows // batch_size(self._spec))

    def _batches(self) -> Iterator[dict[str, Any]]:
        """The batches of the remaining steps, on the CPU."""
        rows, size = next(iter(self._rows.values())), batch_size(self._spec)
        sampler = row_sampler([row["prompt_id"] for row in rows], self._spec, self._trials[0].seed)
        per_epoch, order = self._steps_per_epoch(), list[int]()
        for step in range(self.step, self.total):
            if not order or step % per_epoch == 0:
                sampler.set_epoch(step // per_epoch)
                order = list(sampler)
            begin = step % per_epoch * size
            yield self._collated(order[begin : begin + size])

    def _collated(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch with the reference sums for each ld_alpha."""
        own = {a: together(flat([rows[i] for i in indices])) for a, rows in self._rows.items()}
        first = next(iter(self._rows.values()))
        batch = self._collator([first[i] for i in indices])
        begin = 0
        for part in batch.get(MICRO_BATCHES, [batch]):
            end = begin + len(part[REFERENCE_SUMS[0]])
            for a, pairs in own.items():
                for name in REFERENCE_SUMS:
                    sums = [pair[name] for pair in pairs[begin:end]]
                    part[f"{name}{_suffix(a)}"] = torch.tensor(sums)
            begin = end
        return batch

    def _moved(self, part: dict[str, Any]) -> dict[str, Any]:
        if self._device.type != "cuda":
            return dict(part)
        return {
            name: value.pin_memory().to(self._device, non_blocking=True)
            for name, value in part.items()
        }

    def _token_limit(self) -> int | None:
        if any(map(mixes_rows, self._trials)):
            return None
        if not self._halvings:
            return max_tokens(self._spec, self._pairs)
        return self._halved(self._halvings)[0]

    def _halved(self, halvings: int) -> tuple[int, bool]:
        seed = self._trials[0].seed
        return halved_tokens(self._spec, self._pairs, halvings, seed=seed, packed=True)


def _suffix(ld_alpha: float | None) -> str:
    return f"@{ld_alpha}"
