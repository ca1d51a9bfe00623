"""Numbers on the device that are read later, in one transfer.

Each read waits for the device. Metrics of a step therefore stay there as `Deferred` numbers, and
`read` converts them to floats at a log step.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch


class Deferred:
    """A float that is computed later from values on the device, with Python's arithmetic."""

    def __init__(self, tensors: Sequence[torch.Tensor], of: Callable[..., float]) -> None:
        self.tensors, self.of = list(tensors), of

    def __mul__(self, factor: float) -> "Deferred":
        return Deferred(self.tensors, lambda *values: self.of(*values) * factor)

    def __add__(self, other: "Deferred | float") -> "Deferred":
        if not isinstance(other, Deferred):  # `sum` starts with 0
            return Deferred(self.tensors, lambda *values: other + self.of(*values))
        split = len(self.tensors)
        return Deferred(
            self.tensors + other.tensors,
            lambda *values: self.of(*values[:split]) + other.of(*values[split:]),
        )

    __radd__ = __add__


def deferred(tensor: torch.Tensor) -> Deferred:
    """The number in a one-element tensor."""
    return Deferred([tensor.detach()], lambda value: value)


def ratio(total: torch.Tensor, count: torch.Tensor) -> Deferred:
    """total / count, or 0 if count is 0."""
    return Deferred([total.detach(), count], lambda total, count: total / count if count else 0.0)


def transferred(tensors: Sequence[torch.Tensor]) -> list[float]:
    """The numbers in one-element tensors, in one transfer; each is exact in float64."""
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
