import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from prefsweep.sweeps.records import Prompt, prompt_id
from prefsweep.sweeps.spec import GenerationSpec
from prefsweep.workers.decoding import (
    Decoding,
    DiverseGroups,
    Draws,
    Greedy,
    roomy_cache,
    uniforms,
    word_ids,
)
from prefsweep.workers.generate import Generator
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer

VOCABULARY, EOS, PAD = 24, 0, 1
PROMPTS = [[5, 9, 3, 17], [7, 2], [11, 4, 4, 8, 19, 6], [21]]
NEW_TOKENS = 12
RULES: dict[str, Any] = {
    "sequence_bias": [[[3], 1.5], [[7, 9], 4.0], [[12], -1.5]],
    "bad_words_ids": [[5], [8, 2]],
    "no_repeat_ngram_size": 2,
    "repetition_penalty": 1.3,
    "min_new_tokens": 3,
}
NO_RULES: dict[str, Any] = {}


def models() -> Iterator[Any]:
    """Tiny models whose weights are wide enough for clear choices and early ends."""
    torch.manual_seed(3)
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "bos_token_id": EOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "initializer_range": 0.6,
    }
    yield GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=16, n_layer=2, n_head=2, **common))
    yield LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            **common,
        )
    )


MODELS = [model.eval() for model in models()]
any_model = pytest.mark.parametrize("model", MODELS, ids=["gpt2", "llama"])
with_rules = pytest.mark.parametrize("rules", [NO_RULES, RULES], ids=["plain", "rules"])


def generate(model: Any, prompts: list[list[int]], copies: int, **arguments: Any) -> list[Any]:
    """New tokens of every row, up to and with the end; prompts are padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts for _ in range(copies)])
    mask = torch.tensor(
        [[0] * (longest - len(p)) + [1] * len(p) for p in prompts for _ in range(copies)]
    )
    rows = model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **arguments,
    )[:, longest:].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


def decode(model: Any, prompts: list[list[int]], decoding: Decoding, **rules: Any) -> Any:
    """As `generate`, by our loop."""
    longest = max(map(len, prompts))
    rows = model.generate(
        torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
        past_key_values=roomy_cache(model),
        custom_generate=decoding,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **rules,
    ).tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


def beams(model: Any, prompts: list[list[int]], groups: int, penalty: float, **rules: Any) -> Any:
    limits = [NEW_TOKENS] * len(prompts)
    decoding = Decoding(groups, DiverseGroups(groups, penalty), limits)
    return decode(model, prompts, decoding, **rules)


def choose(scores: torch.Tensor, live: torch.Tensor, groups: int, penalty: float) -> torch.Tensor:
    return DiverseGroups(groups, penalty)(scores, torch.arange(len(scores)), live, 0)


def ruled(logits: list[float], context: list[int], num_prompt: int, rules: Any) -> list[float]:
    """The rules on one row of logits, in transformers' order, written anew."""
    scores = list(logits)

    def completes(sequence: list[int]) -> bool:
        start = sequence[:-1]
        return len(start) <= len(context) and context[len(context) - len(start) :] == start

    for sequence, bias in rules.get("sequence_bias", []):
        scores[sequence[-1]] += bias * completes(sequence)
    for token in set(context) if "repetition_penalty" in rules else ():
        factor = rules["repetition_penalty"]
        scores[token] = scores[token] * factor if scores[token] < 0 else scores[token] / factor
    if rules.get("no_repeat_ngram_size") == 2:
        for left, right in itertools.pairwise(context):
            if left == context[-1]:
                scores[right] = float("-inf")
    for sequence in rules.get("bad_words_ids", []):
        if completes(sequence):
            scores[sequence[-1]] = float("-inf")
    if len(context) - num_prompt < rules.get("min_new_tokens", 0):
        scores[EOS] = float("-inf")
    return scores


