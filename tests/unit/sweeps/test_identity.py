import copy
import json
from typing import Any

import pytest

from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.identity import (
    STAGE_VERSIONS,
    Fingerprints,
    Inputs,
    canonical_json,
    fingerprint,
    needs_making,
)
from prefsweep.sweeps.spec import SweepSpec

INPUTS = Inputs(policy="p", policy_corpus="pc", reward="r", reward_corpus="rc", prompts="t")
SPEC: dict[str, Any] = {
    "name": "golden",
    "policy": {"model": "builtin:tiny-gpt2", "sft": {"corpus": {"type": "file", "path": "a.txt"}}},
    "reward": {"type": "classifier", "model": "builtin:tiny-classifier", "train": {}},
    "prompts": {"type": "file", "path": "prompts.txt", "num_train": 100, "num_eval": 10},
    "generation": {"num_completions": 4},
    "pairs": {"rule": "all"},
    "training": {"max_steps": 40, "per_device_train_batch_size": 8},
    "grid": [{"beta": [0.1], "loss_type": ["sigmoid"]}],
    "evaluation": {"num_samples": 2},
}
STAGES = (
    *("policy", "reward", "prompts", "eval_prompts"),
    *("completions", "scores", "pairs", "reference"),
)


def spec(changes: dict[str, Any] | None = None) -> SweepSpec:
    """SPEC with dotted keys changed; None removes a key."""
    data = copy.deepcopy(SPEC)
    for dotted, value in (changes or {}).items():
        *path, last = dotted.split(".")
        section = data
        for part in path:
            section = section.setdefault(part, {})
        if value is None:
            section.pop(last)
        else:
            section[last] = value
    return SweepSpec.model_validate(data)


def identities(changes: dict[str, Any] | None = None, inputs: Inputs = INPUTS) -> dict[str, str]:
    """Every identity of the changed spec; "trial" and "evaluation" are those of the first trial."""
    changed = spec(changes)
    prints = Fingerprints(changed, inputs)
    found: dict[str, str] = {stage: getattr(prints, stage) for stage in STAGES}
    found["trial"] = prints.trial_id(changed.trials()[0])
    found["evaluation"] = prints.evaluation(found["trial"])
    found["untrained"] = prints.evaluation("untrained")
    return found


BASE = identities()


def changed_by(changes: dict[str, Any] | None = None, inputs: Inputs = INPUTS) -> set[str]:
    now = identities(changes, inputs)
    return {stage for stage in BASE if now[stage] != BASE[stage]}


