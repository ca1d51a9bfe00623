"""One prompt is one prompt, however it is written."""

import json
import unicodedata
from typing import Any

import pytest

from prefsweep.sweeps.records import prompt_id
from prefsweep.sweeps.same_prompt import canonical_prompt

ASKED = "Is the café good?"


def talk(*contents: str, first: str = "user") -> list[dict[str, Any]]:
    roles = ["user", "assistant"] if first == "user" else ["system", "user", "assistant"]
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


@pytest.mark.parametrize(
    "same",
    [
        ASKED + " ",
        "\n" + ASKED + "\r\n",
        ASKED.replace(" ", "  "),
        ASKED.replace(" ", "\t", 1),
        ASKED.replace(" ", "\u00a0"),  # no-break space
        ASKED.replace(" ", "\u3000"),  # ideographic space
        unicodedata.normalize("NFD", ASKED),
        "\ufeff" + ASKED,
        ASKED.replace("the", "the\u200b"),
        json.dumps(talk(ASKED)),
        json.dumps(talk(ASKED), ensure_ascii=False, indent=2),
        " " + json.dumps([{"content": f" {ASKED}\n", "role": "user"}]),
        json.dumps(talk(unicodedata.normalize("NFD", ASKED))),
    ],
)
def test_white_space_normal_form_and_a_list_of_one_message_make_no_difference(same: str) -> None:
    assert prompt_id(same) == prompt_id(ASKED)


@pytest.mark.parametrize(
    "other",
    [
        ASKED.lower(),
        ASKED.replace("é", "e"),
        ASKED + "?",
        ASKED.replace(" ", ""),
        json.dumps(talk("Be brief.", ASKED, first="system")),
        json.dumps([{"role": "assistant", "content": ASKED}]),
        json.dumps([{"role": "user", "content": ASKED, "name": "Ann"}]),
        json.dumps([ASKED]),
        json.dumps(ASKED),
        "x\u00b2",  # no compatibility form: x² and x2 are two questions
        "x2",
    ],
)
def test_other_texts_and_conversations_are_other_prompts(other: str) -> None:
    assert prompt_id(other) != prompt_id(ASKED)
    assert prompt_id("x2") != prompt_id("x\u00b2")


def test_conversations_of_several_messages_are_compared_message_by_message() -> None:
    long = talk("Hi.", "Yes?") + talk(ASKED)
    spaced = [{"content": f"{m['content']} ", "role": m["role"]} for m in long]
    assert canonical_prompt(json.dumps(spaced)) == json.dumps(long)
    assert canonical_prompt(json.dumps(long[::-1])) != json.dumps(long)
    assert canonical_prompt("[[" * 5000) == "[[" * 5000
    assert canonical_prompt(" [a  film] ") == "[a film]"


def test_a_prompt_without_anything_to_normalize_keeps_its_id() -> None:
    assert prompt_id("abc") == "ba7816bf8f01cfea"
    assert canonical_prompt(ASKED) == ASKED
