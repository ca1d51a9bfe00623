from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.reference import reference_pairs, reference_sums, tokenize_pair
from prefsweep.workers.rendering import token_ids

from .preference_data import preference_pairs, stock_trainer, tokenized_pairs

TRIAL = TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=1e-3)


def test_tokens_are_those_of_trl(policy_source: ModelSource, tmp_path: Path) -> None:
    theirs = stock_trainer(policy_source, TRIAL, TrainingSpec(max_steps=1), tmp_path).train_dataset
    assert isinstance(theirs, Dataset)
    for row, pair in zip(theirs.to_list(), tokenized_pairs(policy_source), strict=True):
        assert row["prompt_ids"] == pair.prompt_ids
        assert row["chosen_ids"] == pair.chosen_ids
        assert row["rejected_ids"] == pair.rejected_ids


def test_log_probabilities_equal_a_slow_loop(policy_source: ModelSource) -> None:
    model = load_policy(policy_source)
    for pair in tokenized_pairs(policy_source)[:3]:
        for ids, logps in (
            (pair.chosen_ids, pair.ref_chosen_token_logps),
            (pair.rejected_ids, pair.ref_rejected_token_logps),
        ):
            context = list(pair.prompt_ids)
            for token, logp in zip(ids, logps, strict=True):
                with torch.no_grad():
                    logits = model(torch.tensor([context])).logits[0, -1]
                assert logp == pytest.approx(logits.log_softmax(-1)[token].item(), abs=2e-5)
                context.append(token)


def test_values_do_not_depend_on_the_other_pairs_of_a_shard(policy_source: ModelSource) -> None:
    model, tokenizer = load_policy(policy_source), load_tokenizer(policy_source)
    pairs = preference_pairs()
    together = reference_pairs(pairs, model, tokenizer, TrainingSpec())
    alone = reference_pairs(pairs[:1], model, tokenizer, TrainingSpec())[0]
    assert together[0].chosen_ids == alone.chosen_ids
    assert together[0].ref_chosen_token_logps == pytest.approx(
        alone.ref_chosen_token_logps, abs=1e-5
    )


def test_end_of_text_follows_always_or_only_finished_completions(
    policy_source: ModelSource,
) -> None:
    tokenizer, pair = load_tokenizer(policy_source), preference_pairs()[0]
    always = tokenize_pair(pair, tokenizer, TrainingSpec())
    finished = tokenize_pair(pair, tokenizer, TrainingSpec(eos="finished"))
    assert always is not None and finished is not None
    eos = tokenizer.eos_token_id
    assert always.chosen_ids[-1] == always.rejected_ids[-1] == finished.chosen_ids[-1] == eos
    assert finished.rejected_ids == always.rejected_ids[:-1]


def test_long_prompts_lose_their_start_and_long_completions_their_end(
    policy_source: ModelSource,
) -> None:
    tokenizer, pair = load_tokenizer(policy_source), preference_pairs()[0]
    whole = tokenize_pair(pair, tokenizer, TrainingSpec())
    cut = tokenize_pair(pair, tokenizer, TrainingSpec(max_length=6, max_prompt_length=2))
    assert whole is not None and cut is not None
    assert cut.prompt_ids == whole.prompt_ids[-2:]
    assert cut.chosen_ids == whole.chosen_ids[:4]
    assert tokenize_pair(pair, tokenizer, TrainingSpec(max_length=3)) is None


def test_a_prompt_without_tokens_is_refused(policy_source: ModelSource) -> None:
    pair = replace(preference_pairs()[0], prompt=" w", chosen="atched", rejected="as")
    with pytest.raises(DataError, match="has no tokens; the first"):
        tokenize_pair(pair, load_tokenizer(policy_source), TrainingSpec())


def test_an_empty_prompt_is_the_start_of_a_text(policy_source: ModelSource) -> None:
    tokenizer, pair = load_tokenizer(policy_source), preference_pairs()[0]
    start, end = tokenizer.bos_token_id, tokenizer.eos_token
    assert isinstance(end, str)
    tokens = tokenize_pair(replace(pair, prompt=""), tokenizer, TrainingSpec())
    assert tokens is not None
    assert tokens.prompt_ids == token_ids(tokenizer, "") == (start,)
    whole = tokenizer(pair.chosen + end)["input_ids"]
    assert list(tokens.chosen_ids) == whole
    tokenizer.bos_token = None
    assert token_ids(tokenizer, "") == (tokenizer.eos_token_id,)


def test_a_token_that_the_tokenizer_starts_texts_with_is_there_once(
    classifier_source: ModelSource,
) -> None:
    tokenizer = load_tokenizer(classifier_source)
    start, *film = tokenizer(" film")["input_ids"]  # pyright: ignore
    assert start == tokenizer.bos_token_id
    assert token_ids(tokenizer, "", " film") == (start, *film)
    assert token_ids(tokenizer, " film") == (start, *film)


def test_sums_weigh_the_tail_beyond_the_shorter_completion(policy_source: ModelSource) -> None:
    pair = replace(
        tokenized_pairs(policy_source)[0],
        chosen_ids=[1, 2, 3],
        rejected_ids=[4],
        ref_chosen_token_logps=[-1.0, -2.0, -4.0],
        ref_rejected_token_logps=[-8.0],
    )
    assert reference_sums(pair, None) == (-7.0, -8.0)
    assert reference_sums(pair, 1.0) == (-7.0, -8.0)
    assert reference_sums(pair, 0.5) == (-4.0, -8.0)
    assert reference_sums(pair, 0.0) == (-1.0, -8.0)
