import itertools
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from prefsweep.sweeps.grid import GridBlock
from prefsweep.sweeps.identity import canonical_json
from prefsweep.sweeps.spec import (
    CallableReward,
    ModelSection,
    PairsSpec,
    Section,
    SweepSpec,
    TrainingSpec,
)

MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "policy": {"model": "builtin:tiny-gpt2"},
    "reward": {"type": "vader"},
    "prompts": {"type": "builtin"},
    "grid": [{}],
}


def spec(**changes: Any) -> SweepSpec:
    return SweepSpec.model_validate(MINIMAL | changes)


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [model, *itertools.chain(*(sections(child) for child in model.__subclasses__()))]


ALL_SECTIONS = list(dict.fromkeys([*sections(Section), GridBlock]))


def test_the_shortest_spec_is_whole():
    assert [trial.loss_type for trial in spec().trials()] == ["sigmoid"]


def test_single_values_stand_for_lists_of_one():
    assert spec(seeds=3, grid={"beta": 1}) == spec(seeds=[3], grid=[{"beta": [1]}])


@pytest.mark.parametrize("section", ALL_SECTIONS, ids=lambda s: s.__name__)
def test_every_field_of_every_section_is_documented(section: type[BaseModel]):
    missing = [
        n for n, field in section.model_fields.items() if not (field.description or n == "type")
    ]
    assert not missing


@pytest.mark.parametrize("section", ALL_SECTIONS, ids=lambda s: s.__name__)
def test_a_default_is_the_same_value_when_it_is_given(section: type[BaseModel]):
    """Also as JSON: 16 and 16.0 would be two identities."""
    for name, field in section.model_fields.items():
        if not field.is_required():
            kind: Any = TypeAdapter(section.__annotations__.get(name, field.annotation))
            default = field.get_default(call_default_factory=True)
            given = kind.validate_python(default)
            assert canonical_json(to_jsonable_python(given)) == canonical_json(
                to_jsonable_python(default)
            ), name


@pytest.mark.parametrize("section", ALL_SECTIONS, ids=lambda s: s.__name__)
def test_sections_are_frozen_and_refuse_unknown_keys_and_infinities(section: type[BaseModel]):
    config = section.model_config
    assert config.get("frozen") and config.get("extra") == "forbid"
    assert config.get("allow_inf_nan") is False


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        spec().training.max_steps = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "take", ["whole", "first_sentence", {"first_words": 2}, {"first_tokens": 8}]
)
def test_every_way_to_take_prompts_round_trips(take: Any):
    one = spec(prompts={"type": "file", "path": "a.txt", "take": take})
    assert SweepSpec.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize("name", ["..", "-x", ".x", "a/b", "a b", "", "x" * 65, "a\n", "é"])
def test_a_name_is_safe_as_a_folder(name: str):
    with pytest.raises(ValidationError, match="name"):
        spec(name=name)


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        (TrainingSpec, {"bf16": True, "fp16": True}, "bf16=True and fp16=True exclude each other"),
        (
            TrainingSpec,
            {"save_steps": 15},
            "save_steps=15 is not a multiple of logging_steps=10",
        ),
        (
            TrainingSpec,
            {"max_prompt_length": 512},
            "max_prompt_length=512 leaves no room for a completion in max_length=512",
        ),
        (PairsSpec, {"rule": "ranks"}, "rule=ranks and ranks=None: give ranks with rule: ranks"),
        (PairsSpec, {"ranks": [[0, 1]]}, "rule=best_worst and ranks="),
        (PairsSpec, {"rule": "ranks", "ranks": [[1, 0]]}, r"ranks has \[1, 0\]; the first must be"),
        (PairsSpec, {"rule": "ranks", "ranks": [[-1, 0]]}, "smaller. rank, from 0"),
        (PairsSpec, {"test_fraction": 1}, "less than 1"),
        (
            ModelSection,
            {"model": "a/b", "trust_remote_code": True, "revision": "main"},
            "trust_remote_code needs revision to be a full commit hash, not 'main'",
        ),
        (CallableReward, {"type": "callable", "function": "os.system"}, "should match pattern"),
    ],
)
def test_contradictions_are_refused(section: type[Section], fields: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        section.model_validate(fields)


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({}, "training.lora is not set: all weights are trained"),
        ({"lora": {}, "packing": "off"}, "training.packing is off"),
        ({"lora": {}, "optim": "lion_32bit"}, "training.optim=lion_32bit is none of adamw_torch"),
    ],
)
def test_trials_that_cannot_be_trained_as_one_are_not_to_be(training: dict[str, Any], reason: str):
    assert spec(training=training), "which trains each alone"
    with pytest.raises(ValidationError, match=f"training.fuse=4, but {reason}.*auto or off"):
        spec(training=training | {"fuse": 4})
    assert spec(training={"lora": {}, "fuse": 4}).training.fuse == 4


def test_remote_code_runs_at_a_pinned_commit():
    section = ModelSection(model="a/b", trust_remote_code=True, revision="0123456789" * 4)
    assert section.trust_remote_code


def test_ranks_must_exist_among_the_completions():
    pairs = {"rule": "ranks", "ranks": [[0, 4]]}
    assert spec(pairs=pairs, generation={"num_completions": 5})
    with pytest.raises(ValidationError, match=r"\[0, 4\].*num_completions=4 gives ranks 0 to 3"):
        spec(pairs=pairs, generation={"num_completions": 4})


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("where", ["seeds", "generation"])
def test_seeds_are_32_bit(seed: int, where: str):
    with pytest.raises(ValidationError, match=r"equal to 0|less than 4294967296"):
        spec(**{where: [seed] if where == "seeds" else {"seed": seed}})
