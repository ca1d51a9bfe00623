"""Completions in, rewards out: a sequence classifier, the VADER lexicon, or a Python function."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from prefsweep.sweeps.errors import DataError, ModelError, UsageError
from prefsweep.sweeps.mistakes import listed
from prefsweep.sweeps.records import Completion, ScoredCompletion
from prefsweep.sweeps.spec import CallableReward, ChatSpec, ClassifierReward, Reward, VaderReward
from prefsweep.workers.chat import scored_text
from prefsweep.workers.locations import ModelSource, load_function
from prefsweep.workers.rendering import decoded, start_ids


class Scorer(Protocol):
    """Something that gives completions a reward; higher is better."""

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """One finite score for each (prompt, completion)."""
        ...


def make_scorer(spec: Reward, source: ModelSource | None, chat: ChatSpec | None = None) -> Scorer:
    """The scorer of a reward section; `source` is where a classifier is loaded from.

    With `chat`, `over: full` reads the last user message, a newline and the completion; a callable
    is given the prompts as they are.
    """
    match spec:
        case ClassifierReward():
            assert source is not None
            return ClassifierScorer(spec, source, chat)
        case VaderReward():
            return VaderScorer(spec, chat)
        case CallableReward():
            return CallableScorer(spec)


def score_completions(scorer: Scorer, completions: Sequence[Completion]) -> list[ScoredCompletion]:
    """`completions` with their scores. Raises DataError for a score that is not finite."""
    scores = finite_scores(scorer, [c.prompt for c in completions], [c.text for c in completions])
    return [
        ScoredCompletion(
            c.prompt_id, c.sample_idx, c.prompt, c.text, c.finish_reason, score, c.token_ids
        )
        for c, score in zip(completions, scores, strict=True)
    ]


def finite_scores(
    scorer: Scorer, prompts: Sequence[str], completions: Sequence[str]
) -> list[float]:
    """The scorer's scores. Raises DataError for one that is not finite."""
    scores = scorer.score(prompts, completions)
    for completion, score in zip(completions, scores, strict=True):
        if not math.isfinite(score):
            raise DataError(f"the reward of completion {completion[:60]!r} is {score}")
    return scores


class ClassifierScorer:
    """The logit (or probability) of one label of a Hugging Face sequence classifier."""

    def __init__(
        self, spec: ClassifierReward, source: ModelSource, chat: ChatSpec | None = None
    ) -> None:
        from prefsweep.workers.models import load_classifier

        self._spec, self._chat = spec, chat
        self._model, self.tokenizer = load_classifier(source)
        self._label = _label_index(spec, self._model.config.id2label or {})
        limits = [spec.max_length, getattr(self._model.config, "max_position_embeddings", None)]
        self._max_length = min((limit for limit in limits if limit), default=512)
        self._start = decoded(self.tokenizer, start_ids(self.tokenizer))

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        texts = _texts(prompts, completions, self._spec.over, self._chat)
        texts = [text.removeprefix(self._start) for text in texts]  # the tokenizer puts it there
        scores: list[float] = []
        for start in range(0, len(texts), self._spec.batch_size):
            encoded = self.tokenizer(
                texts[start : start + self._spec.batch_size],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self._max_length,
            ).to(self._model.device)
            logits_BL = self._model(**encoded).logits.float()
            if self._spec.output == "probability":
                logits_BL = logits_BL.softmax(-1)
            scores += logits_BL[:, self._label].tolist()
        return scores


class VaderScorer:
    """The compound score of VADER (Hutto and Gilbert, ICWSM 2014), in [-1, 1]."""

    def __init__(self, spec: VaderReward, chat: ChatSpec | None = None) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError:
            raise UsageError(
                "reward.type=vader needs the package vaderSentiment: pip install vaderSentiment"
            ) from None
        self._analyzer = SentimentIntensityAnalyzer()
        self._over, self._chat = spec.over, chat

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        texts = _texts(prompts, completions, self._over, self._chat)
        return [float(self._analyzer.polarity_scores(text)["compound"]) for text in texts]


class CallableScorer:
    """A user's function, called with all prompts and completions of a shard at once."""

    def __init__(self, spec: CallableReward) -> None:
        self._name = spec.function
        self._function = load_function(spec.function)

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        scores = [float(score) for score in self._function(list(prompts), list(completions))]
        if len(scores) != len(completions):
            raise DataError(
                f"reward.function={self._name} returned {len(scores)} scores "
                f"for {len(completions)} completions"
            )
        return scores


def _texts(
    prompts: Sequence[str], completions: Sequence[str], over: str, chat: ChatSpec | None
) -> list[str]:
    if over == "completion":
        return list(completions)
    return [scored_text(p, text, chat) for p, text in zip(prompts, completions, strict=True)]


def _label_index(spec: ClassifierReward, id2label: Mapping[Any, str]) -> int:
    if isinstance(spec.label, int) and spec.label in id2label:
        return spec.label
    for index, label in id2label.items():
        if str(label) == str(spec.label):
            return index
    known = listed(id2label.values())
    raise ModelError(f"reward.label={spec.label}: {spec.model} has no such label, only {known}")
