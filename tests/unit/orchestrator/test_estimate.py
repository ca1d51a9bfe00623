"""Estimates come from what ran or from shapes, are exact where those are, and else say so."""

from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from prefsweep.orchestrator.planning.estimate import Estimate, estimate, estimate_lines, model_lines
from prefsweep.orchestrator.state.sweep import Sweep, Trial, spec_document
from prefsweep.orchestrator.store.store import new_manifest
from prefsweep.orchestrator.tasks.probe import ProbeTrial
from prefsweep.workers.probe import GpuMemory
from tests.integration.small import small_sweep

GRID = "grid=[{beta: [0.1, 0.2, 0.3, 0.4], learning_rate: 1e-3}]"


def finish(
    sweep: Sweep,
    trial: Trial,
    train_s: float,
    evaluation_s: float,
    gpu: bool,
    **more_notes: float,
) -> None:
    """Put into the store what a finished trial that took so long leaves there."""
    store = sweep.store
    store.write_json(store.sweep(sweep.spec.name, "spec.json"), spec_document(sweep))
    notes = ({"gpu_memory_gib": 1.0} if gpu else {}) | more_notes
    evaluation = sweep.fingerprints.evaluation(trial.trial_id)
    for path, own, seconds in (
        (store.trial(trial.trial_id, "weights"), trial.trial_id, train_s),
        (sweep.evaluation_path(trial.trial_id), evaluation, evaluation_s),
    ):
        with store.staging() as folder:
            (folder / "made").mkdir()
            (folder / "made" / "file").write_text("x")
            store.publish(path, folder / "made", new_manifest(own, 1, seconds, notes))


def of_rest(sweep: Sweep, num_done: int = 0) -> Estimate:
    return estimate(sweep, sweep.trials[num_done:])


def test_trials_of_the_sweep_itself_tell_how_long_the_others_take(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, GRID, "resources.gpus_per_trial=0.5")
    finish(sweep, sweep.trials[0], 1000.0, 100.0, gpu=True)
    finish(sweep, sweep.trials[1], 3000.0, 300.0, gpu=True)
    found = of_rest(sweep, 2)
    assert found.trial_hours == pytest.approx(2 * 2200 / 3600)
    assert found.gpu_hours == pytest.approx(2200 / 3600)
    assert found.cost is None
    priced = small_sweep(tmp_path, GRID, "resources={gpus_per_trial: 0.5, gpu_hour_price: 3.6}")
    assert of_rest(priced, 2).cost == pytest.approx(2.2)
    assert "2 trials of sweep small on a GPU" in "".join(estimate_lines(found))


def test_a_share_that_is_measured_later_makes_the_figures_upper_bounds(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, GRID, "resources.gpu_hour_price=2")
    finish(sweep, sweep.trials[0], 3500.0, 100.0, gpu=True)
    time, cost, *_ = estimate_lines(of_rest(sweep, 1))
    assert time.startswith("time: at most 3.00 GPU-hours of trials (1 GPU a trial")
    assert cost.startswith("cost: at most 6.00 (3.00 GPU-hours at 2)")


def test_a_share_that_was_probed_for_this_model_and_batch_is_used(tmp_path: Path) -> None:
    def probe(sweep: Sweep, gpu: str, peak: int) -> None:
        memory = GpuMemory(peak, free=80, total=80)
        sweep.store.write_json(ProbeTrial(sweep, sweep.trials[0].spec, gpu).path, asdict(memory))

    sweep = small_sweep(tmp_path, GRID, "resources.gpu_hour_price=2")
    finish(sweep, sweep.trials[0], 3500.0, 100.0, gpu=True)
    probe(sweep, "H100", peak=15)
    time, cost, *_ = estimate_lines(of_rest(sweep, 1))
    assert time.startswith("time: 0.75 GPU-hours of trials (0.25 GPU a trial, as probed on H100;")
    assert cost.startswith("cost: 1.50 (0.75 GPU-hours at 2)")
    probe(sweep, "A100", peak=30)
    found = of_rest(sweep, 1)
    assert (found.gpus_per_trial, found.share_basis) == (0.5, "as probed on A100")
    larger = small_sweep(tmp_path, GRID, "training.per_device_train_batch_size=5")
    assert of_rest(larger, 1).at_most, "another batch: nobody knows yet"


def test_seconds_count_by_the_share_of_a_gpu_that_they_were_measured_with(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, GRID, "resources.gpus_per_trial=0.25")
    finish(sweep, sweep.trials[0], 3500.0, 100.0, gpu=True, gpus=1.0)  # a whole one then
    alone = of_rest(sweep, 3)
    assert (alone.gpu_hours, alone.at_most) == (1.0, True)
    shared = small_sweep(tmp_path, "name=shared", GRID, "seeds=[1]")  # auto, not probed
    finish(shared, shared.trials[0], 7100.0, 100.0, gpu=True, gpus=0.125)
    found = of_rest(shared, 3)
    assert (found.gpu_hours, found.at_most) == (0.25, False)
    assert "0.125 GPU a trial, as those had" in "".join(estimate_lines(found))


