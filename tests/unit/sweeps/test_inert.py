"""A field that has no effect is refused or named where the spec is loaded."""

import re

import pytest

from prefsweep.sweeps.errors import SpecError
from prefsweep.sweeps.load import load_spec, shipped_names


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["training.warmup_steps=5", "training.lr_scheduler_type=constant"],
            "training.warmup_steps=5 has no effect.*constant_with_warmup",
        ),
        (
            ["generation.do_sample=false", "generation.top_p=0.9"],
            "generation.top_p=0.9 has no effect.*do_sample=true",
        ),
        (
            ["evaluation.do_sample=false", "evaluation.num_samples=2"],
            "evaluation.num_samples=2 gives the same completion.*num_samples=1",
        ),
        (["evaluation.max_prompts=9"], "evaluation.max_prompts=9 has no effect.*prompts.num_eval"),
    ],
)
def test_what_has_no_effect_is_named_with_what_to_change(
    overrides: list[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    load_spec("quickstart", overrides)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and re.search(said, record.getMessage())


def test_adapter_dropout_that_is_turned_off_is_refused() -> None:
    with pytest.raises(SpecError, match=r"lora_dropout=0.1 has no effect.*disable_dropout=false"):
        load_spec("quickstart", ["training.lora={lora_dropout: 0.1}"])
    load_spec("quickstart", ["training.lora={lora_dropout: 0.1}", "training.disable_dropout=false"])


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_specs_set_nothing_without_effect(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    load_spec(name)
    assert caplog.records == []
