"""Where a reward function is looked for: what can be imported, beside the spec, here."""

from pathlib import Path

import pytest

from prefsweep.sweeps.errors import SpecError
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.spec import CallableReward

SPEC = """
name: own
policy: {model: builtin:tiny-gpt2}
reward: {type: callable, function: "FUNCTION"}
prompts: {type: builtin}
grid: [{beta: 0.1, learning_rate: 1e-3}]
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder of the spec, and the working folder."""
    here = tmp_path / "here"
    (here / "specs").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return here / "specs", here


def found(specs: Path, function: str) -> str:
    (specs / "own.yaml").write_text(SPEC.replace("FUNCTION", function))
    reward = load_spec("specs/own.yaml").reward
    assert isinstance(reward, CallableReward)
    return reward.function


@pytest.mark.parametrize("named", ["judge_own.py:judge", "judge_own:judge"])
def test_a_function_is_found_beside_the_spec_and_in_the_working_folder(
    named: str, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, here = folders
    monkeypatch.syspath_prepend("")  # as `python -m` does
    assert found(specs, named) == named  # nowhere: what loads it says so
    (here / "judge_own.py").touch()
    assert found(specs, named) == "judge_own.py:judge"
    (here / "judge_own.py").rename(specs / "judge_own.py")
    assert found(specs, named) == "specs/judge_own.py:judge"
    assert found(specs, f"{specs}/judge_own.py:judge") == f"{specs}/judge_own.py:judge"


def test_a_module_that_workers_can_import_stays_a_module(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, here = folders
    (specs / "json.py").touch()
    assert found(specs, "json:dumps") == "json:dumps"
    (here / "judge_here.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(here))
    monkeypatch.syspath_prepend(str(here))
    assert found(specs, "judge_here:judge") == "judge_here:judge"


def test_two_files_of_one_name_are_refused(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        (folder / "judge_two.py").touch()
    with pytest.raises(SpecError, match=r"two such files, specs/judge_two.py and .*full path"):
        found(folders[0], "judge_two:judge")


def test_dots_of_a_module_are_folders(folders: tuple[Path, Path]) -> None:
    (folders[0] / "rewards_of_mine").mkdir()
    (folders[0] / "rewards_of_mine" / "length.py").touch()
    assert found(folders[0], "rewards_of_mine.length:judge") == (
        "specs/rewards_of_mine/length.py:judge"
    )
