"""K LoRA adapters on one frozen model: products with the base once, with the adapters batched.

peft wraps the model once, for the adapters' names, scaling and files. Inside `applied`, the adapted
layers run K rows of tokens, row k with adapter k: one product with the frozen matrix for all rows,
and two batched products. All numbers of an adapter are one row of a (K, P) tensor, and so are its
gradients. Optimizers, clipping and copies therefore use one tensor, whatever the number of layers.

In half precision, the frozen matrices are cast once, to the same values as autocast would in each
step. The adapters are stored in float32 and cast once per step.

Shapes: K adapters of P numbers; L tokens of a row; a layer's i inputs, o outputs, rank r.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

ADAPTER = "default"
"""peft's name of the only adapter."""


@dataclass
class _Layer:
    """A layer's stacked adapters, in the precision of the products; views that are made once.

    With one adapter, the stacks are plain matrices, whose products need fewer kernel launches.
    """

    weight_io: torch.Tensor
    weight_oi: torch.Tensor
    bias_o: torch.Tensor | None
    scaling: float
    a_Kri: torch.Tensor
    a_Kir: torch.Tensor
    b_Kor: torch.Tensor
    b_Kro: torch.Tensor
    grad_a_Kri: torch.Tensor
    grad_b_Kor: torch.Tensor


