"""Optimizers over rows: each row is one trial with its learning rate; all rows step together.

AdamW, SGD and RMSprop, as computed by torch with the settings of transformers. Rows are independent
of each other. Learning rates follow transformers' schedules.

Shapes: K trials of P numbers.
"""

import math
from collections.abc import Sequence

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments, get_scheduler

OPTIMIZERS = (torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop)


class RowOptimizer:
    """Updates `values_KP` with `grads_KP`; the trials' `arguments` differ only in learning rate."""

    def __init__(
        self,
        values_KP: torch.Tensor,
        grads_KP: torch.Tensor,
        arguments: Sequence[TrainingArguments],
        total: int,
    ) -> None:
        self._values_KP, self._grads_KP, self._decay = (
            values_KP,
            grads_KP,
            arguments[0].weight_decay,
        )
        self._kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments[0])
        if self._kind not in OPTIMIZERS:
            raise ValueError(f"{self._kind.__name__} is not an optimizer over rows")
        row = [torch.nn.Parameter(torch.zeros(()))]
        self._settings = self._kind(row, **settings).defaults
        self.rates = [schedule(each, total) for each in arguments]
        """Learning rate of each trial at each step."""
        rates_SK = torch.tensor(self.rates).t().contiguous()
        self._rates_SK1 = rates_SK.to(values_KP.device)[:, :, None]
        num = {torch.optim.AdamW: 2, torch.optim.RMSprop: 1, torch.optim.SGD: 0}[self._kind]
        self.state = [torch.zeros_like(values_KP) for _ in range(num)]
        """The moments, (K, P) each."""

    @torch.no_grad()
    def step(self, number: int) -> None:
        """Make one step; `number` counts from 0."""
        rate_K1 = self._rates_SK1[number]
        if self._kind is torch.optim.AdamW:
            self._adamw(number + 1, rate_K1)
            return
        grads_KP = self._grads_KP
        if self._decay:
            grads_KP = grads_KP.add(self._values_KP, alpha=self._decay)
        if self._kind is torch.optim.RMSprop:
            (square_KP,) = self.state
            alpha = self._settings["alpha"]
            square_KP.mul_(alpha).addcmul_(grads_KP, grads_KP, value=1 - alpha)
            grads_KP = grads_KP / square_KP.sqrt().add_(self._settings["eps"])
        self._values_KP.addcmul_(grads_KP, rate_K1, value=-1)

    def _adamw(self, step: int, rate_K1: torch.Tensor) -> None:
        mean_KP, square_KP = self.state
        beta1, beta2 = self._settings["betas"]
        if self._decay:
            self._values_KP.mul_(1 - rate_K1 * self._decay)
        mean_KP.lerp_(self._grads_KP, 1 - beta1)
        square_KP.mul_(beta2).addcmul_(self._grads_KP, self._grads_KP, value=1 - beta2)
        denominator_KP = square_KP.sqrt().div_(math.sqrt(1 - beta2**step))
        update_KP = mean_KP / denominator_KP.add_(self._settings["eps"])
        self._values_KP.addcmul_(update_KP, rate_K1, value=-1 / (1 - beta1**step))


def schedule(arguments: TrainingArguments, total: int) -> list[float]:
    """The learning rate of each of `total` steps, by transformers' schedule.

    Raises ValueError for a schedule that depends on more than the number of the step.
    """
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=arguments.learning_rate)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(total),
        num_training_steps=total,
    )
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"the schedule {arguments.lr_scheduler_type} depends on more than the step"
        )
    factor = scheduler.lr_lambdas[0]
    return [arguments.learning_rate * factor(step) for step in range(total)]
