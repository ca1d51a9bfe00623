"""The border of a worker process: what is set when it starts, and how its errors come back."""

from prefsweep.sweeps.errors import StageError, SweepError


def set_up_worker(threads: int) -> None:
    """Set the threads of torch, on which results depend, and keep libraries from printing."""
    import datasets
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def stage_error(name: str, error: Exception) -> SweepError:
    """What a remote failure of a stage is to the user; our own errors come back as they are."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, SweepError):
        return cause
    if cause is not None:
        return StageError(f"{name} failed in a worker: {type(cause).__name__}: {cause}\n{error}")
    return StageError(f"{name}: its worker died ({type(error).__name__}: {error})")
