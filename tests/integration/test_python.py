"""The Python package: from a spec to data frames, in a process and in a Jupyter kernel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import prefsweep
from prefsweep.orchestrator.commands.report import Format, report
from prefsweep.orchestrator.state.sweep import Sweep as StoredSweep

from .small import OVERRIDES

ROOT = Path(__file__).parents[2]
HELD_OUT = 4
"""Prompts of the small sweep's evaluation."""


def test_a_finished_sweep_is_read_as_data_frames(finished_sweep: StoredSweep) -> None:
    sweep = prefsweep.open_sweep("small", storage=finished_sweep.storage)
    results = sweep.results()
    names = ["untrained", *(trial.name for trial in finished_sweep.trials)]
    assert list(results.trials["name"]) == names
    assert set(results.trials["status"]) == {"succeeded"}
    rewards: dict[str, list[float]] = {}
    for name, reward in zip(results.samples["name"], results.samples["reward"], strict=True):
        rewards.setdefault(name, []).append(reward)
    assert [len(rewards[name]) for name in names] == [HELD_OUT] * len(names)
    means = [sum(rewards[name]) / HELD_OUT for name in names]
    assert means == pytest.approx(list(results.trials["reward_mean"]))
    assert set(results.curves["name"]) == set(names[1:])
    assert "<table" in results._repr_html_()
    assert sweep.status()["sweep"] == "small"


def test_what_is_planned_reported_and_compared_is_that_of_the_commands(
    finished_sweep: StoredSweep,
) -> None:
    sweep = prefsweep.load("quickstart", OVERRIDES, storage=finished_sweep.storage)
    plan = sweep.plan()
    assert set(plan.stages["cached"]) == set(plan.trials["cached"]) == {"yes"}
    assert "2 trials: 2 cached, 0 to run" in str(plan) and "<table" in plan._repr_html_()
    report = sweep.report()
    assert report.path.endswith("sweeps/small/report/index.html")
    assert report._repr_html_().startswith("<iframe srcdoc=") and "<!doctype" in report.page.lower()
    found = prefsweep.compare(sweep, "small", storage=finished_sweep.storage)
    assert set(found.matches["same_trials"]) == {True}
    assert set(found.matches["difference"]) == {0.0}
    assert "# small and small" in str(found) and "<table" in found._repr_html_()


def test_a_spec_may_be_a_mapping_an_object_or_a_file_with_overrides(tmp_path: Path) -> None:
    shipped = prefsweep.load("quickstart", {"training.max_steps": 50}, storage=str(tmp_path))
    assert shipped.spec.training.max_steps == 50
    changes = {"grid.0.beta": [0.5], "policy.sft.learning_rate": 1e-05}
    again = prefsweep.load(shipped.spec, changes, storage=str(tmp_path))
    assert again.spec.grid[0].beta == (0.5,)
    assert again.spec.policy.sft is not None and again.spec.policy.sft.learning_rate == 1e-5
    mapping = prefsweep.load(again.spec.model_dump(mode="json"), storage=str(tmp_path))
    assert mapping.spec == again.spec
    built = prefsweep.SweepSpec.model_validate(again.spec.model_dump())
    assert prefsweep.load(built, storage=str(tmp_path)).spec == again.spec
    with pytest.raises(prefsweep.SweepError, match=r"training\.max_stes: unknown key"):
        prefsweep.load("quickstart", {"training.max_stes": 1}, storage=str(tmp_path))


def test_a_run_returns_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = prefsweep.load("quickstart", OVERRIDES, storage=str(tmp_path))
    trials = sweep.run(inline=True).trials
    assert list(trials["status"]) == ["succeeded"] * 3
    assert "trial 2/2" in capsys.readouterr().out
    with pytest.raises(prefsweep.SweepError, match="exclude each other"):
        sweep.run(inline=True, address="auto")
    with pytest.raises(prefsweep.SweepError, match="until='paris': there is no such stage"):
        sweep.run(inline=True, until="paris")


CELLS = (
    "import prefsweep",
    "sweep = prefsweep.open_sweep('small', storage=STORAGE)",
    "sweep.run(inline=True)",
    "sweep.report()",
    "sweep.plan()",
)


def test_a_notebook_shows_tables_and_the_report(finished_sweep: StoredSweep) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [cell.replace("STORAGE", repr(finished_sweep.storage)) for cell in CELLS]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    assert [text.lstrip()[:7] for text in shown] == ["<table ", "<iframe", "<table "]


def test_the_wheel_holds_the_package_and_all_it_reads(tmp_path: Path) -> None:
    source, ignore = tmp_path / "source", shutil.ignore_patterns("__pycache__")
    for folder in ("sweeps", "workers", "orchestrator"):  # a copy, because a build writes there
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "there")
        names = packed.namelist()
    assert {"prefsweep/api.py", "prefsweep/sweeps/sweep.schema.json"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "prefsweep/orchestrator/py"))]
    code = (
        "import prefsweep; from prefsweep.sweeps.load import load_spec\n"
        "load_spec('quickstart'); print(prefsweep.__file__, prefsweep.load.__module__)"
    )
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, '{tmp_path}/there')\n{code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [f"{tmp_path}/there/prefsweep/__init__.py", "prefsweep.api"]


def test_the_command_prints_or_writes_parts_of_the_report(
    finished_sweep: StoredSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = finished_sweep.storage
    report("small", storage=storage, form=Format.MD)
    assert capsys.readouterr().out.startswith("# small\n")
    report("small", storage=storage, form=Format.CSV, to=str(tmp_path / "t.csv"))
    assert (tmp_path / "t.csv").read_text().startswith("trial_id,name,status")
    with pytest.raises(prefsweep.SweepError, match=r"the name of a png ends with \.png"):
        report("small", storage=storage, form=Format.PNG, to=str(tmp_path / "f.jpg"))
    pytest.importorskip("matplotlib")
    report("small", storage=storage, form=Format.PNG, to=str(tmp_path / "f.png"))
    assert (tmp_path / "f.png").stat().st_size > 10_000