def test_a_trial_that_was_resumed_took_as_long_as_all_of_its_attempts(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, GRID)
    finish(sweep, sweep.trials[0], 5.0, 1.0, gpu=False, train_seconds=100.0)
    time = of_rest(sweep, 1).time
    assert time is not None and time.train_s == 100.0


def test_times_on_a_cpu_are_never_sold_as_gpu_hours(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, GRID, "resources.gpu_hour_price=2")
    finish(sweep, sweep.trials[0], 10.0, 1.0, gpu=False)
    found = of_rest(sweep, 1)
    assert (found.gpu_hours, found.cost) == (None, None)
    assert found.trial_hours == pytest.approx(33 / 3600)
    assert "on CPUs" in "".join(estimate_lines(found))


def test_another_sweep_of_the_same_pairs_is_scaled_by_its_work(tmp_path: Path) -> None:
    other = small_sweep(tmp_path, "name=other")
    finish(other, other.trials[0], 10.0, 1.0, gpu=True)
    longer = small_sweep(
        tmp_path, GRID, "training.max_steps=12", "training.per_device_train_batch_size=8"
    )
    found = of_rest(longer)
    assert found.time is not None
    assert found.time.train_s == pytest.approx(10.0 * 3 * 2)
    assert found.time.evaluation_s == pytest.approx(1.0)
    assert "sweep other" in found.time.basis and "the same pairs" in found.time.basis


def test_the_nearest_sweep_counts(tmp_path: Path) -> None:
    far = small_sweep(tmp_path, "name=far", "pairs.seed=1")
    near = small_sweep(tmp_path, "name=near")
    finish(far, far.trials[0], 99.0, 1.0, gpu=True)
    finish(near, near.trials[0], 10.0, 1.0, gpu=True)
    found = of_rest(small_sweep(tmp_path, GRID))
    assert found.time is not None and found.time.train_s == 10.0


@pytest.mark.parametrize(
    "override", ["policy.sft={learning_rate: 1e-3}", "training.lora={r: 4}"], ids=["policy", "lora"]
)
def test_what_no_trial_tells_is_not_known(override: str, tmp_path: Path) -> None:
    other = small_sweep(tmp_path, "name=other")
    finish(other, other.trials[0], 10.0, 1.0, gpu=True)
    found = of_rest(small_sweep(tmp_path, override))
    assert (found.time, found.trial_hours, found.gpu_hours, found.cost) == (None,) * 4
    assert "unknown, because no trial of this policy" in "".join(estimate_lines(found))


def test_disk_is_told_by_the_shapes_of_the_policy(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=16, vocab_size=50))
    model.save_pretrained(tmp_path / "policy")
    num = sum(parameter.numel() for parameter in model.parameters())
    words = (f"policy.model={tmp_path / 'policy'}", GRID, "training.save_steps=2")
    found = of_rest(small_sweep(tmp_path / "store", *words), 1)
    assert found.weights_bytes == 3 * 4 * num
    assert found.checkpoint_bytes == 3 * 12 * num  # a third one is written before the first goes
    assert found.free_bytes is not None
    assert f"{3 * 4 * num / 1000:.3g} kB" in "".join(estimate_lines(found))


def test_a_policy_that_is_still_to_be_made_has_no_size_yet(tmp_path: Path) -> None:
    found = of_rest(small_sweep(tmp_path))
    assert found.weights_bytes is None
    assert "disk: unknown, because the policy is not on this machine" in "".join(
        estimate_lines(found)
    )


def test_nothing_left_to_do_costs_nothing(tmp_path: Path) -> None:
    assert list(estimate_lines(estimate(small_sweep(tmp_path), []))) == []


def test_each_model_is_said_to_be_here_or_to_be_downloaded(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=16, vocab_size=50))
    model.save_pretrained(tmp_path / "policy")
    size = sum(file.stat().st_size for file in (tmp_path / "policy").iterdir())
    sweep = small_sweep(tmp_path / "store", f"policy.model={tmp_path / 'policy'}")
    assert list(model_lines(sweep)) == [
        f"policy {tmp_path / 'policy'}: {size / 1000:.3g} kB on this machine"
    ]
    (tmp_path / "policy" / "model.safetensors").unlink()
    assert "will be downloaded" in next(model_lines(sweep))
    assert list(model_lines(small_sweep(tmp_path / "store"))) == []  # built in: nothing to fetch