@torch.no_grad()
def slow_beams(model: Any, prompt: list[int], groups: int, penalty: float, rules: Any) -> Any:
    """One prompt, one forward pass of the whole text for each token, log-probabilities in full."""
    texts = [list(prompt) for _ in range(groups)]
    ended = [False] * groups
    for _ in range(NEW_TOKENS):
        taken: list[int] = []
        for group, text in enumerate(texts):
            if ended[group]:
                continue
            logits = model(torch.tensor([text])).logits[0, -1].tolist()
            scores = torch.tensor(ruled(logits, text, len(prompt), rules)).log_softmax(-1).tolist()
            scores = [s - penalty * taken.count(token) for token, s in enumerate(scores)]
            best = scores.index(max(scores))
            taken.append(best)
            text.append(best)
            ended[group] = best == EOS
    return [text[len(prompt) :] for text in texts]


@any_model
@with_rules
@pytest.mark.parametrize("penalty", [0.4, 2.0, 50.0])
def test_the_beams_are_those_of_a_slow_loop(model: Any, rules: Any, penalty: float) -> None:
    fast = beams(model, PROMPTS, 3, penalty, **rules)
    slow = [row for p in PROMPTS for row in slow_beams(model, p, 3, penalty, rules)]
    assert fast == slow


@any_model
@with_rules
def test_one_group_is_greedy_search(model: Any, rules: Any) -> None:
    assert beams(model, PROMPTS, 1, 5.0, **rules) == generate(model, PROMPTS, 1, **rules)


@any_model
@with_rules
def test_without_a_penalty_every_group_is_greedy_search(model: Any, rules: Any) -> None:
    assert beams(model, PROMPTS, 4, 0.0, **rules) == generate(model, PROMPTS, 4, **rules)


@any_model
def test_the_groups_of_a_prompt_differ(model: Any) -> None:
    rows = beams(model, PROMPTS, 4, 50.0)
    for start in range(0, len(rows), 4):
        of_prompt = rows[start : start + 4]
        assert len({tuple(row) for row in of_prompt}) == 4
        assert len({row[0] for row in of_prompt}) == 4


@any_model
@with_rules
def test_prompts_together_give_what_they_give_alone(model: Any, rules: Any) -> None:
    alone = [row for p in PROMPTS for row in beams(model, [p], 4, 2.0, **rules)]
    assert beams(model, PROMPTS, 4, 2.0, **rules) == alone


@any_model
def test_rows_end_at_different_times_and_the_tests_see_it(model: Any) -> None:
    lengths = {len(row) for row in beams(model, PROMPTS, 4, 2.0)}
    assert len(lengths) > 1


@any_model
@with_rules
def test_greedy_rows_are_those_of_transformers(model: Any, rules: Any) -> None:
    decoding = Decoding(2, Greedy(), [NEW_TOKENS] * len(PROMPTS))
    assert decode(model, PROMPTS, decoding, **rules) == generate(model, PROMPTS, 2, **rules)


@any_model
def test_a_row_draws_the_same_whatever_rows_are_beside_it(model: Any) -> None:
    """Rows end, and leave, at different times; the numbers are each row's own."""

    def drawn(prompts: list[list[int]]) -> Any:
        names = [str(prompt) for prompt in prompts]
        draws = Draws(uniforms(3, names, 5, NEW_TOKENS))
        return decode(model, prompts, Decoding(5, draws, [NEW_TOKENS] * len(prompts)))

    together = drawn(PROMPTS)
    assert together == [row for prompt in PROMPTS for row in drawn([prompt])]
    assert len({len(row) for row in together}) > 2
    assert len({tuple(row) for row in together[:5]}) > 1


def test_draws_have_the_frequencies_of_the_softmax() -> None:
    scores = torch.tensor([[0.0, 1.0, float("-inf"), 2.0]])
    rows = torch.arange(20_000)
    draws = Draws(uniforms(0, ["a"], 20_000, 1))
    tokens = draws(scores.expand(20_000, -1), rows, rows >= 0, 0)
    shares = torch.bincount(tokens, minlength=4) / len(tokens)
    # three standard errors of a share are below 0.011
    assert torch.allclose(shares, scores[0].softmax(-1), atol=0.011)
    assert shares[2] == 0


