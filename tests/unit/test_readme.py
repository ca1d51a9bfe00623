"""What the README shows is true: its spec loads, its commands and files are there."""

import re
from pathlib import Path

from typer.main import get_command

from prefsweep.orchestrator.commands.cli import app
from prefsweep.sweeps.grid import trial_names
from prefsweep.sweeps.load import load_spec, shipped_names

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_spec_loads_with_the_trials_it_names(tmp_path: Path) -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "my_sweep.yaml"
    path.write_text(text)
    spec = load_spec(str(path))
    names = trial_names(spec.trials())
    assert len(names) == 24  # 12 grid points with two seeds
    assert "alpha_divergence0.3-beta0.1-seed1" in names


def test_every_command_exists() -> None:
    known = set(get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    shown = set(re.findall(r"^prefsweep (\w+)", README, re.MULTILINE))
    assert {"plan", "run", "status", "resume", "export"} <= shown <= known


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_every_shipped_sweep_is_named() -> None:
    named = README.replace("`..._unconditional`", "`tinkoff_level1_unconditional`")
    assert [name for name in shipped_names() if f"`{name}`" not in named] == []
