"""A reward that ends its process for a prompt that names a file, as long as there is that file."""

import os
from pathlib import Path


def score(prompts: list[str], completions: list[str]) -> list[float]:
    """The length of the completion."""
    for prompt in prompts:
        word = prompt.split()[-1]
        if word.startswith("/") and Path(word).exists():
            os._exit(9)
    return [float(len(completion)) for completion in completions]
