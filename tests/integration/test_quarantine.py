"""A prompt that ends every worker that scores it, on Ray: quarantined, and the rest goes on."""

import json
from pathlib import Path

import pytest

from prefsweep.orchestrator.execution.cluster import InlineCluster, RayCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.results.status import read_status
from prefsweep.orchestrator.state.quarantine import with_recorded_quarantine
from prefsweep.orchestrator.state.sweep import Sweep, open_sweep
from prefsweep.orchestrator.tasks.stages import read_records
from prefsweep.sweeps.records import Errored, PreferencePair, ScoredCompletion, prompt_id

from .small import small_sweep


def run(sweep: Sweep, *, errored: Errored = "retry") -> Sweep:
    def on_ray() -> RayCluster:
        return RayCluster(sweep.spec.resources, num_cpus=2)

    run_sweep(sweep, on_ray, until="pairs", errored=errored)
    return open_sweep("small", sweep.storage)


def scored_prompts(sweep: Sweep) -> set[str]:
    rows: list[ScoredCompletion] = read_records(sweep, "scores", ScoredCompletion)
    return {row.prompt_id for row in rows}


def test_a_prompt_that_kills_its_workers_is_left_out_and_the_rest_completes(
    warm_workers: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trigger = tmp_path / "trigger"
    trigger.touch()
    prompts = [f"The film number {n} was" for n in range(7)] + [f"This one kills {trigger}"]
    killer = prompt_id(prompts[-1])
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"text": prompt}) + "\n" for prompt in prompts))
    sweep = small_sweep(
        tmp_path / "store",
        f"prompts={{type: file, path: {file}, num_train: 6, num_eval: 2, shuffle_seed: 4}}",
        "generation.shard_size=2",
        "reward={type: callable, function: 'tests.integration.killer:score'}",
    )

    left_out = run(sweep)
    assert left_out.inputs.quarantined == {"scores": [killer]}
    assert f"the prompts {killer} crash every worker that processes them" in caplog.text
    assert "shard" in caplog.text and "killed 3 workers" in caplog.text
    assert len(scored_prompts(left_out)) == 5
    manifest = left_out.store.manifest(left_out.path("scores"))
    assert manifest is not None and manifest.notes["quarantined prompts"] == 1
    pairs: list[PreferencePair] = read_records(left_out, "pairs", PreferencePair)
    assert pairs and killer not in {pair.prompt_id for pair in pairs}
    assert sweep.store.manifest(sweep.path("scores")) is None  # never taken for what has it
    assert read_status(left_out).quarantined == {"scores": [killer]}
    assert read_results(left_out).quarantined == {"scores": {killer: prompts[-1]}}
    assert sweep.store.names("tmp") == []

    def no_cluster() -> InlineCluster:
        raise AssertionError("everything is there")

    run_sweep(sweep, no_cluster, until="pairs")  # found, and nobody is killed again
    assert with_recorded_quarantine(sweep).inputs.quarantined == {"scores": [killer]}

    trigger.unlink()
    run_sweep(
        sweep,
        lambda: InlineCluster(sweep.spec.resources),
        until="pairs",
        errored="restart",
    )
    whole = open_sweep("small", sweep.storage)
    assert whole.inputs.quarantined == {}
    assert scored_prompts(whole) == scored_prompts(left_out) | {killer}
