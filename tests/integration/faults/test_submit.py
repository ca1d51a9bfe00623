"""`submit`: a sweep as a Ray job on a cluster that has neither prefsweep nor the user's files."""

from pathlib import Path

from prefsweep.orchestrator.results.status import read_status
from prefsweep.orchestrator.state.sweep import open_sweep
from prefsweep.sweeps.records import Status

from ..ray_cluster import AUTH, RayNodes, prefsweep
from ..small import OVERRIDES
from .test_attach import users_folder

ONE_GOOD = "grid=[{loss_type: sigmoid, beta: 0.1, learning_rate: 1e-3}]"
ONE_THAT_DIVERGES = "grid=[{loss_type: sigmoid, beta: 0.1, learning_rate: 1e30}]"


def submit(
    nodes: RayNodes, folder: Path, storage: Path | str, *words: str
) -> tuple[str, int | None]:
    kept = [o for o in OVERRIDES if not o.startswith(("prompts.", "reward."))]
    process = prefsweep(
        *("submit", "quickstart", *kept, *users_folder(folder), *words),
        *("--address", nodes.dashboard, "--storage", str(storage)),
        cwd=folder,
    )
    return process.communicate(timeout=400)[0], process.returncode


def test_a_job_brings_its_files_shows_its_log_and_ends_with_the_sweeps_exit_code(
    three_nodes: RayNodes, tmp_path: Path
) -> None:
    storage = tmp_path / "store"
    laptop = tmp_path / "laptop"
    laptop.mkdir()
    output, code = submit(three_nodes, laptop, storage, ONE_GOOD, "--follow")
    assert code == 0, output
    assert "trial 1/1 sigmoid-beta0.1 succeeded" in output
    sweep = open_sweep("small", str(storage))
    assert [trial.status for trial in read_status(sweep).trials] == [Status.SUCCEEDED]

    output, code = submit(three_nodes, laptop, storage, ONE_THAT_DIVERGES, "--follow")
    assert code == 1, output
    assert "completions: cached" in output
    assert "1 of 1 trials have not succeeded" in output


def test_a_wrong_token_is_refused_with_what_to_set(three_nodes: RayNodes, tmp_path: Path) -> None:
    words = ["--address", three_nodes.dashboard, "--storage", str(tmp_path)]
    another = AUTH | {"RAY_AUTH_TOKEN": "0" * 64}
    process = prefsweep("submit", "quickstart", *words, cwd=tmp_path, environment=another)
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 2, output
    assert "requires another token than that of RAY_AUTH_TOKEN: set RAY_AUTH_TOKEN" in output
    assert "Traceback" not in output


def test_a_dashboard_that_does_not_answer_is_named(tmp_path: Path) -> None:
    words = ["--address", "http://127.0.0.1:1", "--storage", str(tmp_path)]
    process = prefsweep("submit", "quickstart", *words, cwd=tmp_path)
    assert "no Ray dashboard answers there" in process.communicate(timeout=100)[0]
    assert process.returncode == 2
