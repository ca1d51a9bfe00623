"""A reward function in a file: known by its content, sent to workers; no other content is run."""

import json
from pathlib import Path

import pytest

from prefsweep.orchestrator.execution import jobs
from prefsweep.orchestrator.state.garbage import find_garbage
from prefsweep.orchestrator.state.inputs import store_inputs
from prefsweep.orchestrator.state.sweep import Sweep, resolve
from prefsweep.orchestrator.tasks.stages import read_records
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.records import ScoredCompletion
from prefsweep.workers.functions import FunctionSource, load_function
from prefsweep.workers.score import make_scorer
from tests.integration.small import run_inline, small_sweep

BY_LENGTH = "def judge(prompts, completions):\n    return [len(text) for text in completions]\n"
BY_WORDS = "def judge(prompts, completions):\n    return [len(t.split()) for t in completions]\n"


def own(tmp_path: Path, source: str = BY_LENGTH, folder: str = "mine") -> Sweep:
    file = tmp_path / folder / "rewards.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(source)
    reward = f"reward={{type: callable, function: '{file}:judge'}}"
    return resolve(load_spec("quickstart", [reward]), str(tmp_path / "store"))


def test_the_content_of_the_file_is_part_of_the_identity_and_its_place_is_not(
    tmp_path: Path,
) -> None:
    one, moved = own(tmp_path), own(tmp_path, folder="moved")
    changed = own(tmp_path, BY_WORDS)
    for name in ("scores", "pairs", "reference", "untrained"):
        prints = [getattr(sweep.fingerprints, name) for sweep in (one, moved, changed)]
        assert prints[0] == prints[1] != prints[2]
    assert one.fingerprints.completions == changed.fingerprints.completions


def test_workers_elsewhere_read_the_file_from_the_store_and_run_no_other(tmp_path: Path) -> None:
    sweep = own(tmp_path)
    assert store_inputs(sweep.store, sweep.spec, sweep.inputs) == ["reward.function"]
    (tmp_path / "mine" / "rewards.py").unlink()
    there = Sweep(sweep.spec, sweep.inputs, sweep.storage)  # as it is unpickled
    assert there.spec.reward is not None
    scorer = make_scorer(there.spec.reward, there.reward_source())
    assert scorer.score(["a", "b"], ["one", "three"]) == [3, 5]

    source = there.reward_source()
    assert isinstance(source, FunctionSource)
    stored = Path(source.function.rpartition(":")[0])
    stored.chmod(0o644)
    stored.write_text(BY_WORDS)
    with pytest.raises(UsageError, match="has changed since the sweep was started"):
        make_scorer(there.spec.reward, source)


def test_the_file_in_the_store_is_kept_as_long_as_the_sweep_names_it(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path / "store")
    run_inline(sweep, "prompts")
    mine = own(tmp_path)
    store_inputs(mine.store, mine.spec, mine.inputs)
    assert [item.what for item in find_garbage(mine.store)].count("artefact") == 1
    spec = {"spec": mine.spec.model_dump(mode="json"), "inputs": vars(mine.inputs) | {}}
    mine.store.write_json(mine.store.sweep("quickstart", "spec.json"), spec)
    assert not [item for item in find_garbage(mine.store) if "input" in item.path]


def test_submit_sends_the_file_along(tmp_path: Path) -> None:
    sweep = own(tmp_path)
    document, told = jobs._sent_spec(sweep.spec, tmp_path / "job")
    function = json.loads(document)["reward"]["function"]
    assert function == "./files/reward.function/rewards.py:judge"
    assert (tmp_path / "job" / function.rpartition(":")[0]).read_text() == BY_LENGTH
    assert told[0].startswith("reward.function: ")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import helper_of_mine", "No module named 'helper_of_mine'.*only this file is sent"),
        ("from . import helper", "attempted relative import.*only this file is sent"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("judge = 3", "is a int, not a function"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_work(
    source: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"(?s)reward.function=.*{said}"):
        own(tmp_path, source)


def test_a_missing_file_is_said_with_the_places_looked_at() -> None:
    with pytest.raises(UsageError, match=r"there is no file rewards_gone.py \(looked beside the"):
        load_function("rewards_gone.py:judge")


def test_a_run_scores_with_the_file_beside_its_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(BY_LENGTH)
    sweep = small_sweep(tmp_path / "store", "reward={type: callable, function: 'rewards.py:judge'}")
    run_inline(sweep, "scores")
    rows: list[ScoredCompletion] = read_records(sweep, "scores", ScoredCompletion)
    assert rows and all(row.score == len(row.text) for row in rows)
