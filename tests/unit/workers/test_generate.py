import pytest
import torch

from prefsweep.sweeps.errors import ModelError
from prefsweep.sweeps.records import Prompt, prompt_id
from prefsweep.sweeps.spec import GenerationSpec
from prefsweep.workers.generate import Generator, check_prompt_lengths
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer

PROMPTS = [
    Prompt(prompt_id(t), t)
    for t in ("I watched this film", "My brother", "The second half of the story", "We saw")
]


def generator(source: ModelSource, **spec: object) -> Generator:
    section = GenerationSpec.model_validate({"max_new_tokens": 8, "batch_size": 2, **spec})
    return Generator(load_policy(source), load_tokenizer(source), section)


def test_completions_depend_on_prompts_and_seed_alone(policy_source: ModelSource) -> None:
    first = generator(policy_source).complete(PROMPTS, 3)
    torch.manual_seed(123)
    busy = generator(policy_source)
    busy.complete(PROMPTS[:1], 2)
    assert busy.complete(PROMPTS, 3) == first
    assert generator(policy_source, seed=1).complete(PROMPTS, 3) != first


def test_the_global_random_state_is_left_alone(policy_source: ModelSource) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generator(policy_source).complete(PROMPTS, 2)
    assert torch.equal(torch.rand(3), expected)


def test_every_prompt_gets_its_completions_in_order(policy_source: ModelSource) -> None:
    completions = generator(policy_source).complete(PROMPTS, 3)
    assert [(c.prompt_id, c.sample_idx) for c in completions] == [
        (p.prompt_id, i) for p in PROMPTS for i in range(3)
    ]
    assert all(c.prompt == p.text for c, p in zip(completions[::3], PROMPTS, strict=True))


def test_batched_greedy_decoding_is_that_of_one_prompt_alone(policy_source: ModelSource) -> None:
    batched = generator(policy_source, do_sample=False).sample(PROMPTS, 1)
    alone = generator(policy_source, do_sample=False, batch_size=1)
    for sample, prompt in zip(batched, PROMPTS, strict=True):
        assert sample.completion_ids == alone.sample([prompt], 1)[0].completion_ids


def test_a_finished_completion_ends_with_the_end_of_text_token(policy_source: ModelSource) -> None:
    eos = load_tokenizer(policy_source).eos_token_id
    samples = generator(policy_source, max_new_tokens=60, temperature=3.0).sample(PROMPTS, 20)
    finished = [s for s in samples if s.finish_reason == "eos"]
    assert finished, "with 4,800 random tokens of about 1,000 kinds, some are the end of text"
    assert all(s.completion_ids[-1] == eos and eos not in s.completion_ids[:-1] for s in finished)
    unfinished = [s for s in samples if s.finish_reason == "length"]
    assert all(len(s.completion_ids) == 60 and eos not in s.completion_ids for s in unfinished)


def test_prompts_beyond_the_context_are_refused_by_name(policy_source: ModelSource) -> None:
    check_prompt_lengths(PROMPTS, policy_source, 16, "generation.max_new_tokens")
    with pytest.raises(ModelError, match=r"'I watched this film'.*generation.max_new_tokens=1000"):
        check_prompt_lengths(PROMPTS, policy_source, 1000, "generation.max_new_tokens")


DRAWS = [Prompt(prompt_id(f"draw {i}"), "") for i in range(40)]


def test_without_a_prompt_a_completion_starts_a_text(policy_source: ModelSource) -> None:
    samples = generator(policy_source, batch_size=16).sample(DRAWS[:2] + PROMPTS[:1], 2)
    assert [s.prompt_ids for s in samples[:4]] == [[load_tokenizer(policy_source).bos_token_id]] * 4
    assert len({s.text for s in samples[:4]}) == 4
    greedy = generator(policy_source, do_sample=False, batch_size=3)
    mixed, alone = greedy.sample([DRAWS[0], *PROMPTS[:2]], 1), greedy.sample(DRAWS[:1], 1)
    assert mixed[0].completion_ids == alone[0].completion_ids


def test_random_lengths_are_each_prompts_own(policy_source: ModelSource) -> None:
    fields = {"random_new_tokens": [4, 7], "max_new_tokens": 7, "min_new_tokens": 4}
    samples = generator(policy_source, batch_size=8, **fields).sample(DRAWS, 2)
    lengths = [len(s.completion_ids) for s in samples if s.finish_reason == "length"]
    assert set(lengths) == {4, 5, 6, 7}
    assert all(samples[i].prompt == samples[i + 1].prompt for i in range(0, len(samples), 2))
    of_prompt = [
        {len(s.completion_ids) for s in samples[i : i + 2] if s.finish_reason == "length"}
        for i in range(0, len(samples), 2)
    ]
    assert max(map(len, of_prompt)) == 1
    greedy = generator(policy_source, do_sample=False, batch_size=8, **fields).sample(DRAWS, 1)
    alone = generator(policy_source, do_sample=False, batch_size=1, **fields).sample(DRAWS, 1)
    assert [s.completion_ids for s in greedy] == [s.completion_ids for s in alone]
    other = generator(policy_source, do_sample=False, batch_size=8, seed=1, **fields)
    assert [len(s.completion_ids) for s in other.sample(DRAWS, 1)] != [
        len(s.completion_ids) for s in greedy
    ]
