"""Evaluates a policy on held-out prompts: gives samples and metrics, computed the same way for all
policies of a sweep.

Definitions (averages are over completions unless stated otherwise):
  kl                  sum over positions of KL(policy || reference) over the full vocabulary, nats.
                      The distributions are those at temperature 1. With another temperature, top_k,
                      top_p or n-gram bans, it is not the KL of the sampled distribution
  predictive_entropy  the policy's entropy over the full vocabulary, mean over all positions, nats
  entropy             Shannon entropy of the pooled unigram distribution of completion tokens, nats
  entropy_full        the same for prompt + completion, with the reward model's tokenizer
  distinct_n_per_200  share of unique n-grams in a block of 200 consecutive n-grams, averaged over
                      blocks
  ref_perplexity      exp of the reference's mean negative log-likelihood per completion token
Positions are those of the completion's tokens, the sampled end-of-text token included.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from peft import PeftModel
from scipy import stats
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefsweep.sweeps.errors import TrialError
from prefsweep.sweeps.records import EvaluationSample, Metrics, Prompt, TokenizedPair
from prefsweep.sweeps.spec import ChatSpec, EvaluationSpec
from prefsweep.workers.chat import scored_text
from prefsweep.workers.forward import (
    WHOLE,
    Batching,
    batches,
    completion_ids,
    completion_logits,
    packs_exactly,
    token_logps,
)
from prefsweep.workers.generate import Generator, Sample
from prefsweep.workers.packing import Ids
from prefsweep.workers.score import Scorer, finite_scores
from prefsweep.workers.statistics import reward_metrics

Policy = PreTrainedModel | PeftModel
Reference = Callable[[], AbstractContextManager[Policy]]
"""Gives the reference inside a `with` block (a LoRA policy with its adapter disabled)."""


def evaluate(
    policy: Policy,
    reference: Reference,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    scorer: Scorer | None,
    spec: EvaluationSpec,
    chat: ChatSpec | None = None,
    batching: Batching = WHOLE,
) -> tuple[Metrics, list[EvaluationSample]]:
    """The metrics of the policy's samples for `prompts`, and the samples.

    Raises TrialError if the policy's values are not finite.
    """
    sampling = spec.model_copy(update={"batch_size": max(1, spec.batch_size >> batching.halvings)})
    generator = Generator(policy, tokenizer, sampling, chat, batching.before_each)
    drawn = generator.sample(prompts, spec.num_samples)
    rewards: list[float] | list[None] = [None] * len(drawn)
    if scorer is not None:
        rewards = finite_scores(scorer, [s.prompt.text for s in drawn], [s.text for s in drawn])
    samples = [
        _sample(draw, reward, *values)
        for draw, reward, values in zip(
            drawn, rewards, divergences(policy, reference, drawn, batching), strict=True
        )
    ]
    _check_finite(samples)
    ends = (*generator.end_ids, tokenizer.pad_token_id)
    words = [[i for i in s.completion_ids if i not in ends] for s in drawn]
    reward_tokenizer = getattr(scorer, "tokenizer", tokenizer)
    full = [
        reward_tokenizer(scored_text(s.prompt.text, s.text, chat), add_special_tokens=False)[
            "input_ids"
        ]
        for s in drawn
    ]
    metrics = sample_metrics(samples) | {
        "entropy": unigram_entropy(words),
        "entropy_full": unigram_entropy(full),
        "distinct_1": distinct(words, 1),
        "distinct_2": distinct(words, 2),
        "distinct_1_per_200": distinct_per_block(words, 1),
        "distinct_2_per_200": distinct_per_block(words, 2),
    }
    return metrics, samples


@torch.inference_mode()
def divergences(
    policy: Policy,
    reference: Reference,
    samples: Sequence[Sample],
    batching: Batching = WHOLE,
) -> list[tuple[float, float, float]]:
    """(kl, predictive_entropy, ref_logp) of every sample, in order, as defined above."""
    sequences = [(tuple(s.prompt_ids), tuple(s.completion_ids)) for s in samples]
    values: dict[tuple[Ids, Ids], tuple[float, float, float]] = {}
    packed = batching.packs and packs_exactly(policy, sequences, batching.halvings)
    for batch in batches(sequences, batching.halvings):
        batching.before_each()
        logits = completion_logits(policy, batch, packed=packed)
        with reference() as model:
            ref_logits = completion_logits(model, batch, packed=packed)
        labels_N, rows = completion_ids(batch, policy.device), []
        for logits_NV, ref_logits_NV in zip(logits, ref_logits, strict=True):
            labels = labels_N[sum(map(len, rows)) :][: len(logits_NV)]
            rows.append(_position_values(logits_NV, ref_logits_NV, labels))
        kl_N, entropy_N, ref_logp_N = torch.cat(rows).cpu().double().unbind(1)
        sizes = [len(ids) for _, ids in batch]
        for sequence, kl, entropy, ref_logp in zip(
            batch, kl_N.split(sizes), entropy_N.split(sizes), ref_logp_N.split(sizes), strict=True
        ):
            values[sequence] = (kl.sum().item(), entropy.mean().item(), ref_logp.sum().item())
    return [values[sequence] for sequence in sequences]


def _position_values(
    logits_NV: torch.Tensor, ref_logits_NV: torch.Tensor, labels_N: torch.Tensor
) -> torch.Tensor:
    """(N, 3): KL, the policy's entropy and the reference's log-probability at each position."""
    logp_NV, ref_logp_NV = logits_NV.log_softmax(-1), ref_logits_NV.log_softmax(-1)
    p_NV = logp_NV.exp()
    kl_N = (p_NV * (logp_NV - ref_logp_NV)).sum(-1)
    entropy_N = -(p_NV * logp_NV).sum(-1)
    return torch.stack([kl_N, entropy_N, ref_logp_NV.gather(1, labels_N[:, None])[:, 0]], 1)


def _check_finite(samples: Sequence[EvaluationSample]) -> None:
    for sample in samples:
        if not all(map(math.isfinite, (sample.kl, sample.predictive_entropy, sample.ref_logp))):
            raise TrialError(
                f"the policy gives values that are not finite (kl {sample.kl}, entropy "
                f"{sample.predictive_entropy}) for the prompt {sample.prompt[:60]!r}; "
                "its weights or the reference's are damaged, or training made them overflow"
            )


def sample_metrics(samples: Sequence[EvaluationSample]) -> Metrics:
    """The metrics that are computed from the values of the samples."""
    num_tokens = sum(s.num_tokens for s in samples)
    return {
        "kl": float(np.mean([s.kl for s in samples])),
        "predictive_entropy": sum(s.predictive_entropy * s.num_tokens for s in samples)
        / num_tokens,
        "ref_perplexity": math.exp(min(700.0, -sum(s.ref_logp for s in samples) / num_tokens)),
        "completion_tokens": num_tokens / len(samples),
        "num_prompts": float(len({s.prompt_id for s in samples})),
        "num_completions": float(len(samples)),
        **reward_metrics(samples),
    }


def margin_metrics(
    policy: Policy,
    pairs: Sequence[TokenizedPair],
    beta: float,
    batching: Batching = WHOLE,
) -> Metrics:
    """Mean of beta x (chosen - rejected log-ratio) over the test pairs, and the share above 0."""
    test = [pair for pair in pairs if pair.split == "test"]
    if not test:
        return {"margin_test": None, "accuracy_test": None}
    sequences = dict.fromkeys(
        (tuple(pair.prompt_ids), tuple(ids))
        for pair in test
        for ids in (pair.chosen_ids, pair.rejected_ids)
    )
    logps = token_logps(policy, list(sequences), batching)

    def log_ratio(pair: TokenizedPair, ids: list[int], ref: list[float]) -> float:
        return math.fsum(logps[tuple(pair.prompt_ids), tuple(ids)]) - math.fsum(ref)

    margins = [
        beta
        * (
            log_ratio(pair, pair.chosen_ids, pair.ref_chosen_token_logps)
            - log_ratio(pair, pair.rejected_ids, pair.ref_rejected_token_logps)
        )
        for pair in test
    ]
    return {
        "margin_test": float(np.mean(margins)),
        "accuracy_test": float(np.mean([margin > 0 for margin in margins])),
    }


def unigram_entropy(token_lists: Iterable[Iterable[int]]) -> float:
    """Shannon entropy, nats, of the pooled token distribution; 0 for no tokens."""
    counts = np.array(list(Counter(t for tokens in token_lists for t in tokens).values()), float)
    return float(stats.entropy(counts)) if counts.size else 0.0


def distinct(token_lists: Iterable[Sequence[int]], n: int) -> float:
    """Unique n-grams divided by all n-grams (Li et al., arXiv 1510.03055); 0 without n-grams."""
    ngrams = _ngrams(token_lists, n)
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


BLOCK = 200
"""Number of n-grams per block; with a fixed size, distinct-n does not depend on the number of
samples."""


def distinct_per_block(token_lists: Iterable[Sequence[int]], n: int) -> float | None:
    """Mean share of unique n-grams over consecutive blocks of BLOCK n-grams.

    None if there are fewer than BLOCK n-grams. The share falls as the number of n-grams grows; with
    blocks of equal size it is comparable between policies, prompts and numbers of samples (the mean
    segmental type-token ratio of Johnson 1944).
    """
    ngrams = _ngrams(token_lists, n)
    starts = range(0, len(ngrams) - BLOCK + 1, BLOCK)
    shares = [len(set(ngrams[start : start + BLOCK])) / BLOCK for start in starts]
    return float(np.mean(shares)) if shares else None


def _ngrams(token_lists: Iterable[Sequence[int]], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for ids in token_lists for i in range(len(ids) - n + 1)]


def _sample(
    draw: Sample, reward: float | None, kl: float, entropy: float, ref_logp: float
) -> EvaluationSample:
    return EvaluationSample(
        prompt_id=draw.prompt.prompt_id,
        sample_idx=draw.sample_idx,
        prompt=draw.prompt.text,
        text=draw.text,
        finish_reason=draw.finish_reason,
        num_tokens=len(draw.completion_ids),
        reward=reward,
        kl=kl,
        predictive_entropy=entropy,
        ref_logp=ref_logp,
    )
