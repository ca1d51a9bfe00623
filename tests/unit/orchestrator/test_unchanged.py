"""Inputs that changed, or are gone, since a sweep was started: refused where they would be read."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prefsweep.orchestrator.driver.input_check import require_unchanged
from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.inputs import store_inputs
from prefsweep.orchestrator.state.sweep import Sweep, open_sweep
from prefsweep.orchestrator.tasks.stages import read_records
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.records import Prompt
from prefsweep.workers import builtin, locations
from tests.integration.small import small_sweep

USERS_OF_POLICY = ("completions", "reference", "untrained", "trials")
TEXTS = [f"The film number {number} was" for number in range(9)]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A sweep of files: a model for the policy, one to fine-tune for the reward, and prompts."""
    for name in ("policy", "reward"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text("weights")
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "labels.txt").write_text("\n".join(TEXTS[1:]))
    return sweep_of(tmp_path)


def sweep_of(folder: Path, *overrides: str) -> Sweep:
    return small_sweep(
        folder / "store",
        f"policy.model={folder}/policy",
        f"reward.model={folder}/reward",
        f"reward.train={{corpus: {{type: file, path: {folder}/labels.txt}}}}",
        f"prompts={{type: file, path: {folder}/prompts.txt, num_train: 6, num_eval: 2}}",
        *overrides,
    )


def changed(path: Path) -> None:
    path.write_text("another")


def gone(path: Path) -> None:
    path.unlink()
    if path.parent.name in ("policy", "reward"):
        shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    ("file", "field", "readers"),
    [
        ("policy/model.safetensors", "policy.model", USERS_OF_POLICY),
        ("reward/model.safetensors", "reward.model", ("reward",)),
        ("labels.txt", "reward.train.corpus.path", ("reward",)),
        ("prompts.txt", "prompts.path", ("prompts", "eval_prompts")),
    ],
)
@pytest.mark.parametrize(
    ("harm", "told"),
    [(changed, "it has changed since sweep 'small' was started"), (gone, "it is missing")],
)
def test_an_input_is_refused_exactly_where_a_stage_would_read_another_one(
    sweep: Sweep,
    tmp_path: Path,
    file: str,
    field: str,
    readers: tuple[str, ...],
    harm: Callable[[Path], None],
    told: str,
) -> None:
    require_unchanged(sweep, lambda stage: True)
    harm(tmp_path / file)
    refused: list[str] = []
    for stage in (*sweep.stages, "eval_prompts", "untrained", "trials"):
        try:
            require_unchanged(sweep, lambda unfinished, stage=stage: unfinished == stage)
        except UsageError as error:
            assert str(error).startswith(f"{field}={tmp_path}") and told in str(error)
            assert f"for {stage}. " in str(error) and "prefsweep run" in str(error)
            refused.append(stage)
    assert set(refused) == set(readers)


def test_an_input_that_nobody_reads_any_more_is_told_and_the_sweep_goes_on(
    sweep: Sweep, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefsweep")
    changed(tmp_path / "prompts.txt")
    require_unchanged(sweep, lambda stage: stage == "completions")
    assert "it has changed, but every stage that reads it is finished" in caplog.text
    gone(tmp_path / "prompts.txt")
    require_unchanged(sweep, lambda stage: stage == "completions")


def test_prompts_that_the_tokenizer_cuts_read_the_policy(sweep: Sweep, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "prompts.take={first_tokens: 3}")
    changed(tmp_path / "policy" / "config.json")
    with pytest.raises(UsageError, match=r"policy\.model=.*eval_prompts"):
        require_unchanged(sweep, lambda stage: stage == "eval_prompts")


def test_what_is_in_the_store_for_other_machines_is_read_there(
    sweep: Sweep, tmp_path: Path
) -> None:
    store_inputs(sweep.store, sweep.spec, sweep.inputs)
    changed(tmp_path / "prompts.txt")
    gone(tmp_path / "labels.txt")
    require_unchanged(sweep, lambda stage: True)


def test_what_has_changed_is_never_put_into_the_store_as_what_it_was(
    sweep: Sweep, tmp_path: Path
) -> None:
    changed(tmp_path / "prompts.txt")
    fields = store_inputs(sweep.store, sweep.spec, sweep.inputs)
    assert "policy.model" in fields and "prompts.path" not in fields
    assert sweep.located.prompts == sweep.spec.prompts


def test_another_version_of_what_comes_with_prefsweep_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = small_sweep(tmp_path)
    monkeypatch.setattr(builtin, "VERSION", "0")
    with pytest.raises(UsageError, match="with the version of prefsweep that it was started with"):
        require_unchanged(sweep, lambda stage: stage == "prompts")


def test_a_hub_model_that_moved_is_told_with_the_revision_to_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = ["a" * 40]
    monkeypatch.setattr(locations, "_hub_identity", lambda model, *_: f"{model}@{commits[-1]}")
    sweep = small_sweep(tmp_path, "policy.model=owner/name")
    require_unchanged(sweep, lambda stage: True)
    commits.append("b" * 40)
    with pytest.raises(UsageError, match=rf"Set policy\.revision={commits[0]}"):
        require_unchanged(sweep, lambda stage: stage == "reference")


def run(sweep: Sweep) -> list[str]:
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), until="prompts")
    prompts: list[Prompt] = read_records(sweep, "prompts", Prompt)
    return [prompt.text for prompt in prompts]


def test_resume_refuses_other_prompts_and_goes_on_with_the_old_ones(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(TEXTS))
    section = f"prompts={{type: file, path: {file}, num_train: 6, num_eval: 2}}"
    started = small_sweep(tmp_path / "store", section)
    before = run(started)
    file.write_text("\n".join(reversed(TEXTS)))
    resumed = open_sweep("small", started.storage)
    assert run(resumed) == before, "what reads them is finished"
    resumed.store.delete(resumed.path("eval_prompts"))
    with pytest.raises(UsageError, match=r"prompts\.path=.*prompts\.txt: it has changed"):
        run(open_sweep("small", started.storage))
    assert started.store.manifest(started.path("eval_prompts")) is None
    file.write_text("\n".join(TEXTS))
    assert run(open_sweep("small", started.storage)) == before
    assert started.store.manifest(started.path("eval_prompts")) is not None
