"""`compare`: what two sweeps have in common, what differs, and when rewards are not compared."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from prefsweep.orchestrator.commands import cli
from prefsweep.orchestrator.display.compare import markdown
from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.results import compare
from prefsweep.orchestrator.results.compare import compare_sweeps
from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.state.sweep import Sweep

from .small import small_sweep

GRID = "grid=[{loss_type: [sigmoid, ipo], beta: [0.1], learning_rate: 1e-3}]"


@pytest.fixture(scope="module")
def sweeps(finished_sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sweep]:
    """One store with: the small sweep; one of another grid and length; one of another reward."""
    storage = tmp_path_factory.mktemp("compared") / "store"
    shutil.copytree(finished_sweep.storage, storage)
    made = {
        "one": small_sweep(storage),
        "longer": small_sweep(storage, "name=longer", "training.max_steps=6", GRID),
        "vader": small_sweep(storage, "name=vader", "reward={type: vader}"),
        "wordy": small_sweep(storage, "name=wordy", "evaluation.max_new_tokens=6"),
    }
    for sweep in made.values():
        run_sweep(sweep, lambda sweep=sweep: InlineCluster(sweep.spec.resources), until="trials")
    return made


def rewards(sweep: Sweep, name: str) -> np.ndarray:
    row = next(row for row in read_results(sweep).results if row.name == name)
    samples = sorted(row.samples, key=lambda sample: sample.prompt_id)
    return np.array([sample.reward for sample in samples])


def test_matching_grid_points_differ_by_prompt(sweeps: dict[str, Sweep]) -> None:
    found = compare_sweeps(sweeps["one"], sweeps["longer"])
    match = next(match for match in found.matches if match.name == "sigmoid-beta0.1")
    ours, theirs = (rewards(sweeps[name], match.name) for name in ("one", "longer"))
    expected = stats.ttest_rel(theirs, ours)
    assert match.difference == pytest.approx((theirs - ours).mean())
    assert match.difference_interval == pytest.approx(tuple(expected.confidence_interval()))
    assert match.num_prompts == 4 and not match.same_trials
    assert (found.only_one, found.only_other) == (["hinge-beta0.1"], ["ipo-beta0.1"])
    assert found.spec == {"training.max_steps": (4, 6)}
    assert all(found.stages.values())
    assert found.matches[0].name == "untrained" and found.matches[0].difference == 0.0


def test_rewards_of_different_reward_models_are_not_compared(sweeps: dict[str, Sweep]) -> None:
    found = compare_sweeps(sweeps["one"], sweeps["vader"])
    assert "rewards are not compared" in found.notes[0] and "vader" in found.notes[0]
    assert all(match.difference is None for match in found.matches)
    assert found.matches[0].one.reward is not None  # each is shown, beside its own name
    assert found.stages["completions"] and not found.stages["scores"]


def test_unlike_evaluations_are_compared_with_a_word_of_caution(sweeps: dict[str, Sweep]) -> None:
    found = compare_sweeps(sweeps["one"], sweeps["wordy"])
    assert "evaluation settings differ (max_new_tokens: 8 and 6)" in found.notes[0]
    match = next(match for match in found.matches if match.name == "hinge-beta0.1")
    assert match.same_trials and match.difference is not None


def test_without_common_prompts_there_is_no_difference(
    sweeps: dict[str, Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(sweep: Sweep):
        found = read_results(sweep)
        if sweep is sweeps["one"]:
            return found
        rows = [
            replace(r, samples=[replace(s, prompt_id=f"other-{s.prompt_id}") for s in r.samples])
            for r in found.results
        ]
        return replace(found, results=rows)

    monkeypatch.setattr(compare, "read_results", elsewhere)
    found = compare_sweeps(sweeps["one"], sweeps["longer"])
    assert "the sweeps share no held-out prompt, so there are no paired differences" in found.notes
    assert all(match.difference is None for match in found.matches)


def test_the_command_prints_tables_json_and_markdown(
    sweeps: dict[str, Sweep],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["compare", "small", "longer", "--storage", sweeps["one"].storage]
    cold = [sys.executable, "-m", "prefsweep.orchestrator.commands.cli", *command]
    table = subprocess.run(cold, capture_output=True, text=True, check=True).stdout
    assert all(char.isprintable() or char == "\n" for char in table)
    assert "training.max_steps" in table and "only longer has finished ipo-beta0.1" in table

    def printed(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["prefsweep", *command, *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capsys.readouterr().out

    document = json.loads(printed("--json"))
    assert document["matches"][0]["name"] == "untrained"
    assert printed("--to", str(tmp_path / "both.md")).strip() == str(tmp_path / "both.md")
    text = (tmp_path / "both.md").read_text()
    assert text == markdown(compare_sweeps(sweeps["one"], sweeps["longer"]))
    assert "| grid point | reward of small | reward of longer | difference |" in text
