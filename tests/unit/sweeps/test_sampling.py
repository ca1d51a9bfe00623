from typing import Any

import pytest
from pydantic import ValidationError

from prefsweep.sweeps.spec import GenerationSpec

BEAMS: dict[str, Any] = {"num_completions": 6, "num_beam_groups": 6, "diversity_penalty": 50}


def test_beam_groups_are_one_decoding_whatever_do_sample_says():
    spec = GenerationSpec.model_validate(BEAMS)
    assert spec.do_sample is False
    assert GenerationSpec.model_validate(BEAMS | {"do_sample": False}) == spec
    assert GenerationSpec.model_validate_json(spec.model_dump_json()) == spec


def test_without_groups_completions_are_sampled_as_before():
    assert GenerationSpec.model_validate({"num_beam_groups": None}) == GenerationSpec()
    assert GenerationSpec().do_sample


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (BEAMS | {"num_completions": 4}, "num_beam_groups=6 and num_completions=4: each group"),
        (BEAMS | {"do_sample": True}, "do_sample=True is not used with num_beam_groups=6"),
        (BEAMS | {"temperature": 0.7}, "temperature=0.7 is not used .* remove temperature"),
        (BEAMS | {"top_k": 50}, "top_k=50 is not used with num_beam_groups=6"),
        (BEAMS | {"top_p": 0.9}, "top_p=0.9 is not used with num_beam_groups=6"),
        (
            {"diversity_penalty": 50},
            "diversity_penalty=50.0 is only used with .*add num_beam_groups: 4, or remove",
        ),
        ({"bad_words": ["awful", " "]}, "contains an empty word; remove it"),
        ({"sequence_bias": [{"words": [""], "bias": 1}]}, "contains an empty word"),
        ({"sequence_bias": [{"words": [], "bias": 1}]}, "at least 1 item"),
        (
            {"sequence_bias": [{"words": ["fine"], "bias": 1}], "bad_words": ["fine"]},
            "'fine' occurs more than once in sequence_bias and bad_words; keep one",
        ),
        ({"random_new_tokens": [0, 4]}, r"random_new_tokens=\[0, 4\] is not a range"),
        ({"random_new_tokens": [9, 4]}, r"random_new_tokens=\[9, 4\] is not a range"),
        (
            {"random_new_tokens": [4, 16], "max_new_tokens": 64},
            "max_new_tokens=64 is not the most of .*remove max_new_tokens or set it to 16",
        ),
        (
            {"random_new_tokens": [4, 16], "min_new_tokens": 5},
            "min_new_tokens=5 is more than the least of",
        ),
    ],
)
def test_what_decoding_would_not_read_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        GenerationSpec.model_validate(fields)


def test_words_lose_the_space_around_them():
    spec = GenerationSpec.model_validate(
        {"sequence_bias": [{"words": [" great", "good "], "bias": 1.5}], "bad_words": ["poor\n"]}
    )
    assert spec.sequence_bias[0].words == ("great", "good") and spec.bad_words == ("poor",)


def test_the_most_random_tokens_are_the_new_tokens_there_may_be():
    spec = GenerationSpec.model_validate({"random_new_tokens": [4, 16]})
    assert spec.max_new_tokens == 16
    assert GenerationSpec.model_validate_json(spec.model_dump_json()) == spec
