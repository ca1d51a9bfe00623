"""No clock in the data: a template that writes the date of the day writes the sweep's."""

import datetime

import pytest
from pydantic import ValidationError

from prefsweep.sweeps.errors import ModelError
from prefsweep.sweeps.identity import Fingerprints, Inputs
from prefsweep.sweeps.spec import ChatSpec, SweepSpec
from prefsweep.workers.rendering import dated, rendered, token_ids

from .chat_templates import CHATML, FAMILIES, tokenizer_of

DAY = datetime.date(2024, 2, 9)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{{ strftime_now("%d %b %Y") }}', "09 Feb 2024"),
        ("{{- strftime_now( '%Y-%m-%d' ) -}}", "2024-02-09"),
        ('{{ strftime_now(format="%B %d, %Y") }}', "February 09, 2024"),
        ('{%- set today = strftime_now("%H:%M %j") -%}{{ today }}', "00:00 040"),
        (
            "{%- if date_string is not defined %}{% if strftime_now is defined %}"
            '{% set date_string = strftime_now("%d %b %Y") %}{% else %}'
            '{% set date_string = "26 Jul 2024" %}{% endif %}{% endif -%}{{ date_string }}',
            "09 Feb 2024",
        ),
    ],
)
def test_the_date_of_a_template_is_the_specs(written: str, read: str) -> None:
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    tokenizer.chat_template = written + CHATML
    chat = ChatSpec(date=DAY)
    assert rendered(tokenizer, "Hi.", chat).startswith(f"{read}<|im_start|>user\nHi.")
    assert rendered(tokenizer, "Hi.", chat, "Yes.").startswith(read)
    assert token_ids(tokenizer, "Hi.", chat=chat) != token_ids(tokenizer, "Hi.", chat=ChatSpec())


def test_a_date_that_cannot_be_fixed_is_refused() -> None:
    for template in ("{{ strftime_now(style) }}", '{% set f = strftime_now %}{{ f("%d") }}'):
        with pytest.raises(ModelError, match=r"cannot be fixed to policy\.chat\.date"):
            dated(template, DAY)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_without_a_date_is_left_as_it_is(family: str) -> None:
    assert dated(FAMILIES[family].template, DAY) == FAMILIES[family].template


def policy_identity(**chat: str) -> str:
    spec = SweepSpec.model_validate(
        {
            "name": "a",
            "policy": {"model": "a/b", "chat": chat},
            "reward": {"type": "vader"},
            "prompts": {"type": "builtin"},
            "grid": [{}],
        }
    )
    assert SweepSpec.model_validate(spec.model_dump(mode="json")) == spec
    return Fingerprints(spec, Inputs("p", "", "", "", "")).policy


def test_the_date_is_recorded_and_part_of_the_identity_where_it_is_set() -> None:
    assert ChatSpec().model_dump(mode="json")["date"] == "2025-01-01"
    assert policy_identity() == policy_identity(date="2025-01-01")
    assert policy_identity() != policy_identity(date="2025-01-02")


@pytest.mark.parametrize("date", ["today", "2025-13-01", 20250101, "1735689600", None, 1.5])
def test_what_is_no_day_is_refused(date: object) -> None:
    with pytest.raises(ValidationError, match="YYYY-MM-DD"):
        ChatSpec.model_validate({"date": date})