def test_a_random_number_at_a_border_never_draws_the_impossible() -> None:
    scores = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]] * 3)
    edges = torch.tensor([[0.0], [0.5], [1 - 2**-53]], dtype=torch.float64)
    assert Draws(edges)(scores, torch.arange(3), torch.ones(3) > 0, 0).tolist() == [1, 3, 3]


@any_model
def test_a_prompts_own_limit_ends_its_rows(model: Any) -> None:
    rules = {"min_new_tokens": NEW_TOKENS}
    whole = decode(model, PROMPTS, Decoding(1, Greedy(), [NEW_TOKENS] * 4), **rules)
    rows = decode(model, PROMPTS, Decoding(1, Greedy(), [2, 12, 5, 1]), **rules)
    for row, expected, limit in zip(rows, whole, [2, 12, 5, 1], strict=True):
        assert row[:limit] == expected[:limit] and set(row[limit:]) <= {PAD}


def test_decoding_stops_when_all_groups_have_ended() -> None:
    model, calls = MODELS[0], 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = model.register_forward_hook(count)
    rules = {"sequence_bias": [[[EOS], 1000.0]], "min_new_tokens": 2}
    rows = beams(model, PROMPTS, 3, 0.0, **rules)
    hook.remove()
    assert calls == 3 and all(len(row) == 3 and row[-1] == EOS for row in rows)


def test_an_ended_group_leaves_no_penalty() -> None:
    scores = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    assert choose(scores, torch.tensor([True, True]), 2, 5.0).tolist() == [0, 1]
    assert choose(scores, torch.tensor([False, True]), 2, 5.0).tolist() == [0, 0]


def test_penalties_stay_inside_a_prompt_and_add_up() -> None:
    row = [4.0, 3.0, 1.5]
    scores = torch.tensor([row] * 6)
    live = torch.ones(6, dtype=torch.bool)
    assert choose(scores, live, 3, 1.2).tolist() == [0, 1, 0] * 2
    assert choose(scores, live, 3, 9.0).tolist() == [0, 1, 2] * 2


# --- from the spec -------------------------------------------------------------------------------

TEXTS = [Prompt(prompt_id(t), t) for t in ("I watched this film", "We", "The plot is")]


def spec_of(**fields: Any) -> GenerationSpec:
    return GenerationSpec.model_validate(
        {"max_new_tokens": 10, "batch_size": 2, "do_sample": False, **fields}
    )


def completions(source: ModelSource, spec: GenerationSpec) -> list[list[int]]:
    generator = Generator(load_policy(source), load_tokenizer(source), spec)
    return [s.completion_ids for s in generator.sample(TEXTS, spec.num_beam_groups or 1)]


BEAMS = {"num_completions": 3, "num_beam_groups": 3, "diversity_penalty": 50.0}


def test_beams_from_the_spec_do_not_depend_on_the_batch(policy_source: ModelSource) -> None:
    together = completions(policy_source, spec_of(**BEAMS))
    assert together == completions(policy_source, spec_of(**BEAMS, batch_size=1))
    assert len({tuple(ids) for ids in together[:3]}) == 3


def test_words_are_tokenized_as_they_stand_after_a_space(policy_source: ModelSource) -> None:
    tokenizer = load_tokenizer(policy_source)
    words = ["film", "zebra", "watched"]
    ids = word_ids(tokenizer, words)
    assert ids == [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    assert len(ids[0]) == 1 and len(ids[1]) > 1


@pytest.mark.parametrize("beams", [{}, BEAMS | {"diversity_penalty": 1.0}])
def test_biased_words_come_and_bad_words_do_not(policy_source: ModelSource, beams: Any) -> None:
    (film,) = word_ids(load_tokenizer(policy_source), ["film"])
    biased = spec_of(sequence_bias=[{"words": ["film"], "bias": 30}], **beams)
    assert all(ids == film * 10 for ids in completions(policy_source, biased))
    banned = biased.model_copy(update={"bad_words": ("film",)})
    assert not any(film[0] in ids for ids in completions(policy_source, banned))
