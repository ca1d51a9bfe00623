import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from prefsweep.sweeps.records import EvaluationSample, Prompt, prompt_id
from prefsweep.sweeps.spec import EvaluationSpec, VaderReward
from prefsweep.workers.builtin import write_base_model
from prefsweep.workers.evaluate import (
    distinct,
    distinct_per_block,
    divergences,
    evaluate,
    margin_metrics,
    sample_metrics,
    unigram_entropy,
)
from prefsweep.workers.generate import Generator
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.score import make_scorer

from .preference_data import tokenized_pairs

PROMPTS = [Prompt(prompt_id(t), t) for t in ("I watched this film", "My brother", "We saw it")]
SPEC = EvaluationSpec(max_new_tokens=6, num_samples=2)


@pytest.fixture(scope="session")
def other_source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("models") / "other"
    write_base_model("tiny-gpt2", folder, 1)
    return ModelSource(path=str(folder))


def sample(prompt: str, reward: float | None, num_tokens: int = 2, **values: float):
    numbers = {"kl": 1.0, "predictive_entropy": 1.0, "ref_logp": -2.0, **values}
    return EvaluationSample(prompt, 0, prompt, "x", "eos", num_tokens, reward, **numbers)


def test_kl_entropy_and_reference_logp_equal_a_slow_loop(
    policy_source: ModelSource, other_source: ModelSource
) -> None:
    policy, reference = load_policy(policy_source), load_policy(other_source)
    drawn = Generator(policy, load_tokenizer(policy_source), SPEC).sample(PROMPTS, 2)
    values = divergences(policy, lambda: nullcontext(reference), drawn)
    for draw, (kl, entropy, ref_logp) in zip(drawn, values, strict=True):
        context, kls, entropies, logps = list(draw.prompt_ids), [], [], []
        for token in draw.completion_ids:
            ids = torch.tensor([context])
            with torch.no_grad():
                p = policy(ids).logits[0, -1].double().log_softmax(-1)
                q = reference(ids).logits[0, -1].double().log_softmax(-1)
            kls.append((p.exp() * (p - q)).sum().item())
            entropies.append(-(p.exp() * p).sum().item())
            logps.append(q[token].item())
            context.append(token)
        assert kl == pytest.approx(sum(kls), rel=1e-4)
        assert entropy == pytest.approx(np.mean(entropies), rel=1e-5)
        assert ref_logp == pytest.approx(sum(logps), rel=1e-5)


def test_a_policy_that_is_the_reference_has_no_kl_and_no_margin(
    policy_source: ModelSource,
) -> None:
    policy = load_policy(policy_source)
    scorer = make_scorer(VaderReward(type="vader"), None)
    metrics, samples = evaluate(
        policy, lambda: nullcontext(policy), load_tokenizer(policy_source), PROMPTS, scorer, SPEC
    )
    assert len(samples) == 6
    assert metrics["kl"] == 0.0
    margins = margin_metrics(policy, tokenized_pairs(policy_source, num_test=4), beta=0.5)
    assert margins["margin_test"] == pytest.approx(0.0, abs=1e-4)


def test_without_a_reward_the_reward_columns_stay_empty(policy_source: ModelSource) -> None:
    policy, tokenizer = load_policy(policy_source), load_tokenizer(policy_source)
    metrics, _ = evaluate(policy, lambda: nullcontext(policy), tokenizer, PROMPTS, None, SPEC)
    assert metrics["reward_mean"] is None and metrics["reward_ci_low"] is None
    assert metrics["entropy"] is not None


def test_the_margin_is_beta_times_the_difference_of_log_ratios(
    policy_source: ModelSource, other_source: ModelSource
) -> None:
    policy = load_policy(other_source)
    pairs = tokenized_pairs(policy_source, num_test=3)
    margins = []
    for pair in pairs[-3:]:
        ratio = {}
        for name, ids, ref in (
            ("chosen", pair.chosen_ids, pair.ref_chosen_token_logps),
            ("rejected", pair.rejected_ids, pair.ref_rejected_token_logps),
        ):
            full = torch.tensor([pair.prompt_ids + ids])
            with torch.no_grad():
                logps = policy(full).logits[0, :-1].log_softmax(-1)
            start = len(pair.prompt_ids) - 1
            picked = logps[range(start, start + len(ids)), ids].sum().item()
            ratio[name] = picked - sum(ref)
        margins.append(0.25 * (ratio["chosen"] - ratio["rejected"]))
    metrics = margin_metrics(policy, pairs, beta=0.25)
    assert metrics["margin_test"] == pytest.approx(np.mean(margins), rel=1e-4)
    assert metrics["accuracy_test"] == np.mean([m > 0 for m in margins])


def test_unigram_entropy_by_hand() -> None:
    assert unigram_entropy([[1, 1], [2, 2]]) == pytest.approx(math.log(2))
    assert unigram_entropy([[1, 2, 3, 4]]) == pytest.approx(math.log(4))
    assert unigram_entropy([[], []]) == 0.0


def test_distinct_n_by_hand() -> None:
    assert distinct([[1, 2, 1], [1, 2]], 1) == 2 / 5
    assert distinct([[1, 2, 1], [1, 2]], 2) == 2 / 3
    assert distinct([[1]], 2) == 0.0


def test_distinct_n_of_200_does_not_depend_on_how_much_was_sampled() -> None:
    rng = np.random.default_rng(0)
    texts = rng.zipf(1.3, (400, 25)).clip(0, 500).tolist()
    few, many = distinct_per_block(texts[:100], 1), distinct_per_block(texts, 1)
    assert few is not None and many == pytest.approx(few, rel=0.1)
    assert distinct(texts, 1) < 0.6 * distinct(texts[:100], 1)
    assert distinct_per_block([[1] * 200], 1) == 1 / 200
    assert distinct_per_block([[1] * 100], 1) is None


def test_means_weigh_tokens_or_completions_as_defined() -> None:
    samples = [
        sample("a", 1.0, num_tokens=1, kl=2.0, predictive_entropy=3.0, ref_logp=-1.0),
        sample("b", 3.0, num_tokens=3, kl=4.0, predictive_entropy=1.0, ref_logp=-7.0),
    ]
    metrics = sample_metrics(samples)
    assert metrics["kl"] == 3.0
    assert metrics["predictive_entropy"] == 1.5
    assert metrics["ref_perplexity"] == pytest.approx(math.exp(2.0))
    assert metrics["completion_tokens"] == 2.0
    assert metrics["reward_mean"] == 2.0
    assert metrics["reward_std"] == pytest.approx(math.sqrt(2))
