"""What cannot be computed: a prompt that kills whoever reads it, and weights with NaN in them."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tasks.stages import read_records
from prefsweep.sweeps.errors import SweepError
from prefsweep.sweeps.records import EvaluationSample, Prompt, ScoredCompletion
from prefsweep.workers import tables
from tests.integration.small import weights

from .conftest import Start
from .harness import (
    Fault,
    assert_nothing_is_redone,
    assert_results,
    assert_whole,
    finished,
    store_before,
    sweep_in,
    words,
)


def test_a_prompt_that_kills_its_worker_is_quarantined_and_the_rest_is_done(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("completions", undisturbed, tmp_path / "store")
    prompts: list[Prompt] = read_records(undisturbed, "prompts", Prompt)
    poison = prompts[4]
    run = start(storage, *words(), faults=[Fault("generating", "die", 1000, text=poison.text)])
    assert run.wait() == 1, run.output
    assert f"the prompts {poison.prompt_id} crash every worker" in run.output
    assert "1 prompts crashed every worker that processed them and were skipped" in run.output
    (scores,) = storage.glob("artifacts/scores-*/manifest.json")
    kept = completions_in(scores.parent)
    whole = completions_in(undisturbed.store.fetch(undisturbed.path("scores")))
    del whole[poison.prompt_id]
    assert kept == whole, "the rest is what it is without the poison"
    with (storage / "sweeps/small/report/trials.csv").open() as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"succeeded"}
    before = finished(storage)
    again = start(storage, *words("--inline"))
    assert again.wait() == 1, "reported again"
    assert_nothing_is_redone(before)
    assert_whole(storage, unfinished=True)


def test_a_held_out_prompt_that_kills_its_worker_is_quarantined_and_the_rest_is_done(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("untrained", undisturbed, tmp_path / "store")
    held_out: list[Prompt] = read_records(undisturbed, "eval_prompts", Prompt)
    poison = held_out[1]
    run = start(storage, *words(), faults=[Fault("sampling", "die", 1000, text=poison.text)])
    assert run.wait() == 1, run.output
    assert f"untrained: the prompts {poison.prompt_id} crash every worker" in run.output
    assert "1 prompts crashed every worker that processed them and were skipped" in run.output
    evaluations = [*storage.glob("artifacts/untrained-*"), *storage.glob("trials/*/evaluations/*")]
    assert len(evaluations) == 3
    rest = sorted(prompt.prompt_id for prompt in held_out if prompt != poison)
    for folder in evaluations:
        samples = tables.read_records(EvaluationSample, [folder / "samples.parquet"])
        assert sorted(sample.prompt_id for sample in samples) == rest
    assert weights(sweep_in(storage)) == weights(undisturbed), "no trial is another one"
    whole = start(storage, "resume", "small", "--inline", "--restart-errored")
    assert whole.wait() == 0, whole.output
    assert_whole(storage)
    assert_results(storage, undisturbed)


def test_a_model_that_kills_whoever_loads_it_ends_the_run_and_no_prompt_is_blamed(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("completions", undisturbed, tmp_path / "store")
    run = start(storage, *words(), faults=[Fault("loading", "die", 1000)])
    assert run.wait() == 1, run.output
    assert "completions: its workers die while they load policy.model=" in run.output
    assert "Traceback" not in run.output
    spec = json.loads((storage / "sweeps/small/spec.json").read_text())
    assert spec["inputs"]["quarantined"] == {}
    before = finished(storage)
    mended = start(storage, *words("--inline"))
    assert mended.wait() == 0, mended.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)


def completions_in(folder: Path) -> dict[str, list[tuple[str, float]]]:
    """Prompt id -> completions with their scores."""
    found: dict[str, list[tuple[str, float]]] = {}
    for record in tables.read_records(ScoredCompletion, sorted(folder.glob("*.parquet"))):
        found.setdefault(record.prompt_id, []).append((record.text, record.score))
    return found


def test_nan_in_a_trials_weights_fails_it_once_and_for_good(
    undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    storage = store_before("training", undisturbed, tmp_path / "store")
    run = start(storage, *words("--inline"), faults=[Fault("training", "break_weights", after=3)])
    assert run.wait() == 1, run.output
    statuses = {
        status["name"]: status
        for path in storage.glob("trials/*/status.json")
        for status in [json.loads(path.read_text())]
    }
    failed = [status for status in statuses.values() if status["status"] == "failed"]
    assert len(failed) == 1 and len(statuses) == 2
    assert failed[0]["failure"]["kind"] == "deterministic"
    assert "at step 4" in failed[0]["failure"]["message"]
    assert failed[0]["attempts"] == 1
    before = finished(storage)
    again = start(storage, *words("--inline"))
    assert again.wait() == 1, "it is not tried again without being asked"
    assert "trials: 0 to run" in again.output
    mended = start(storage, "resume", "small", "--inline", "--restart-errored")
    assert mended.wait() == 0, mended.output
    assert_nothing_is_redone(before)
    assert_whole(storage)
    assert_results(storage, undisturbed)


def test_nan_in_a_row_of_the_policys_weights_is_told_by_its_name(
    undisturbed: Sweep, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "policy"
    shutil.copytree(undisturbed.store.fetch(undisturbed.path("policy")), folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "wte" in name)
    tensors[name][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sweep = sweep_in(tmp_path / "store", f"policy.model={folder}")
    with pytest.raises(SweepError, match="not finite") as error:
        run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources))
    assert name in str(error.value)
