"""The shipped sweeps of the systems that prefsweep replaces, from the spec to the report, offline.

Overrides alone make them small: built-in models stand in for the hub's, and a folder with a few
reviews for the dataset. All else is as shipped.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import datasets.config
import pytest

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep, resolve
from prefsweep.orchestrator.tasks.stages import read_records
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.records import (
    Completion,
    PreferencePair,
    Prompt,
    ScoredCompletion,
    Status,
)

STAND_INS = (
    "policy.model=builtin:tiny-gpt2",
    "reward.model=builtin:tiny-classifier",
    "evaluation.max_new_tokens=8",
    "training.max_steps=2",
    "training.logging_steps=1",
    "training.per_device_train_batch_size=4",
    "tracking.wandb.mode=disabled",
)
OPINIONS = ("is one I loved", "was a waste of an evening", "has a fine cast", "bored my wife")
NUM_REVIEWS = 41
RANKS = [(0, 3), (0, 4), (0, 5), (1, 5), (2, 5), (3, 5)]


@pytest.fixture(autouse=True)
def no_cache_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def run(name: str, storage: Path, *overrides: str) -> Sweep:
    sweep = resolve(load_spec(name, [*STAND_INS, *overrides]), str(storage))
    results = run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources))
    assert [result.status for result in results] == [Status.SUCCEEDED] * len(results)
    assert len(results) == 1 + len(sweep.trials)
    return sweep


def review(number: int) -> str:
    return f"{opening(number)}. {'It goes on like that. ' * (number + 2)}"


def opening(number: int) -> str:
    return f"Film {number} {OPINIONS[number % 4]}"


def dataset(folder: Path) -> str:
    """Reviews as the hub's dataset has them (text, label), and the override that names them.

    Review `number` has label number % 2; the lengths are from 65 to 950 characters.
    """
    rows = [{"text": review(number), "label": number % 2} for number in range(NUM_REVIEWS)]
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"prompts.dataset={folder}"


def prompts(sweep: Sweep) -> tuple[list[Prompt], list[Prompt]]:
    return read_records(sweep, "prompts", Prompt), read_records(sweep, "eval_prompts", Prompt)


def pairs(sweep: Sweep) -> list[PreferencePair]:
    return read_records(sweep, "pairs", PreferencePair)


def ranked(sweep: Sweep) -> dict[str, list[ScoredCompletion]]:
    """prompt_id -> its scored completions, the best first."""
    groups: dict[str, list[ScoredCompletion]] = {}
    for each in read_records(sweep, "scores", ScoredCompletion):
        groups.setdefault(each.prompt_id, []).append(each)
    return {
        key: sorted(group, key=lambda each: (-each.score, each.sample_idx))
        for key, group in groups.items()
    }


def expected_pairs(sweep: Sweep, ranks: Sequence[tuple[int, int]]) -> set[tuple[str, str, str]]:
    """(prompt_id, chosen, rejected) of these ranks, ties left out."""
    return {
        (prompt, group[good].text, group[bad].text)
        for prompt, group in ranked(sweep).items()
        for good, bad in ranks
        if group[good].score > group[bad].score
    }


def assert_split_by_prompt(sweep: Sweep) -> None:
    in_train = {pair.prompt_id for pair in pairs(sweep) if pair.split == "train"}
    in_test = {pair.prompt_id for pair in pairs(sweep) if pair.split == "test"}
    assert in_train and in_test
    assert not in_train & in_test
    train, held_out = prompts(sweep)
    assert not {p.prompt_id for p in train} & {p.prompt_id for p in held_out}


def report(sweep: Sweep, name: str) -> str:
    data = sweep.store.read(sweep.store.sweep(sweep.spec.name, "report", name))
    assert data is not None
    return data.decode()


def assert_report_is_whole(sweep: Sweep) -> None:
    """Every trial with every number that was compared before, and the plots that showed them."""
    rows = list(csv.DictReader(io.StringIO(report(sweep, "trials.csv"))))
    assert [row["name"] for row in rows] == ["untrained", *(trial.name for trial in sweep.trials)]
    for row in rows:
        for column in ("reward_mean", "reward_ci_low", "win_rate", "entropy", "entropy_full", "kl"):
            assert row[column], (row["name"], column)
    page = report(sweep, "index.html")
    for plot in ("reward-kl", "reward-entropy", "reward-beta", "reward-at-beta", "reward-box-f0"):
        assert f'id="{plot}"' in page, plot
    for title in ("Reward by loss and beta", "Entropy by loss and beta", "Completions side by"):
        assert title in page
    assert "The untrained policy is evaluated by its own samples" in page
    assert f"{len(sweep.trials)} succeeded" in report(sweep, "summary.md")


def test_slic_hf_runs_its_eighteen_trials(tmp_path: Path) -> None:
    sweep = run(
        "slic_hf",
        tmp_path / "runs",
        dataset(tmp_path / "imdb"),
        "prompts.num_train=14",
        "prompts.num_eval=4",
        "generation.max_new_tokens=8",
    )
    losses = [
        *((loss, beta) for loss in ("hinge", "sigmoid") for beta in ("0.1", "0.5", "1", "10")),
        *((loss, beta) for loss in ("js_divergence", "forward_kl") for beta in ("0.1", "1")),
        *((f"alpha_divergence{alpha}", b) for alpha in (0.3, 0.5, 0.7) for b in ("0.1", "1")),
    ]
    assert [trial.name for trial in sweep.trials] == [f"{loss}-beta{b}" for loss, b in losses]
    assert [trial.spec.learning_rate for trial in sweep.trials] == [1e-4] * 8 + [1e-5] * 10

    train, held_out = prompts(sweep)
    first_sentences = {opening(number) for number in range(1, NUM_REVIEWS, 2)}
    assert (len(train), len(held_out)) == (14, 4)
    texts = {p.text for p in (*train, *held_out)}
    assert texts <= first_sentences, "positive reviews, up to the full stop"

    assert {len(group) for group in ranked(sweep).values()} == {6}
    made = [(p.prompt_id, p.chosen, p.rejected) for p in pairs(sweep)]
    assert set(made) == expected_pairs(sweep, RANKS)
    assert len(made) > 6 * 7
    assert_split_by_prompt(sweep)
    assert_report_is_whole(sweep)


def test_tinkoff_level1_with_prompts_runs_both_losses(tmp_path: Path) -> None:
    sweep = run(
        "tinkoff_level1",
        tmp_path / "runs",
        dataset(tmp_path / "imdb"),
        "prompts.num_eval=4",
        "generation.max_new_tokens=8",
        "training.warmup_steps=0",
        "pairs.test_fraction=0.3",
    )
    assert [trial.name for trial in sweep.trials] == ["hinge-beta0.1", "sigmoid-beta0.1"]
    assert sweep.spec.training.optim == "rmsprop"
    lengths = [len(review(number)) for number in range(NUM_REVIEWS)]
    fitting = [n for n, length in enumerate(lengths) if 200 <= length <= 512]
    texts = [p.text for side in prompts(sweep) for p in side]
    assert sorted(map(number_of, texts)) == fitting, "all of them, whatever their label"
    assert {len(group) for group in ranked(sweep).values()} == {2}
    assert {(p.prompt_id, p.chosen, p.rejected) for p in pairs(sweep)} == expected_pairs(
        sweep, [(0, 1)]
    )
    assert_split_by_prompt(sweep)
    assert_report_is_whole(sweep)


def number_of(prompt: str) -> int:
    match = re.search(r"\d+", prompt)
    assert match is not None, prompt
    return int(match.group())


def test_tinkoff_level1_without_prompts_starts_every_text_from_nothing(tmp_path: Path) -> None:
    sweep = run(
        "tinkoff_level1_unconditional",
        tmp_path / "runs",
        "prompts.num_train=12",
        "prompts.num_eval=4",
        "pairs.test_fraction=0.3",
    )
    assert [trial.name for trial in sweep.trials] == ["hinge-beta0.1", "sigmoid-beta0.1"]
    train, held_out = prompts(sweep)
    assert {p.text for p in (*train, *held_out)} == {""}
    assert len({p.prompt_id for p in (*train, *held_out)}) == 16, "every draw stands for itself"
    completions = read_records(sweep, "completions", Completion)
    assert len(completions) == 12 * 5
    assert len({len(each.text) for each in completions}) > 5, "the lengths are random"
    made = {(p.prompt_id, p.chosen, p.rejected) for p in pairs(sweep)}
    assert made == expected_pairs(sweep, [(0, 4)])
    assert_split_by_prompt(sweep)
    assert_report_is_whole(sweep)


@pytest.mark.parametrize("name", ["slic_hf", "tinkoff_level1", "tinkoff_level1_unconditional"])
def test_the_shipped_file_names_the_models_of_the_hub(name: str) -> None:
    spec = load_spec(name)
    assert spec.policy.model == "lvwerra/gpt2-imdb"
    assert spec.reward is not None and spec.reward.type == "classifier"
    assert spec.reward.model == "lvwerra/distilbert-imdb"
