"""The end of a trial's training, alone or in a group: its metrics, or the reason of a failure."""

import torch

from prefsweep.sweeps.errors import TrialError


def end_metrics(seconds: float, mean_loss: float, num_steps: int) -> dict[str, float]:
    """train_seconds, train_loss (mean over steps), steps and, on CUDA, gpu_memory_gib (peak)."""
    metrics = {"train_seconds": seconds, "train_loss": mean_loss, "steps": float(num_steps)}
    if torch.cuda.is_available():
        metrics["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return metrics


def not_finite_in_step(what: str, value: float, step: int, remedy: str) -> TrialError:
    """The error for a loss or gradient norm; `remedy` says what to change (precision.py)."""
    return TrialError(f"the {what} is {value} at step {step}; {remedy}")


def not_finite_at_end(name: str, remedy: str) -> TrialError:
    """The error for weights, which are checked because no loss follows the last update."""
    return TrialError(f"{name} contains values that are not finite after the last step; {remedy}")
