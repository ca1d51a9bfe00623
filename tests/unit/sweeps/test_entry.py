from typing import Any

import pytest
from pydantic import ValidationError

from prefsweep.sweeps.entry import ARTEFACTS, EntrySpec, EntryStage
from prefsweep.sweeps.identity import Fingerprints, Inputs, needs_making
from prefsweep.sweeps.spec import SweepSpec

VADER = {"type": "vader"}
BUILTIN = {"type": "builtin", "num_train": 10}
MINIMAL: dict[str, Any] = {"name": "own", "policy": {"model": "a/b"}, "grid": [{}]}
INPUTS = Inputs("p", "", "", "", "", entry="e")
STAGES = ("prompts", "completions", "scores", "pairs", "reference")


def spec(stage: str | None, **changes: Any) -> SweepSpec:
    entry = {} if stage is None else {"entry": {"stage": stage, "path": "data.jsonl"}}
    return SweepSpec.model_validate(MINIMAL | entry | changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "path=None and dataset=None: give exactly one"),
        ({"path": "a.csv", "dataset": "b"}, "path='a.csv' and dataset='b': give exactly one"),
        ({"path": "a.csv", "split": "test"}, "split='test' is only used with dataset"),
        ({"path": "a.csv", "revision": "main"}, "revision='main' is only used with dataset"),
        ({"path": "a.csv", "columns": {"score": "s"}}, "'score', .* reads prompt, chosen, rejec"),
        ({"path": "a.csv", "columns": {"chosen": "prompt"}}, "'prompt' as both prompt and chosen"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        EntrySpec.model_validate({"stage": "pairs", **fields})


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        (None, {"reward": VADER}, "prompts is required, but not given; add the section, or start"),
        (None, {"prompts": BUILTIN}, "reward is required with no entry, but not given"),
        ("prompts", {}, "reward is required with entry.stage=prompts, but not given"),
        ("completions", {}, "reward is required with entry.stage=completions"),
        ("prompts", {"reward": VADER}, None),
        ("completions", {"reward": VADER}, None),
        ("scored_completions", {}, None),
        ("pairs", {}, None),
        ("pairs", {"reward": VADER, "prompts": BUILTIN}, None),
    ],
)
def test_prompts_and_reward_are_required_where_they_are_needed(
    stage: str | None, given: dict[str, Any], message: str | None
):
    if message is None:
        made = needs_making(spec(stage, **given))
        assert made == {"policy": False, "reward": False}
        return
    with pytest.raises(ValidationError, match=message):
        spec(stage, **given)


def test_ranks_are_compared_with_completions_that_are_generated_only():
    ranks = {"pairs": {"rule": "ranks", "ranks": [[0, 5]]}, "reward": VADER}
    assert spec("completions", **ranks) and spec("scored_completions", **ranks)
    with pytest.raises(ValidationError, match="num_completions=4 gives ranks 0 to 3"):
        spec("prompts", **ranks)


def prints(stage: str, inputs: Inputs = INPUTS, **changes: Any) -> Fingerprints:
    return Fingerprints(spec(stage, **({"reward": VADER} | changes)), inputs)


@pytest.mark.parametrize("stage", list(ARTEFACTS))
def test_stages_before_the_data_have_no_fingerprint(stage: EntryStage):
    first = STAGES.index(ARTEFACTS[stage])
    found = prints(stage)
    assert [bool(getattr(found, name)) for name in STAGES] == [i >= first for i in range(5)]
    assert set(found.parts) == {"policy", "reward", "eval_prompts", *STAGES[first:]}


@pytest.mark.parametrize("stage", list(ARTEFACTS))
def test_identity_is_the_content_and_the_columns_but_not_the_path(stage: EntryStage):
    def reference(inputs: Inputs = INPUTS, **entry: Any) -> str:
        fields = {"stage": stage, "path": "data.jsonl"} | entry
        return prints(stage, inputs, entry=fields).reference

    base = reference()
    assert reference(path="elsewhere/other.jsonl") == base
    assert reference(columns={"prompt": "prompt"}) == base
    assert reference(columns={"prompt": "question"}) != base
    assert reference(Inputs("p", "", "", "", "", entry="other")) != base
    assert reference(Inputs("q", "", "", "", "", entry="e")) != base


def test_two_splits_of_a_dataset_are_two_inputs():
    fields = {"stage": "pairs", "dataset": "a/b"}
    train = prints("pairs", entry=fields)
    assert train.pairs != prints("pairs", entry=fields | {"split": "test"}).pairs
    assert train.pairs != prints("pairs", entry=fields | {"config": "c"}).pairs


def test_the_rule_belongs_to_scores_and_the_split_to_pairs_too():
    rule: dict[str, Any] = {"pairs": {"rule": "all"}}
    split: dict[str, Any] = {"pairs": {"test_fraction": 0.5}}
    for stage, changes, changed in (
        ("scored_completions", rule, True),
        ("scored_completions", split, True),
        ("pairs", rule, False),
        ("pairs", split, True),
    ):
        assert (prints(stage).pairs != prints(stage, **changes).pairs) == changed


def test_a_reward_for_the_evaluation_leaves_the_trials_as_they_are():
    without, with_reward = prints("pairs", reward=None), prints("pairs")
    trial = spec("pairs").trials()[0]
    assert without.trial_id(trial) == with_reward.trial_id(trial)
    assert without.evaluation("untrained") != with_reward.evaluation("untrained")


def test_more_prompts_of_the_test_split_are_another_evaluation_and_nothing_else():
    few, more = prints("pairs"), prints("pairs", evaluation={"max_prompts": 60})
    assert few.reference == more.reference
    assert few.eval_prompts != more.eval_prompts
    assert few.evaluation("untrained") != more.evaluation("untrained")
    own = prints("pairs", prompts=BUILTIN)
    same = prints("pairs", prompts=BUILTIN, evaluation={"max_prompts": 60})
    assert own.evaluation("untrained") == same.evaluation("untrained")
