import math

import pytest
import torch

from prefsweep.sweeps.errors import DataError, ModelError, UsageError
from prefsweep.sweeps.records import Completion
from prefsweep.sweeps.spec import CallableReward, ClassifierReward, VaderReward
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_classifier
from prefsweep.workers.score import CallableScorer, make_scorer, score_completions

PROMPTS = ["I watched this", "My brother", "We saw a film"]
TEXTS = [" and it was good.", " was bored", ", twice."]


def classifier(**fields: object) -> ClassifierReward:
    return ClassifierReward.model_validate({"type": "classifier", "model": "tiny", **fields})


def by_length(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def not_a_number(prompts: list[str], completions: list[str]) -> list[float]:
    return [math.nan for _ in completions]


def one_too_few(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.0 for _ in completions][1:]


@pytest.mark.parametrize("output", ["logit", "probability"])
@pytest.mark.parametrize("over", ["full", "completion"])
def test_the_classifier_score_is_that_of_its_label(
    classifier_source: ModelSource, output: str, over: str
) -> None:
    scorer = make_scorer(classifier(output=output, over=over, batch_size=2), classifier_source)
    model, tokenizer = load_classifier(classifier_source)
    for prompt, text, score in zip(PROMPTS, TEXTS, scorer.score(PROMPTS, TEXTS), strict=True):
        full = prompt + text if over == "full" else text
        logits = model(**tokenizer(full, return_tensors="pt")).logits[0]
        values = logits if output == "logit" else torch.softmax(logits, -1)
        assert score == pytest.approx(values[1].item(), abs=1e-5)  # 1 is POSITIVE


def test_an_unknown_label_is_refused_with_the_known_ones(classifier_source: ModelSource) -> None:
    with pytest.raises(ModelError, match=r"reward.label=HAPPY.*NEGATIVE, POSITIVE"):
        make_scorer(classifier(label="HAPPY"), classifier_source)


def test_vader_scores_sentiment() -> None:
    scorer = make_scorer(VaderReward(type="vader", over="completion"), None)
    good, bad, nothing = scorer.score(["x"] * 3, ["wonderful, great", "terrible, awful", "a table"])
    assert 0.5 < good <= 1 and -1 <= bad < -0.5 and nothing == 0


def callable_reward(name: str) -> CallableReward:
    return CallableReward(type="callable", function=f"{__name__}:{name}")


def test_a_callable_scores_all_completions() -> None:
    assert make_scorer(callable_reward("by_length"), None).score(PROMPTS, TEXTS) == [17, 10, 8]


def test_a_callable_with_too_few_scores_is_refused() -> None:
    with pytest.raises(DataError, match=r"one_too_few, called with 3 .*returned 2 scores"):
        CallableScorer(callable_reward("one_too_few")).score(PROMPTS, TEXTS)


def test_a_score_that_is_not_a_number_is_refused_with_its_text() -> None:
    completions = [Completion("p", 0, "A", " film", "eos")]
    with pytest.raises(DataError, match=r"' film' is nan"):
        score_completions(CallableScorer(callable_reward("not_a_number")), completions)


def test_a_function_that_cannot_be_imported_is_refused_by_name() -> None:
    reward = CallableReward(type="callable", function="no.such.module:f")
    with pytest.raises(UsageError, match=r"no.such.module:f cannot be imported"):
        make_scorer(reward, None)
