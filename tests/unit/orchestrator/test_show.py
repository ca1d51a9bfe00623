"""`show` and `logs`: one trial on the terminal."""

from typing import Any

import pytest
from rich.console import Console

from prefsweep.orchestrator.commands import show as commands
from prefsweep.orchestrator.display.show import render_trial, sparkline
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.records import EvaluationSample, Failure, Status, TrialResult
from tests.integration.small import small_sweep


def sample(prompt: int, text: str, reward: float | None) -> EvaluationSample:
    words = f"Prompt {prompt}"
    return EvaluationSample(f"id{prompt}", 0, words, text, "eos", 3, reward, 0.5, 1.0, -2.0)


def result(gain: float, **changes: Any) -> TrialResult:
    samples = [sample(n, f"text {n} of {gain:g}", n * gain) for n in (1, 2, 3)]
    metrics = {"reward_mean": 2 * gain, "reward_ci_low": gain, "reward_ci_high": 3 * gain}
    history = [{"step": n, "loss": 1.0 - n, "eval/num_prompts": 3.0} for n in (0.0, 1.0, 2.0)]
    fields = {"metrics": metrics, "samples": samples, "history": history, **changes}
    return TrialResult("0123456789ab", "hinge", None, Status.SUCCEEDED, **fields)


def shown(*arguments: Any) -> str:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render_trial(*arguments))
    return captured.get()


def test_numbers_curves_and_the_prompts_with_the_largest_and_smallest_gain_are_shown() -> None:
    text = shown(result(2.0), result(1.0), None)
    assert "4.000 [2.000, 6.000]" in text and "2.000 [1.000, 3.000]" in text
    assert "loss" in text and "█▅▁" in text and "eval/num_prompts" not in text
    assert text.index("prompt 3 of 3: Prompt 3") < text.index("prompt 1 of 3: Prompt 1")
    assert "text 3 of 1" in text and "text 3 of 2" in text and "Prompt 2" not in text


@pytest.mark.parametrize("wanted", ["2", "Prompt 2", "id2"])
def test_a_prompt_is_asked_for_by_number_text_or_id(wanted: str) -> None:
    text = shown(result(2.0), None, wanted)
    assert "prompt 2 of 3: Prompt 2" in text and "Prompt 1" not in text


def test_an_unknown_prompt_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no held-out prompt '9'; there are: 1 'Prompt 1', 2 "):
        shown(result(2.0), None, "9")


def test_a_trial_that_failed_shows_why_and_what_there_is() -> None:
    failure = Failure("deterministic", "the loss is NaN")
    bare: dict[str, Any] = {"metrics": {}, "samples": [], "history": [], "failure": failure}
    assert "the loss is NaN" in shown(result(1.0, **bare), None, None)


def test_a_sparkline_spans_the_blocks_and_is_bounded() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5, 5]) == "▄▄"
    assert len(sparkline(list(range(1000)))) == 40


def test_a_log_is_printed_and_followed_to_the_end_of_the_trial(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep: Sweep = small_sweep(tmp_path)
    trial = sweep.trials[0]
    log = sweep.store.trial(trial.trial_id, "trial.log")
    contents = iter([b"one\ntw", b"one\ntwo\n", b"begun anew\nthree"])
    states = iter([Status.RUNNING, Status.RUNNING, Status.SUCCEEDED])

    def trial_status(*_: object) -> TrialResult:
        sweep.store.write(log, next(contents))
        return TrialResult(trial.trial_id, trial.name, None, next(states))

    monkeypatch.setattr("prefsweep.orchestrator.state.sweep.open_sweep", lambda *_: sweep)
    monkeypatch.setattr("prefsweep.orchestrator.state.trial_record.trial_status", trial_status)
    monkeypatch.setattr(commands, "FOLLOW_S", 0.0)
    commands.logs("small", trial.name, follow=True, storage=str(tmp_path))
    assert capsys.readouterr().out == "one\ntwo\nbegun anew\nthree"


def test_a_trial_without_a_log_is_said(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = small_sweep(tmp_path)
    monkeypatch.setattr("prefsweep.orchestrator.state.sweep.open_sweep", lambda *_: sweep)
    commands.logs("small", sweep.trials[0].name, storage=str(tmp_path))
    assert "has no log" in capsys.readouterr().err
