"""A policy and held-out prompts in, samples and metrics out; the same for every policy of a sweep.

Definitions (arrays are over completions unless said otherwise):
  kl                  sum over positions of KL(policy || reference) over the full vocabulary, nats
  predictive_entropy  the policy's entropy over the full vocabulary, mean over all positions, nats
  entropy             Shannon entropy of the pooled unigram distribution of completion tokens, nats
  entropy_full        the same of prompt + completion, by the reward model's tokenizer
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

from prefsweep.sweeps.records import EvaluationSample, Metrics, Prompt, TokenizedPair
from prefsweep.sweeps.spec import ChatSpec, EvaluationSpec
from prefsweep.workers.chat import scored_text
from prefsweep.workers.forward import (
    batches,
    completion_ids,
    completion_logits,
    packs_exactly,
    token_logps,
)
from prefsweep.workers.generate import Generator, Sample
from prefsweep.workers.packing import Ids
from prefsweep.workers.score import Scorer

Policy = PreTrainedModel | PeftModel
Reference = Callable[[], AbstractContextManager[Policy]]
"""Gives the reference for the length of a `with` block (a LoRA policy with its adapter off)."""

CONFIDENCE = 0.95
NUM_RESAMPLES = 5000


def evaluate(
    policy: Policy,
    reference: Reference,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    scorer: Scorer | None,
    spec: EvaluationSpec,
    chat: ChatSpec | None = None,
) -> tuple[Metrics, list[EvaluationSample]]:
    """Metrics of the policy's samples for `prompts`, and the samples."""
    drawn = Generator(policy, tokenizer, spec, chat).sample(prompts, spec.num_samples)
    rewards: list[float] | list[None] = [None] * len(drawn)
    if scorer is not None:
        rewards = scorer.score([s.prompt.text for s in drawn], [s.text for s in drawn])
    samples = [
        _sample(draw, reward, *values)
        for draw, reward, values in zip(
            drawn, rewards, divergences(policy, reference, drawn), strict=True
        )
    ]
    special = set(tokenizer.all_special_ids)
    words = [[i for i in s.completion_ids if i not in special] for s in drawn]
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
    }
    return metrics, samples


@torch.inference_mode()
def divergences(
    policy: Policy, reference: Reference, samples: Sequence[Sample]
) -> list[tuple[float, float, float]]:
    """(kl, predictive_entropy, ref_logp) of every sample, in order, as the module defines them."""
    sequences = [(tuple(s.prompt_ids), tuple(s.completion_ids)) for s in samples]
    values: dict[tuple[Ids, Ids], tuple[float, float, float]] = {}
    packed: bool | None = None
    for batch in batches(sequences):
        packed = packs_exactly(policy, batch) if packed is None else packed
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


def sample_metrics(samples: Sequence[EvaluationSample]) -> Metrics:
    """The metrics that are functions of the samples' own numbers."""
    num_tokens = sum(s.num_tokens for s in samples)
    rewards = [s.reward for s in samples if s.reward is not None]
    metrics: Metrics = {
        "kl": float(np.mean([s.kl for s in samples])),
        "predictive_entropy": sum(s.predictive_entropy * s.num_tokens for s in samples)
        / num_tokens,
        "ref_perplexity": math.exp(min(700.0, -sum(s.ref_logp for s in samples) / num_tokens)),
        "completion_tokens": num_tokens / len(samples),
        "reward_mean": None,
        "reward_std": None,
        "reward_ci_low": None,
        "reward_ci_high": None,
    }
    if rewards:
        low, high = bootstrap_interval(list(prompt_rewards(samples).values()))
        metrics |= {
            "reward_mean": float(np.mean(rewards)),
            "reward_std": float(np.std(rewards, ddof=1)) if len(rewards) > 1 else 0.0,
            "reward_ci_low": low,
            "reward_ci_high": high,
        }
    return metrics


def prompt_rewards(samples: Iterable[EvaluationSample]) -> dict[str, float]:
    """prompt_id -> mean reward of its samples; prompts without reward are left out."""
    by_prompt: dict[str, list[float]] = {}
    for sample in samples:
        if sample.reward is not None:
            by_prompt.setdefault(sample.prompt_id, []).append(sample.reward)
    return {prompt: float(np.mean(rewards)) for prompt, rewards in by_prompt.items()}


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% BCa bootstrap interval of the mean (Efron 1987) over prompts, with a fixed seed."""
    if len(values) < 2 or min(values) == max(values):
        return float(np.mean(values)), float(np.mean(values))
    interval = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=NUM_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def win_metrics(
    samples: Sequence[EvaluationSample], untrained: Sequence[EvaluationSample]
) -> Metrics:
    """Share of prompts whose mean reward beats the untrained policy's (tie = 1/2)."""
    ours, theirs = prompt_rewards(samples), prompt_rewards(untrained)
    shared = [prompt for prompt in ours if prompt in theirs]
    if not shared:
        return {"win_rate": None, "win_rate_ci_low": None, "win_rate_ci_high": None}
    wins = sum(1.0 if ours[p] > theirs[p] else 0.5 * (ours[p] == theirs[p]) for p in shared)
    low, high = wilson_interval(wins, len(shared))
    return {"win_rate": wins / len(shared), "win_rate_ci_low": low, "win_rate_ci_high": high}


def wilson_interval(wins: float, num: int) -> tuple[float, float]:
    """95% Wilson score interval (Wilson 1927); `wins` may hold halves, which scipy refuses."""
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    share = wins / num
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num)) / (1 + z * z / num)
    return max(0.0, centre - half), min(1.0, centre + half)


def margin_metrics(policy: Policy, pairs: Sequence[TokenizedPair], beta: float) -> Metrics:
    """Mean of beta x (chosen - rejected log-ratio) over the test pairs, and how often it is > 0."""
    test = [pair for pair in pairs if pair.split == "test"]
    if not test:
        return {"margin_test": None, "accuracy_test": None}
    sequences = dict.fromkeys(
        (tuple(pair.prompt_ids), tuple(ids))
        for pair in test
        for ids in (pair.chosen_ids, pair.rejected_ids)
    )
    logps = token_logps(policy, list(sequences))

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
    """Unique n-grams over all n-grams (Li et al., arXiv 1510.03055); 0 where there are none."""
    ngrams = [
        tuple(tokens[i : i + n]) for tokens in token_lists for i in range(len(tokens) - n + 1)
    ]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


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