DOWN = {
    "policy": {"policy", "completions", "scores", "pairs", "reference"},
    "reward": {"reward", "scores", "pairs", "reference"},
    "prompts": {"prompts", "completions", "scores", "pairs", "reference"},
    "completions": {"completions", "scores", "pairs", "reference"},
    "pairs": {"pairs", "reference"},
    "reference": {"reference"},
    "trial": set[str](),
}
RESULTS = {"trial", "evaluation"}
SCORED = {"scores", "pairs", "reference"}
"""What changes where the same reward model is read in another way."""


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"resources.num_generators": 3, "resources.threads_per_worker": 2},
        {"tracking.wandb": {"project": "x"}},
        {"training.logging_steps": 5},
        {"training.save_steps": 20},
        {"training.packing": "off"},
        {"training.fuse": "off"},
        {"training.gradient_checkpointing": True},
        {"evaluation.eval_steps": 10},
        {"evaluation.confirm_best": True},
        {"seeds": [0, 1]},
        {"grid": [{"beta": [0.1, 1], "loss_type": ["sigmoid"]}]},
        {"prompts.path": "elsewhere/prompts.txt"},
        {"prompts.label_column": "stars"},
        {"policy.sft.corpus.label_column": "stars"},
        {"policy.sft.corpus.path": "elsewhere/a.txt"},
        {"training.num_train_epochs": 7},
        {"training.per_device_train_batch_size": 4, "training.gradient_accumulation_steps": 2},
    ],
)
def test_what_does_not_change_a_result_does_not_change_an_identity(changes: dict[str, Any]):
    assert changed_by(changes) == set()


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"policy.sft.seed": 1}, DOWN["policy"] | RESULTS | {"untrained"}),
        ({"policy.dtype": "bfloat16"}, DOWN["policy"] | RESULTS | {"untrained"}),
        ({"reward.train.seed": 1}, DOWN["reward"] | RESULTS | {"untrained"}),
        ({"reward.over": "completion"}, SCORED | RESULTS | {"untrained"}),
        ({"reward.label": "NEGATIVE"}, SCORED | RESULTS | {"untrained"}),
        ({"prompts.num_train": 99}, DOWN["prompts"] | RESULTS | {"eval_prompts", "untrained"}),
        ({"prompts.take": {"first_words": 3}}, None),
        ({"generation.seed": 1}, DOWN["completions"] | RESULTS),
        ({"generation.batch_size": 8}, DOWN["completions"] | RESULTS),
        ({"pairs.seed": 1}, DOWN["pairs"] | RESULTS),
        ({"pairs.rule": "adjacent"}, DOWN["pairs"] | RESULTS),
        ({"training.max_length": 128}, DOWN["reference"] | RESULTS),
        ({"training.eos": "finished"}, DOWN["reference"] | RESULTS),
        ({"training.max_steps": 41}, RESULTS),
        ({"training.max_steps": None}, RESULTS),
        ({"training.per_device_train_batch_size": 4}, RESULTS),
        ({"training.lora": {}}, RESULTS),
        ({"training.order": "by_prompt"}, RESULTS),
        ({"training.bf16": True}, DOWN["reference"] | RESULTS),
        ({"seeds": [1]}, RESULTS),
        ({"grid": [{"beta": 0.2}]}, RESULTS),
        ({"grid": [{"loss_type": "hinge"}]}, RESULTS),
        ({"grid": [{"learning_rate": 2e-5}]}, RESULTS),
        ({"evaluation.num_samples": 1}, {"evaluation", "untrained"}),
        ({"evaluation.seed": 1}, {"evaluation", "untrained"}),
        ({"prompts.num_eval": 20}, {"eval_prompts", "evaluation", "untrained"}),
    ],
)
def test_a_change_reaches_what_depends_on_it_and_nothing_else(
    changes: dict[str, Any], stages: set[str] | None
):
    if stages is None:
        stages = DOWN["prompts"] | RESULTS | {"eval_prompts", "untrained"}
    assert changed_by(changes) == stages


@pytest.mark.parametrize(
    ("which", "stages"),
    [
        ("policy", DOWN["policy"] | RESULTS | {"untrained"}),
        ("policy_corpus", DOWN["policy"] | RESULTS | {"untrained"}),
        ("reward", DOWN["reward"] | RESULTS | {"untrained"}),
        ("reward_corpus", DOWN["reward"] | RESULTS | {"untrained"}),
        ("prompts", DOWN["prompts"] | RESULTS | {"eval_prompts", "untrained"}),
    ],
)
def test_other_weights_or_files_behind_the_same_names_are_other_inputs(
    which: str, stages: set[str]
):
    other = Inputs(**{**INPUTS.__dict__, which: "other"})
    assert changed_by(inputs=other) == stages


def test_without_num_train_the_held_out_prompts_decide_what_is_left_to_train_on():
    one = identities({"prompts.num_train": None})
    two = identities({"prompts.num_train": None, "prompts.num_eval": 20})
    assert one["prompts"] != two["prompts"] and one["trial"] != two["trial"]


def test_the_tokenizer_matters_to_prompts_that_are_cut_by_tokens():
    cut = {"prompts.take": {"first_tokens": 8}}
    assert identities(cut)["prompts"] != identities(cut | {"policy.sft.seed": 1})["prompts"]


