"""The border of a worker process: what is set when it starts, and how its errors come back."""

import os


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
