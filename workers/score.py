"""Scores completions with a sequence classifier, the VADER lexicon, or a Python function."""

import inspect
import logging
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Protocol

import torch

from prefsweep.sweeps.errors import DataError, ModelError, UsageError
from prefsweep.sweeps.records import Completion, ScoredCompletion
from prefsweep.sweeps.spec import CallableReward, ChatSpec, ClassifierReward, Reward, VaderReward
from prefsweep.sweeps.validation_messages import listed
from prefsweep.workers.chat import scored_text
from prefsweep.workers.functions import FunctionSource, load_function
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.rendering import decoded, start_ids

log = logging.getLogger(__name__)


class Scorer(Protocol):
    """Computes the rewards of completions; higher is better."""

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """One finite score per (prompt, completion)."""
        ...


def make_scorer(
    spec: Reward, source: ModelSource | FunctionSource | None, chat: ChatSpec | None = None
) -> Scorer:
    """The scorer of a reward section; a classifier, or the file of a function, is loaded from
    `source`.

    With `chat`, `over: full` scores the last user message, a newline and the completion; a callable
    gets the prompts unchanged.
    """
    match spec:
        case ClassifierReward():
            assert isinstance(source, ModelSource)
            return ClassifierScorer(spec, source, chat)
        case VaderReward():
            return VaderScorer(spec, chat)
        case CallableReward():
            assert not isinstance(source, ModelSource)
            return CallableScorer(spec, source)


def score_completions(scorer: Scorer, completions: Sequence[Completion]) -> list[ScoredCompletion]:
    """Add scores to `completions`. Raises DataError for a score that is not finite."""
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
    """The scorer's scores. Raises DataError for a score that is not finite."""
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

        # long texts are cut at the beginning of the prompt, because the completion is scored
        self.tokenizer.truncation_side = "left" if spec.over == "full" else "right"

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        texts = _texts(prompts, completions, self._spec.over, self._chat)
        texts = [text.removeprefix(self._start) for text in texts]  # the tokenizer adds it again
        scores: list[float] = []
        num_cut, size = 0, self._spec.batch_size
        for start in range(0, len(texts), size):
            encoded = self.tokenizer(
                texts[start : start + size],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self._max_length,
            ).to(self._model.device)
            num_cut += self._num_cut(encoded["attention_mask"], completions[start : start + size])
            logits_BL = self._model(**encoded).logits.float()
            if self._spec.output == "probability":
                logits_BL = logits_BL.softmax(-1)
            scores += logits_BL[:, self._label].tolist()
        if num_cut:
            log.warning(
                "reward: %d of %d completions exceed the classifier's %d tokens; only their %s was "
                "scored",
                *(num_cut, len(texts), self._max_length),
                "end" if self._spec.over == "full" else "beginning",
            )
        return scores

    def _num_cut(self, mask_BT: Any, completions: Sequence[str]) -> int:
        """Number of completions of a batch that exceed the maximum length."""
        full = (mask_BT.sum(1) >= self._max_length).tolist()
        room = self._max_length - self.tokenizer.num_special_tokens_to_add()
        return sum(
            len(self.tokenizer.tokenize(completion)) > room
            for completion, is_full in zip(completions, full, strict=True)
            if is_full
        )


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
    """A user's function, called with all prompts and completions of a shard at once.

    Raises DataError, with the function's name and the first prompt, if it raises or does not return
    one number per completion.
    """

    def __init__(self, spec: CallableReward, source: FunctionSource | None = None) -> None:
        self._name = spec.function
        self._function = load_function(spec.function, source)

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        called = f"reward.function={self._name}, called with {len(completions)} completions"
        if prompts:
            called += f" (the first for the prompt {prompts[0][:60]!r})"
        try:
            returned: Any = self._function(list(prompts), list(completions))
            if isinstance(returned, Iterator):
                returned = list(returned)
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            raise DataError(f"{called}, raised {said}{_line_of(error)}") from error
        return _as_scores(returned, len(completions), called)


def _as_scores(returned: Any, num: int, called: str) -> list[float]:
    """The value returned by a user's function, as numbers."""
    wanted = f"; it must return a list of {num} numbers, one per completion"
    kind = type(returned).__name__
    if inspect.iscoroutine(returned):
        returned.close()
        raise DataError(f"{called}, returned a coroutine{wanted}. Use asyncio.run inside it")
    try:
        if isinstance(returned, str | bytes | Mapping | Set):
            raise TypeError
        values = list(returned)
    except TypeError:
        shown = "None" if returned is None else f"a {kind}"
        raise DataError(f"{called}, returned {shown}{wanted}") from None
    scores: list[float] = []
    for index, score in enumerate(values):
        try:
            if isinstance(score, str | bytes):
                raise TypeError
            scores.append(float(score))
        except (TypeError, ValueError, RuntimeError):
            shown = repr(score)[:60]
            raise DataError(f"{called}, returned {shown} as score {index + 1}{wanted}") from None
    if len(scores) != num:
        raise DataError(f"{called}, returned {len(scores)} scores{wanted}")
    return scores


def _line_of(error: BaseException) -> str:
    """Where the user's code raised, as " (file, line N)"."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is prefsweep's
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


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
