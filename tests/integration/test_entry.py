"""A sweep that enters with its own data, at each of four stages, from the spec to the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefsweep.orchestrator.execution.cluster import Cluster, InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.planning.plan import render_plan
from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.results.status import read_status
from prefsweep.orchestrator.state.sweep import Sweep, open_sweep
from prefsweep.orchestrator.tasks.entry import EnterData
from prefsweep.orchestrator.tasks.stages import read_records
from prefsweep.sweeps.errors import DataError, ModelError, UsageError
from prefsweep.sweeps.records import PreferencePair, Prompt, Status
from tests.integration.small import small_sweep, table

PROMPTS = [f"The film number {i} was" for i in range(16)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "prompts": [{"prompt": prompt} for prompt in PROMPTS],
    "completions": [
        {"prompt": p, "completions": [f" good {i}.", " bad.", " so so."]}
        for i, p in enumerate(PROMPTS)
    ],
    "scored_completions": [
        {"prompt": p, "completions": [f" good {i}.", " bad.", " so so."], "scores": [2, -1.5, 0]}
        for i, p in enumerate(PROMPTS)
    ],
    "pairs": [
        {"prompt": p, "chosen": f" good {i}.", "rejected": " bad."} for i, p in enumerate(PROMPTS)
    ],
}
STAGES = ("prompts", "completions", "scores", "pairs", "reference")
ENTERED = dict(zip(ROWS, STAGES, strict=False))
NO_REWARD = ("reward=null",)


def write(folder: Path, stage: str, rows: list[dict[str, Any]] | None = None) -> Path:
    path = folder / f"{stage}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS[stage]))
    return path


def entering(storage: Path, stage: str, path: Path, *overrides: str) -> Sweep:
    entry = f"entry={{stage: {stage}, path: {json.dumps(str(path))}}}"
    few = "evaluation.max_prompts=3"
    one = "grid=[{loss_type: sigmoid, learning_rate: 1e-3}]"
    return small_sweep(storage, "prompts=null", entry, few, one, "training.max_steps=2", *overrides)


def run(sweep: Sweep, until: str = "report") -> None:
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), until=until)


def run_finding_all(sweep: Sweep) -> None:
    def refuse() -> Cluster:
        raise AssertionError("something is run again")

    run_sweep(sweep, refuse)


def columns(sweep: Sweep) -> list[dict[str, str]]:
    from prefsweep.orchestrator.report.tables import COLUMNS

    names = [name for name in COLUMNS if name != "train_seconds"]
    return [dict(zip(names, row, strict=True)) for row in table(sweep)]


@pytest.mark.parametrize("stage", list(ROWS))
def test_a_sweep_runs_from_each_stage_to_the_report_and_is_found_again(
    stage: str, tmp_path: Path
) -> None:
    path = write(tmp_path, stage)
    sweep = entering(tmp_path / "runs", stage, path)
    run(sweep)
    status = read_status(sweep)
    names = [each.name for each in status.stages]
    first = STAGES.index(ENTERED[stage])
    data = [STAGES[first], "eval_prompts", *STAGES[first + 1 :]]
    assert names == ["policy", "reward", *data, "untrained"]
    assert {each.status for each in [*status.stages, *status.trials]} == {Status.SUCCEEDED}
    assert [each.name for each in read_results(sweep).stages] == names[:-1]
    rows = columns(sweep)
    assert [row["trial_id"] for row in rows] == ["untrained", sweep.trials[0].trial_id]
    assert all(row["reward_mean"] and row["kl"] and row["margin_test"] for row in rows)
    test_prompts = {p.prompt for p in pairs_of(sweep) if p.split == "test"}
    evaluated = [prompt.text for prompt in read_records(sweep, "eval_prompts", Prompt)]
    assert 0 < len(evaluated) <= 3 and set(evaluated) <= set(PROMPTS)
    assert test_prompts.isdisjoint(p.prompt for p in pairs_of(sweep) if p.split == "train")
    if stage != "prompts":  # of generated ones, some prompts may have no pair
        assert set(evaluated) <= test_prompts
    moved = path.rename(tmp_path / "moved.jsonl")
    run_finding_all(entering(tmp_path / "runs", stage, moved))
    run_finding_all(open_sweep("small", str(tmp_path / "runs")))


@pytest.mark.parametrize("stage", ["scored_completions", "pairs"])
def test_without_a_reward_the_reward_columns_are_empty(stage: str, tmp_path: Path) -> None:
    sweep = entering(tmp_path / "runs", stage, write(tmp_path, stage), *NO_REWARD)
    run(sweep)
    assert "reward" not in [each.name for each in read_status(sweep).stages]
    for row in columns(sweep):
        assert {row[name] for name in row if name.startswith(("reward_", "win_"))} == {""}
        assert row["kl"] and row["entropy"] and row["entropy_full"]
    assert columns(sweep)[1]["accuracy_test"]
    report = sweep.store.read(sweep.store.sweep("small", "report", "summary.md"))
    assert report is not None and b"evaluated without a reward" in report
    with_reward = entering(tmp_path / "runs", stage, tmp_path / f"{stage}.jsonl")
    assert with_reward.trials == sweep.trials
    assert with_reward.evaluation_path("untrained") != sweep.evaluation_path("untrained")


@pytest.mark.parametrize("stage", list(ROWS))
def test_another_row_is_other_data(stage: str, tmp_path: Path) -> None:
    before = entering(tmp_path, stage, write(tmp_path, stage))
    after = entering(tmp_path, stage, write(tmp_path, stage, ROWS[stage][1:]))
    for name in STAGES[STAGES.index(ENTERED[stage]) :]:
        assert before.path(name) != after.path(name)
    assert before.trials[0].trial_id != after.trials[0].trial_id
    assert before.path("policy") == after.path("policy")


def test_data_that_changed_since_the_sweep_was_read_is_refused(tmp_path: Path) -> None:
    sweep = entering(tmp_path / "runs", "pairs", write(tmp_path, "pairs"))
    write(tmp_path, "pairs", ROWS["pairs"][1:])
    with pytest.raises(UsageError, match=r"entry\.path=.*pairs\.jsonl: it has changed.*pairs"):
        run(sweep)
    with pytest.raises(DataError, match="has changed; run the sweep's original spec again"):
        EnterData(sweep, "pairs").run()  # changed after the run has begun, before it is read


def test_only_what_the_data_leaves_to_decide_is_part_of_its_identity(tmp_path: Path) -> None:
    def paths(stage: str, *overrides: str) -> list[str]:
        sweep = entering(tmp_path, stage, write(tmp_path, stage), *overrides)
        return [sweep.path(name) for name in ("eval_prompts", "pairs", "reference")]

    ignored = ("generation.seed=5", "generation.num_completions=9")
    assert paths("scored_completions") == paths("scored_completions", *ignored)
    assert paths("pairs") == paths("pairs", *ignored, "pairs.rule=all", "pairs.ranks=null")
    assert paths("pairs") != paths("pairs", "pairs.seed=5")
    assert paths("scored_completions")[1:] == paths("scored_completions", *NO_REWARD)[1:]
    more = paths("pairs", "evaluation.max_prompts=4")
    assert more[0] != paths("pairs")[0] and more[1:] == paths("pairs")[1:]


def test_a_prompts_section_gives_the_prompts_to_evaluate_with(tmp_path: Path) -> None:
    (tmp_path / "held_out.txt").write_text("\n".join([*PROMPTS[:2], "One day", "It was"]))
    section = f"prompts={{type: file, path: {tmp_path}/held_out.txt, num_eval: 4}}"
    sweep = entering(tmp_path / "runs", "pairs", write(tmp_path, "pairs"), section)
    run(sweep, until="pairs")
    prompts = read_records(sweep, "eval_prompts", Prompt)
    assert {prompt.text for prompt in prompts} == {"One day", "It was"}
    notes = next(s.notes for s in read_results(sweep).stages if s.name == "eval_prompts")
    assert notes == {"dropped: prompt of the training data": 2}


def test_held_out_prompts_can_be_cut_by_the_tokenizer_of_a_policy_that_is_made_first(
    tmp_path: Path,
) -> None:
    section = "prompts={type: builtin, num_texts: 40, take: {first_tokens: 5}, num_eval: 4}"
    sweep = entering(tmp_path / "runs", "pairs", write(tmp_path, "pairs"), section)
    run(sweep, until="pairs")
    assert len(read_records(sweep, "eval_prompts", Prompt)) == 4


def test_bad_data_is_refused_before_a_worker_starts(tmp_path: Path) -> None:
    def refuse() -> Cluster:
        raise AssertionError("a worker was started")

    rows = [*ROWS["scored_completions"], {"prompt": "a", "completions": ["b"], "scores": [1]}]
    path = write(tmp_path, "scored_completions", rows)
    with pytest.raises(DataError, match=r"row 17: .* has one completion"):
        run_sweep(entering(tmp_path / "runs", "scored_completions", path), refuse)


def test_prompts_that_the_policy_cannot_read_are_refused_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "pairs")
    sweep = entering(tmp_path / "runs", "pairs", path, "evaluation.max_new_tokens=2000")
    with pytest.raises(ModelError, match=r"evaluation\.max_new_tokens=2000"):
        run(sweep)
    assert read_status(sweep).stages[-2].status == Status.PENDING


def test_stages_before_the_entry_are_neither_planned_nor_run(tmp_path: Path) -> None:
    from rich.console import Console

    sweep = entering(tmp_path / "runs", "pairs", write(tmp_path, "pairs"), *NO_REWARD)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render_plan(sweep))
    text = capture.get()
    assert "starts with pairs from" in text and "at most 3 held-out prompts" in text
    assert not any(
        line.startswith(("scores", "completions", "reward")) for line in text.split("\n")
    )
    with pytest.raises(UsageError, match="--until scores: the sweep starts from its own data"):
        run(sweep, until="scores")


def pairs_of(sweep: Sweep) -> list[PreferencePair]:
    return read_records(sweep, "pairs", PreferencePair)