@pytest.mark.parametrize("loss", ["sigmoid", "sft", "aot"])
def test_the_effective_batch_matters_and_not_how_it_is_written(loss: str):
    whole = {"grid": [{"loss_type": loss}]}
    halves = {"training.per_device_train_batch_size": 4, "training.gradient_accumulation_steps": 2}
    assert identities(whole)["trial"] == identities(whole | halves)["trial"]
    prompts = {"training.prompts_per_batch": 4}
    twice = {"training.prompts_per_batch": 2, "training.gradient_accumulation_steps": 2}
    assert identities(whole)["trial"] != identities(whole | prompts)["trial"]
    assert identities(whole | prompts)["trial"] == identities(whole | twice)["trial"]
    unread = {"training.per_device_train_batch_size": 3, "training.order": "by_prompt"}
    assert identities(whole | prompts)["trial"] == identities(whole | prompts | unread)["trial"]


def test_limits_of_the_alpha_divergence_have_the_ids_of_what_they_are():
    def with_alpha(alpha: float) -> str:
        block = {"f_divergence_type": "alpha_divergence", "alpha": alpha}
        return identities({"grid": [block]})["trial"]

    assert with_alpha(1.0) == identities({"grid": [{"f_divergence_type": "forward_kl"}]})["trial"]
    assert with_alpha(0.0) == BASE["trial"]
    assert with_alpha(0.5) not in (with_alpha(1.0), with_alpha(0.0))


GOLDEN = {
    "policy": "42682a51a76a",
    "reward": "e10702154395",
    "prompts": "e5cc626bba29",
    "eval_prompts": "18230386bfb1",
    "completions": "8b1bace4152b",
    "scores": "56ddb040f70e",
    "pairs": "909a42271f34",
    "reference": "274b48de1d98",
    "trial": "23bd3d1c5d89",
    "evaluation": "cbf43ba5db7c",
    "untrained": "e109a7337be3",
}
"""First 12 digits. Another value means: what users have computed would be computed again."""


def test_identities_are_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch):
    for stage in STAGE_VERSIONS:
        monkeypatch.setitem(STAGE_VERSIONS, stage, 1)  # pyright: ignore[reportArgumentType]
    assert {name: value[:12] for name, value in identities().items()} == GOLDEN


@pytest.mark.parametrize("stage", sorted(STAGE_VERSIONS))
def test_a_new_version_of_a_stage_is_a_new_identity(stage: str, monkeypatch: pytest.MonkeyPatch):
    before = fingerprint(stage, {"a": 1})
    monkeypatch.setitem(STAGE_VERSIONS, stage, STAGE_VERSIONS[stage] + 1)  # pyright: ignore[reportArgumentType]
    assert fingerprint(stage, {"a": 1}) != before


def test_a_fingerprint_depends_on_the_stage_and_the_parts_but_not_their_order():
    assert fingerprint("pairs", {"a": 1, "b": 2}) == fingerprint("pairs", {"b": 2, "a": 1})
    assert fingerprint("pairs", {"a": 1}) != fingerprint("scores", {"a": 1})
    assert len(fingerprint("pairs", {})) == 64


def test_canonical_json_is_one_text_for_one_value():
    assert canonical_json({"b": [1, 0.1], "a": "é"}) == '{"a":"\\u00e9","b":[1,0.1]}'
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            canonical_json(value)


def test_the_parts_of_an_identity_can_be_saved_and_compared():
    changed = spec()
    prints = Fingerprints(changed, INPUTS)
    trial: TrialSpec = changed.trials()[0]
    assert set(prints.parts) == set(STAGES)
    for name, parts in {**prints.parts, "trial": prints.trial_parts(trial)}.items():
        assert json.loads(canonical_json(parts)) == parts, name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"policy": True, "reward": True}),
        ({"policy": {"model": "a/b"}}, {"policy": False, "reward": True}),
        ({"policy": {"model": "a/b", "gguf_file": "x.gguf"}}, {"policy": True, "reward": True}),
        (
            {"reward": {"type": "classifier", "model": "a/b"}},
            {"policy": True, "reward": False},
        ),
        ({"reward": {"type": "vader"}}, {"policy": True, "reward": False}),
    ],
)
def test_a_model_is_made_if_it_is_trained_built_in_or_converted(
    changes: dict[str, Any], expected: dict[str, bool]
):
    assert needs_making(spec(changes)) == expected
