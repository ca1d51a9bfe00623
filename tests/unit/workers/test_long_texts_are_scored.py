"""A classifier that cannot read all of a text reads the completion and the end of the prompt."""

import logging
from typing import Any

import pytest

from prefsweep.sweeps.spec import ChatSpec, ClassifierReward
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.score import ClassifierScorer, make_scorer

LONG = "We saw it on a rainy evening with friends and family, and then " * 6
GOOD, BAD = "it was wonderful.", "it was awful."
LIMIT = 24


def scorer(
    source: ModelSource, over: str = "full", chat: ChatSpec | None = None
) -> ClassifierScorer:
    fields = {"type": "classifier", "model": "tiny", "over": over, "max_length": LIMIT}
    found = make_scorer(ClassifierReward.model_validate(fields), source, chat)
    assert isinstance(found, ClassifierScorer)
    return found


def test_completions_of_a_prompt_that_is_too_long_differ_in_their_scores(
    classifier_source: ModelSource, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = scorer(classifier_source).score([LONG, LONG], [GOOD, BAD])
    assert good != bad
    assert not caplog.messages


def test_it_reads_the_last_tokens(classifier_source: ModelSource) -> None:
    reward = scorer(classifier_source)
    encoded: Any = reward.tokenizer(LONG + GOOD)["input_ids"]
    start, *ids = encoded  # its tokenizer adds a first token
    end: Any = reward.tokenizer.decode(ids[1 - LIMIT :])
    assert reward.tokenizer(end)["input_ids"] == [start, *ids[1 - LIMIT :]]
    assert reward.score([LONG], [GOOD]) == pytest.approx(reward.score([""], [end]))


def test_texts_that_fit_are_scored_as_ever(classifier_source: ModelSource) -> None:
    short, long = "We saw it and ", LONG
    alone = scorer(classifier_source).score([short], [GOOD])
    beside = scorer(classifier_source).score([short, long], [GOOD, BAD])
    assert beside[0] == pytest.approx(alone[0], abs=1e-5)


def test_a_question_of_a_chat_is_cut_too(classifier_source: ModelSource) -> None:
    good, bad = scorer(classifier_source, chat=ChatSpec()).score([LONG, LONG], [GOOD, BAD])
    assert good != bad


@pytest.mark.parametrize(("over", "part"), [("full", "end"), ("completion", "beginning")])
def test_completions_that_are_too_long_alone_are_counted(
    classifier_source: ModelSource, caplog: pytest.LogCaptureFixture, over: str, part: str
) -> None:
    caplog.set_level(logging.WARNING, logger="prefsweep")
    scorer(classifier_source, over).score(["We", "We", LONG], [LONG, GOOD, LONG])
    assert len(caplog.messages) == 1
    assert "2 of 3 completions exceed the classifier's 24 tokens" in caplog.text
    assert f"only their {part} was scored" in caplog.text
