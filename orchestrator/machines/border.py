"""The border of a worker process: what is set when it starts, and how its errors come back."""

import os
import sys

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


def hide_gpus_of_others() -> None:
    """In a worker that was given no GPU, see none: Ray leaves them all visible."""
    import ray

    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def node() -> dict[str, str]:
    """The node of the Ray cluster that this process is on, if it is on one, for manifests."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    return {"node": ray.get_runtime_context().get_node_id()}


def stage_error(name: str, error: Exception) -> SweepError:
    """What a remote failure of a stage is to the user; our own errors come back as they are."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, SweepError):
        return cause
    if cause is not None:
        return StageError(f"{name} failed in a worker: {type(cause).__name__}: {cause}\n{error}")
    return StageError(f"{name}: its worker died ({type(error).__name__}: {error})")
