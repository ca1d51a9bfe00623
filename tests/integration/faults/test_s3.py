"""The small sweep into an S3 server (moto's), its driver killed twice, resumed from elsewhere.

Everything is real but the server: the command, a Ray of its own, its workers.
"""

from pathlib import Path

from prefsweep.orchestrator.state.sweep import Sweep, Trial, open_sweep
from prefsweep.orchestrator.state.trial_record import parse_metrics
from prefsweep.orchestrator.store.store import Store

from ..small import table, weights
from .conftest import Start
from .harness import Fault, words


def test_a_sweep_on_s3_killed_and_resumed_from_other_folders_gives_the_same_table(
    s3: str, undisturbed: Sweep, start: Start, tmp_path: Path
) -> None:
    store, driver = Store(s3), tmp_path / "driver"  # every run has a folder of its own beside it
    first = start(driver, *words(), uri=s3, faults=[Fault("completions", after=1)])
    first.held()
    first.kill()
    second = start(driver, *words(), uri=s3, faults=[Fault("training", after=5)])
    second.held()  # one trial, while another one goes on to its end
    trained = second.until(lambda: trials_with_weights(store, least=1))
    second.kill()
    assert "policy: cached" in second.output
    third = start(driver, "resume", "small", uri=s3)
    assert third.wait() == 0, third.output
    assert "reference: cached" in third.output

    there = open_sweep("small", s3)
    goes_on = [trial for trial in there.trials if "training from step 4" in log_of(there, trial)]
    assert goes_on and not {trial.trial_id for trial in goes_on} & set(trained)
    assert table(there) == table(undisturbed)
    assert weights(there) == weights(undisturbed)
    assert curves(there) == curves(undisturbed)
    assert not driver.exists(), "nothing of the store is on the driver's disk"


def trials_with_weights(store: Store, least: int) -> list[str]:
    """The trials that are trained, once there are so many."""
    trials = store.names("trials")
    found = [t for t in trials if store.manifest(store.trial(t, "weights")) is not None]
    return found if len(found) >= least else []


def log_of(sweep: Sweep, trial: Trial) -> str:
    return (sweep.store.read(sweep.store.trial(trial.trial_id, "trial.log")) or b"").decode()


def curves(sweep: Sweep) -> dict[str, list[tuple[float, float | None]]]:
    """Step and loss of every line of every trial's log."""
    paths = {t.name: sweep.store.trial(t.trial_id, "metrics.jsonl") for t in sweep.trials}
    return {
        name: [(line["step"], line.get("loss")) for line in parse_metrics(sweep.store.read(path))]
        for name, path in paths.items()
    }
