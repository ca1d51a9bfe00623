"""TRL's loss code without waiting for the device: numbers that it would read are read later.

TRL's `_compute_loss` reads every metric of every step (`.item()`), asks whether sums of masks are
above 0, and selects by boolean masks, whose size the host has to wait for. `Deferring` runs the
same code and answers these three without a read: metrics become `Deferred` numbers, which `read`
turns into the same floats at a log step, all in one transfer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Deferred:
    """A float that is computed from values on the device, as Python would compute it."""

    def __init__(self, tensors: Sequence[torch.Tensor], of: Callable[..., float]) -> None:
        self.tensors, self.of = list(tensors), of

    def __truediv__(self, other: "Deferred") -> "Deferred":
        split = len(self.tensors)
        return Deferred(
            self.tensors + other.tensors,
            lambda *values: self.of(*values[:split]) / other.of(*values[split:]),
        )

    def __mul__(self, factor: float) -> "Deferred":
        return Deferred(self.tensors, lambda *values: self.of(*values) * factor)

    def __add__(self, other: "Deferred | float") -> "Deferred":
        if not isinstance(other, Deferred):  # where `sum` starts
            return Deferred(self.tensors, lambda *values: other + self.of(*values))
        split = len(self.tensors)
        return Deferred(
            self.tensors + other.tensors,
            lambda *values: self.of(*values[:split]) + other.of(*values[split:]),
        )

    __radd__ = __add__

    def __floordiv__(self, other: int) -> int:
        """TRL counts tokens of this process so; that metric is not reported."""
        return 0

    def __gt__(self, other: float) -> bool:
        """TRL asks whether there are any tokens; `Deferring` is for batches that have some."""
        return True


def deferred(tensor: torch.Tensor) -> Deferred:
    """The number in a tensor of one element."""
    return Deferred([tensor.detach()], lambda value: value)


def transferred(tensors: Sequence[torch.Tensor]) -> list[float]:
    """The numbers in tensors of one element, in one transfer; each is exact in float64."""
    return torch.stack([tensor.double() for tensor in tensors]).tolist() if tensors else []


def read(values: Iterable["Deferred | float"]) -> list[float]:
    """The numbers, in one transfer from the device."""
    values = list(values)
    tensors = [tensor for each in values if isinstance(each, Deferred) for tensor in each.tensors]
    numbers = iter(transferred(tensors))
    return [
        each.of(*(next(numbers) for _ in each.tensors)) if isinstance(each, Deferred) else each
        for each in values
    ]


def read_metrics(metrics: Mapping[str, Sequence["Deferred | float"]]) -> dict[str, list[float]]:
    """Lists of numbers by name, in one transfer."""
    numbers = iter(read(value for values in metrics.values() for value in values))
    return {name: [next(numbers) for _ in values] for name, values in metrics.items()}


class Deferring(TorchFunctionMode):
    """Within the block, `.item()` gives a Deferred, truth is assumed, and selecting by one of the
    masks of the chosen and the rejected completions' tokens takes the places that are given.

    `chosen` and `rejected` are those masks' flat indices of True: (n,), none of them empty.
    """

    def __init__(self, chosen: torch.Tensor, rejected: torch.Tensor) -> None:
        super().__init__()
        self._places = (chosen, rejected)
        self._halves: dict[int, int] = {}
        self._masks: list[torch.Tensor] = []
        """Boolean masks that were made, kept so that their ids stay theirs."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.item:
            return deferred(args[0])
        if func is torch.Tensor.__bool__:
            return True
        if func is torch.Tensor.__getitem__ and id(args[1]) in self._halves:
            return args[0].flatten()[self._places[self._halves[id(args[1])]]]
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.bool:
            # masks are halves of one tensor: chosen first, rejected behind
            self._masks.append(result)
            self._halves[id(result)] = int(args[0].storage_offset() >= args[0].numel())
        return result

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        self._halves.clear()
        self._masks.clear()


def outside(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model as TRL's loss code may call it within the block: its own reads are left alone."""

    def call(**kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return model(**kwargs)

    return call
