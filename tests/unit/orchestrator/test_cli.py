"""The command line: bad input is one message with exit code 2, before any worker starts."""

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from prefsweep.orchestrator import pipeline
from prefsweep.orchestrator.commands import cli
from prefsweep.orchestrator.driver.run import AFTER_DATA, DATA_STAGES
from prefsweep.orchestrator.planning.checks import Level, Line
from prefsweep.orchestrator.planning.doctor import DoctorReport
from prefsweep.orchestrator.state.lease import Lease
from prefsweep.orchestrator.state.sweep import spec_document
from prefsweep.orchestrator.state.sweep_record import record_state
from prefsweep.orchestrator.store.store import Store
from prefsweep.sweeps.records import Stage, Status, TrialResult
from tests.integration.small import OVERRIDES, small_sweep


def prefsweep(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["prefsweep", *words])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts Ray in these tests fails."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr("prefsweep.orchestrator.execution.cluster.RayCluster", refuse)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training.lernig_rate=1"], "training.lernig_rate: unknown key"),
        (["grid.0.betta=1"], "did you mean grid.0.beta?"),
        (["training.max_steps=many"], "training.max_steps"),
        (["training.max_steps=0"], "training.max_steps"),
        (["grid=[{alpha: 0.3}]"], "alpha=[0.3] is given"),
        (["grid=[{loss_type: nca_pair, f_divergence_type: forward_kl}]"], "'nca_pair' has no"),
        (["name=../elsewhere"], "name"),
        (["policy.model=/no/such/folder", "policy.sft=null"], "policy.model=/no/such/folder"),
        (["policy.model=builtin:huge"], "no such built-in model"),
        (["policy.model=some/model"], "policy.model=some/model"),
        (["policy.model=package:no_such_package"], "'no_such_package' is not installed"),
        (["prompts={type: file, path: nowhere.jsonl}"], "nowhere.jsonl"),
        (["prompts={type: file, path: empty.jsonl}"], "empty.jsonl"),
        (["prompts.num_train=100000"], "num_train=100000"),
        (["entry={stage: pairs, path: empty.jsonl}"], "empty.jsonl: there are no rows"),
        (["entry={stage: pairs, path: nowhere.csv}"], "entry: path=nowhere.csv: no such file"),
        (["entry={stage: triples, path: empty.jsonl}"], "entry.stage"),
        (["prompts=null"], "prompts is required, but not given; add the section, or start"),
        (["reward=null"], "reward is required with no entry, but not given"),
        (["reward={type: callable, function: 'no.module:f'}"], "no.module:f cannot be imported"),
        (["--until", "nowhere"], "'nowhere' is not one of 'policy', 'reward', 'prompts'"),
        (["--until", "nowhere", "--dry-run"], "'nowhere' is not one of"),
        (["--inline", "--address", "auto"], "--inline and --address exclude each other"),
        (["--address", "http://h:8265"], "is a dashboard, where `prefsweep submit` sends jobs"),
        (["--storage", "s3://"], "--storage s3:// cannot be opened: it has no bucket"),
        (["--storage", "empty.jsonl"], "empty.jsonl is a file; use a folder"),
        (["--storage", "empty.jsonl/runs"], "empty.jsonl is a file; use a folder"),
        (["--storage", "empty.jsonl", "--dry-run"], "empty.jsonl is a file; use a folder"),
        (["--storage", "nosuch://x"], "--storage nosuch://x"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_is_refused_before_any_worker_starts(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    code = prefsweep(monkeypatch, "run", "quickstart", *words)
    message = capsys.readouterr().err
    assert code == 2
    assert said in " ".join(message.split())
    assert "Traceback" not in message


def test_duplicate_keys_are_refused_with_their_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "twice.yaml"
    spec.write_text("name: a\nseeds: [0]\nname: b\n")
    assert prefsweep(monkeypatch, "plan", str(spec)) == 2
    assert "line 3: key 'name' was already given in line 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("generation.max_new_tokens=2000", "exceeds the 256 tokens"),
        (
            "reward={type: callable, function: 'tests.unit.orchestrator.test_cli:zero'}",
            "no training",
        ),
        ("training.max_length=2", "training.max_length"),
    ],
)
def test_what_only_the_data_shows_is_refused_and_leaves_finished_artefacts(
    override: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["run", "quickstart", *OVERRIDES, "--inline", "--storage", str(tmp_path)]
    assert prefsweep(monkeypatch, *words, "--until", "prompts") == 0
    before = sorted(tmp_path.rglob("manifest.json"))
    assert prefsweep(monkeypatch, *words, override) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert set(before) <= set(tmp_path.rglob("manifest.json"))


def zero(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that ties everything."""
    return [0.0] * len(completions)


def test_a_sweep_runs_is_shown_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = ["--storage", str(tmp_path)]
    words = ["run", "quickstart", *OVERRIDES, "--inline", *storage]
    assert prefsweep(monkeypatch, *words, "--dry-run") == 0
    assert "2 trials: 0 cached, 2 to run" in capsys.readouterr().out
    assert prefsweep(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"{tmp_path}/sweeps/small/report/index.html"
    assert "\x1b" not in out
    assert prefsweep(monkeypatch, "status", "small", "--json", *storage) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sweep"] == "small"
    assert {stage["status"] for stage in document["stages"]} == {"succeeded"}
    assert [trial["name"] for trial in document["trials"]] == ["sigmoid-beta0.1", "hinge-beta0.1"]
    assert all(trial["metrics"]["kl"] > 0 for trial in document["trials"])
    assert prefsweep(monkeypatch, *words) == 0
    assert "trials: 0 to run, 2 cached" in capsys.readouterr().out
    assert prefsweep(monkeypatch, "resume", "small", *storage) == 0
    assert prefsweep(monkeypatch, "report", "small", *storage) == 0
    assert prefsweep(monkeypatch, "status", "small", *storage) == 0
    assert "sigmoid-beta0.1" in capsys.readouterr().out


def test_a_failed_trial_is_told_and_is_not_run_again_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = "grid=[{learning_rate: [1e-3, 1e38]}]"
    words = ["run", "quickstart", *OVERRIDES, grid, "--inline", "--storage", str(tmp_path)]
    assert prefsweep(monkeypatch, *words) == 1
    captured = capsys.readouterr()
    assert "1 of 2 trials have not succeeded: sigmoid-beta0.1-lr1e+38" in captured.err
    assert "sigmoid-beta0.1-lr1e+38 failed: RuntimeError: value cannot be" in captured.out
    assert prefsweep(monkeypatch, *words) == 1
    out = capsys.readouterr().out
    assert "trials: 0 to run" in out and "--restart-errored runs it from scratch" in out
    assert prefsweep(monkeypatch, *words, "--restart-errored") == 1
    assert "trials: 1 to run, 1 cached" in capsys.readouterr().out
    assert prefsweep(monkeypatch, *words, "--skip-errored") == 1
    assert "skipped (--skip-errored)" in capsys.readouterr().out
    assert prefsweep(monkeypatch, *words, "--skip-errored", "--resume-errored") == 2
    assert "exclude each other" in capsys.readouterr().err


def test_an_unknown_sweep_is_answered_with_the_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prefsweep(monkeypatch, "status", "nothing", "--storage", str(tmp_path)) == 2
    assert "there is no sweep 'nothing'" in capsys.readouterr().err


def test_the_ways_on_from_a_run_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    storage = tmp_path / "my runs"
    words = ["run", "quickstart", *OVERRIDES, "--inline", "--storage", str(storage)]
    failed = TrialResult("0", "dpo", None, Status.FAILED)
    monkeypatch.setattr(pipeline, "run_sweep", lambda *_, **__: [failed])
    assert prefsweep(monkeypatch, *words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"`prefsweep status small --storage '{storage}'` shows why" in said
    monkeypatch.setattr(pipeline, "run_sweep", interrupted)
    assert prefsweep(monkeypatch, *words) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert f"`prefsweep resume small --storage '{storage}'`" in said


def test_a_folder_that_cannot_be_made_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    words = ["run", "quickstart", "--inline", "--storage", str(tmp_path / "new")]
    assert prefsweep(monkeypatch, *words) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "cannot be written" in message and "Permission denied" in message


def test_resume_goes_as_far_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ["--inline", "--storage", str(tmp_path)]
    words = ["run", "quickstart", *OVERRIDES, *storage, "--until", "policy"]
    assert prefsweep(monkeypatch, *words) == 0
    assert prefsweep(monkeypatch, "resume", "small", *storage, "--until", "prompts") == 0
    made = {path.name.partition("-")[0] for path in (tmp_path / "artifacts").iterdir()}
    assert "prompts" in made and "completions" not in made


def test_a_comparison_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = small_sweep(tmp_path)
    sweep.store.write_json(sweep.store.sweep("small", "spec.json"), spec_document(sweep))
    words = ["compare", "small", "small", "--storage", str(tmp_path), "--to"]
    for target in (tmp_path, tmp_path / "nowhere" / "x.md"):
        assert prefsweep(monkeypatch, *words, str(target)) == 2
        assert f"--to {target} cannot be written" in " ".join(capsys.readouterr().err.split())


def test_gc_of_a_place_that_is_no_store_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prefsweep(monkeypatch, "gc", "--storage", str(tmp_path / "runz")) == 2
    assert "is not a prefsweep store" in capsys.readouterr().err


def test_until_takes_the_stages_of_a_run_in_their_order() -> None:
    assert [*Stage] == ["policy", "reward", *DATA_STAGES, *AFTER_DATA]


def test_the_version_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prefsweep(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"prefsweep {metadata.version('prefsweep')}\n"


def test_status_without_a_name_lists_the_sweeps_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = ["--storage", str(tmp_path)]
    assert prefsweep(monkeypatch, "status", *storage) == 0
    assert "no sweeps" in capsys.readouterr().out
    store = Store(str(tmp_path))
    record_state(store, "ended", Status.SUCCEEDED)
    record_state(store, "died", Status.RUNNING)  # nobody holds its lease
    record_state(store, "runs", Status.RUNNING)
    Lease(store, "runs").acquire()
    store.write_json(store.sweep("odd", "spec.json"), {})
    assert prefsweep(monkeypatch, "status", "--json", *storage) == 0
    sweeps = json.loads(capsys.readouterr().out)["sweeps"]
    assert [(sweep["sweep"], sweep["status"], sweep["running"]) for sweep in sweeps] == [
        ("died", "interrupted", False),
        ("ended", "succeeded", False),
        ("odd", "", False),
        ("runs", "running", True),
    ]
    assert prefsweep(monkeypatch, "status", *storage) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["died", "interrupted"]
    assert len(lines) == 5
    assert prefsweep(monkeypatch, "status", "--watch", *storage) == 2
    assert "give its name" in capsys.readouterr().err
    assert prefsweep(monkeypatch, "status", "ended", "--watch", "--json", *storage) == 2
    assert "--json and --watch exclude each other" in capsys.readouterr().err


def test_the_storage_comes_from_the_environment_unless_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "other"):
        record_state(Store(str(tmp_path / name)), name, Status.SUCCEEDED)
    monkeypatch.setenv("PREFSWEEP_STORAGE", str(tmp_path / "one"))
    prefsweep(monkeypatch, "status")
    assert "one" in capsys.readouterr().out
    prefsweep(monkeypatch, "status", "--storage", str(tmp_path / "other"))
    said = capsys.readouterr().out
    assert "other" in said and "one" not in said


def test_a_plan_in_a_pipe_breaks_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    storage = tmp_path / "a_rather_long_name_of_a_folder"
    words = ["plan", "quickstart", *OVERRIDES, "--storage", str(storage)]
    assert prefsweep(monkeypatch, *words) == 0
    line = next(s for s in capsys.readouterr().out.splitlines() if s.startswith("completions"))
    assert f"{storage}/artifacts/completions-" in line
    assert prefsweep(monkeypatch, *words, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    paths = {stage["name"]: stage["path"] for stage in document["stages"]}
    assert paths["completions"] in line
    assert {trial["cached"] for trial in document["trials"]} == {"new"}
    assert any("0 cached" in note for note in document["notes"])


def test_what_doctor_says_in_a_pipe_is_not_broken_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    found = f"/shared/{'folder/' * 15}runs is written and read"
    told = DoctorReport([Line("storage", Level.OK, found)], hangs=False)
    monkeypatch.setattr("prefsweep.orchestrator.planning.doctor.run_checks", lambda *_: told)
    assert prefsweep(monkeypatch, "doctor") == 0
    assert found in capsys.readouterr().out
