"""What is said of the fields of a spec: the JSON Schema, `explain`, and the reference."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.fields import explained, reference, sections
from prefsweep.sweeps.load import load_spec, shipped_names
from prefsweep.sweeps.schema import EDITOR_LINE, SCHEMA_FILE, spec_schema

SWEEPS = Path(__file__).parents[3] / "sweeps"


def small(**sections: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "policy": {"model": "builtin:tiny-gpt2"},
        "prompts": {"type": "builtin"},
        "reward": {"type": "vader"},
        "grid": {"beta": 0.1},
        **sections,
    }


def test_the_written_schema_and_reference_are_those_of_the_code() -> None:
    remedy = "run `make docs`"
    assert json.loads((SWEEPS / SCHEMA_FILE).read_text()) == spec_schema(), remedy
    assert (SWEEPS / "FIELDS.md").read_text() == f"{reference()}\n", remedy


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_sweeps_fit_the_schema_and_name_it(name: str) -> None:
    assert (SWEEPS / f"{name}.yaml").read_text().startswith(f"{EDITOR_LINE}\n")
    jsonschema.validate(load_spec(name).model_dump(mode="json"), spec_schema())


def test_the_schema_takes_one_value_for_a_list_of_one() -> None:
    for grid in ({"beta": 0.1}, [{"beta": [0.1, 0.2], "loss_type": "hinge"}]):
        jsonschema.validate(small(grid=grid, seeds=3), spec_schema())


@pytest.mark.parametrize(
    "sections",
    [
        {"trainig": {}},
        {"training": {"max_stes": 3}},
        {"training": {"max_steps": 0}},
        {"grid": []},
        {"grid": {"beta": -1}},
        {"reward": {"type": "vader", "label": "POSITIVE"}},
    ],
)
def test_the_schema_refuses_what_a_spec_does(sections: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(small(**sections), spec_schema())


def test_every_field_says_what_it_means() -> None:
    fields = [field for section in sections() for field in section.fields]
    assert [field.name for field in fields if not field.meaning] == []
    assert len({(field.name, field.of_type) for field in fields}) == len(fields) > 150


def test_a_field_is_explained_by_its_name_or_the_end_of_it() -> None:
    [beta] = explained("grid.0.beta")
    assert (beta.name, beta.default) == ("grid.beta", "[0.1]")
    assert beta.values == "a number > 0; or a list of: a number > 0"
    assert explained("beta") == [beta]
    assert {field.name for field in explained("batch_size")} == {
        *("reward.batch_size", "generation.batch_size", "evaluation.batch_size")
    }
    [steps] = explained("training.max_steps")
    assert "Optimizer steps" in steps.meaning and steps.default == "null"


def test_an_unknown_field_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'training.max_step'; did you mean training.max_s"):
        explained("training.max_step")
