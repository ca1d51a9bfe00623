"""Sets up a worker process when it starts."""

import os


def set_up_worker(threads: int) -> None:
    """Set torch's number of threads, which affects results, and silence libraries."""
    import datasets
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def hide_gpus_of_others() -> None:
    """Hide all GPUs in a worker without a GPU; Ray leaves them visible."""
    import ray

    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