class AdapterStack:
    """`num` adapters on `model`, each initialized by peft with `seed`.

    `half` is autocast's type; None computes in the model's type.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: LoraConfig,
        num: int,
        *,
        seed: int,
        half: torch.dtype | None,
    ) -> None:
        set_seed(seed)  # as TRL does before it wraps a model
        shell = get_peft_model(model, config)
        assert isinstance(shell, PeftModel)
        self.shell, self.num, self.half = shell, num, half
        self._adapted = [m for m in shell.modules() if isinstance(m, LoraLinear)]
        self._slots: list[torch.nn.Parameter] = [
            parameter for layer in self._adapted for parameter in _matrices(layer)
        ]
        assert len(self._slots) == sum(p.requires_grad for p in shell.parameters())
        drawn_P = torch.cat([slot.detach().flatten() for slot in self._slots])
        self.values_KP = drawn_P.repeat(num, 1)
        self.grads_KP = torch.zeros_like(self.values_KP)
        self._low_KP = self.values_KP if half is None else self.values_KP.to(half)
        self._part_grads_KP = torch.zeros_like(self._low_KP)
        """Gradients of one forward pass, in which every adapted layer runs once."""
        self._anchor = torch.zeros((), device=drawn_P.device, requires_grad=True)
        """Makes the output of the first adapted layer require a gradient."""
        self._forwards = self._make_forwards()

    def refresh(self) -> None:
        """Update the copies of the values. Call this after the values change."""
        if self.half is not None:
            self._low_KP.copy_(self.values_KP)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a forward pass inside `applied` to those of the step."""
        self._part_grads_KP.zero_()
        loss.backward()
        self.grads_KP.add_(self._part_grads_KP)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block, the model's layers run K rows, row k with adapter k."""
        for module, forward in self._forwards:
            module.forward = forward
        try:
            yield
        finally:
            for module, _ in self._forwards:
                del module.forward

    @torch.no_grad()
    def show(self, index: int) -> PeftModel:
        """The model with one of the adapters, run by peft; valid until the next call."""
        for slot, values in zip(self._slots, self._split(self.values_KP[index]), strict=True):
            slot.copy_(values.view_as(slot))
        return self.shell

    def save(self, index: int, folder: Path) -> None:
        """Save one of the adapters in peft's format."""
        self.show(index).save_pretrained(str(folder))

    @torch.no_grad()
    def load(self, index: int, folder: Path) -> None:
        """Load the values of a saved adapter."""
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(self.shell, load_peft_weights(str(folder)))
        self.values_KP[index] = torch.cat([slot.flatten() for slot in self._slots])
        self.refresh()

    @torch.no_grad()
    def clear(self, index: int) -> None:
        """Set an adapter to zero, so that its row is computed like the base model."""
        self.values_KP[index] = 0
        self.refresh()

    def _split(self, numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return numbers.split([slot.numel() for slot in self._slots], dim=-1)

    def _make_forwards(self) -> list[tuple[Any, Any]]:
        pairs = zip(
            self._split(self._low_KP), self._split(self._part_grads_KP), self._slots, strict=True
        )
        rows = (self.num,) if self.num > 1 else ()
        views = iter([v.view(*rows, *s.shape) for low, grad, s in pairs for v in (low, grad)])
        forwards: list[tuple[Any, Any]] = []
        bases: set[Any] = {self.shell.get_output_embeddings()}
        for module in self._adapted:
            base = module.get_base_layer()
            bases.add(base)
            a_Kri, grad_a, b_Kor, grad_b = (next(views) for _ in range(4))
            scaling = module.scaling[ADAPTER]
            weight_io, bias_o = self._frozen(base)
            adapters = (a_Kri, a_Kri.mT, b_Kor, b_Kor.mT, grad_a, grad_b)
            layer = _Layer(weight_io, weight_io.t(), bias_o, scaling, *adapters)
            forwards.append((module, _adapted_forward(layer, self._anchor)))
        for module in self.shell.modules() if self.half is not None else ():
            is_plain = type(module) is torch.nn.Linear or type(module) is Conv1D
            if is_plain and module not in bases and not module.weight.requires_grad:
                weight_io, bias_o = self._frozen(module)
                forwards.append((module, _frozen_forward(weight_io, weight_io.t(), bias_o)))
        return forwards

    def _frozen(self, base: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(i, o) and (o,), in the precision of the products."""
        weight = base.weight.detach() if isinstance(base, Conv1D) else base.weight.detach().t()
        bias = None if base.bias is None else base.bias.detach()
        if self.half is None:
            return weight, bias
        return weight.to(self.half), None if bias is None else bias.to(self.half)


def _matrices(layer: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _adapted_forward(layer: _Layer, anchor: torch.Tensor) -> Any:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return _Adapted.apply(x, anchor, layer)

    return forward


def _frozen_forward(
    weight_io: torch.Tensor, weight_oi: torch.Tensor, bias_o: torch.Tensor | None
) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return _Frozen.apply(x, weight_io, weight_oi, bias_o)

    return forward


class _Frozen(torch.autograd.Function):
    """x W + bias, with a matrix that is not trained."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight_io: Any, weight_oi: Any, bias_o: Any) -> torch.Tensor:
        ctx.weight_oi = weight_oi
        return _product(x.to(weight_io.dtype).flatten(0, -2), weight_io, bias_o).view(
            *x.shape[:-1], -1
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        g_Mi = torch.mm(grad.flatten(0, -2), ctx.weight_oi)
        return g_Mi.view(*grad.shape[:-1], -1), None, None, None


class _Adapted(torch.autograd.Function):
    """x W + s (x A') B' for each of K rows; gradients of A and B are written to their stacks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, anchor: torch.Tensor, layer: _Layer) -> torch.Tensor:
        x_Mi = x.to(layer.weight_io.dtype).flatten(0, -2)
        out_Mo = _product(x_Mi, layer.weight_io, layer.bias_o)
        x_KLi = _rows(x_Mi, layer)
        low_KLr = _times(x_KLi, layer.a_Kir).mul_(layer.scaling)
        _add_product(_rows(out_Mo, layer), low_KLr, layer.b_Kro)
        ctx.layer, ctx.shape = layer, x.shape
        ctx.save_for_backward(x_KLi, low_KLr)
        return out_Mo.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        layer: _Layer = ctx.layer
        x_KLi, low_KLr = ctx.saved_tensors
        g_Mo = grads[0].flatten(0, -2)
        g_KLo = _rows(g_Mo, layer)
        g_KLr = _times(g_KLo, layer.b_Kor).mul_(layer.scaling)
        _times(g_KLo.mT, low_KLr, out=layer.grad_b_Kor)
        _times(g_KLr.mT, x_KLi, out=layer.grad_a_Kri)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        g_Mi = torch.mm(g_Mo, layer.weight_oi)
        _add_product(_rows(g_Mi, layer), g_KLr, layer.a_Kri)
        return g_Mi.view(ctx.shape), None, None


def _product(x_Mi: torch.Tensor, weight_io: Any, bias_o: torch.Tensor | None) -> torch.Tensor:
    if bias_o is None:
        return torch.mm(x_Mi, weight_io)
    return torch.addmm(bias_o, x_Mi, weight_io)


def _times(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    return torch.mm(a, b, out=out) if a.dim() == 2 else torch.bmm(a, b, out=out)


def _rows(x_M: torch.Tensor, layer: _Layer) -> torch.Tensor:
    """(M, n) as (K, L, n), or unchanged for one adapter."""
    if layer.a_Kri.dim() == 2:
        return x_M
    return x_M.view(len(layer.a_Kri), -1, x_M.shape[-1])


def _add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a product of matrices, or of stacks of matrices, in place."""
    if out.dim() == 2:
        out.addmm_(a, b)
    else:
        out.baddbmm_(a, b)
