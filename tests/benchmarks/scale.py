"""Many prompts: generate, score and pairs with models that answer at once.

What is left is prefsweep's own work. The driver is a process of its own, whose peak memory is read;
half the prompts show whether time and memory grow in line with them.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from prefsweep.orchestrator import pipeline
from prefsweep.orchestrator.execution.cluster import RayCluster
from prefsweep.orchestrator.state.sweep import resolve
from prefsweep.orchestrator.tasks.shards import Generate
from prefsweep.orchestrator.tasks.stages import read_records
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.records import Completion, Prompt

NUM_COMPLETIONS = 6
SIZES = (12_500, 25_000, 50_000)


def run(folder: Path) -> list[dict[str, Any]]:
    """One row a size: seconds of the stages, and the driver's peak memory."""
    return [_measure(folder, num) for num in SIZES]


def _measure(folder: Path, num: int) -> dict[str, Any]:
    arguments = [str(folder / str(num)), str(num)]
    output = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.scale", *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


# --- the driver, as a script ---------------------------------------------------------------------


class _Instant:
    """Stands for `Generator`: answers with the prompt and the sample's number."""

    def complete(self, prompts: list[Prompt], num_completions: int) -> list[Completion]:
        """`num_completions` texts of a few dozen words for each prompt."""
        return [
            Completion(p.prompt_id, i, p.text, f" {p.text} {i}" * 8, "eos")
            for p in prompts
            for i in range(num_completions)
        ]


class InstantGenerate(Generate):
    """The stage without its model."""

    def load(self) -> Any:
        """The worker's generator and prompts."""
        return _Instant(), read_records(self.sweep, "prompts", Prompt)


def score(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward at once: the last digit of the text."""
    return [float(text[-1]) for text in completions]


def drive(storage: str, num: str) -> None:
    """Run the stages up to pairs on Ray and print one line of JSON."""
    folder = Path(storage)
    folder.mkdir(parents=True)
    prompts = folder / "prompts.jsonl"
    lines = (json.dumps({"text": f"prompt {i} of many"}) for i in range(int(num) + 10))
    prompts.write_text("\n".join(lines))
    overrides = [
        "name=scale",
        "policy.sft=null",
        "reward={type: callable, function: tests.benchmarks.scale:score}",
        f"prompts={{type: file, path: {prompts}, num_train: {num}, num_eval: 10}}",
        f"generation.num_completions={NUM_COMPLETIONS}",
        "pairs.ranks=[[0,3],[0,4],[0,5],[1,5],[2,5],[3,5]]",
        "tracking.wandb.mode=disabled",
    ]
    sweep = resolve(load_spec("quickstart", overrides), str(folder / "store"))
    pipeline.Generate = InstantGenerate
    started = time.perf_counter()
    pipeline.run_sweep(sweep, lambda: RayCluster(sweep.spec.resources), until="pairs")
    seconds = time.perf_counter() - started
    pairs = sweep.store.manifest(sweep.path("pairs"))
    assert pairs is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    row = {
        "benchmark": f"{num} prompts x {NUM_COMPLETIONS} completions to pairs, instant models",
        "ours_s": seconds,
        "driver's peak memory, GiB": peak,
        "pairs": pairs.rows,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    drive(*sys.argv[1:])
