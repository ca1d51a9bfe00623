"""An answer ends where the chat template and the generation config say, as in TRL 1.16."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from transformers import GenerationConfig, PreTrainedTokenizerBase
from trl.trainer.dpo_trainer import DPOTrainer

from prefsweep.sweeps.errors import ModelError
from prefsweep.sweeps.records import PreferencePair, Prompt, prompt_id
from prefsweep.sweeps.spec import ChatSpec, GenerationSpec, TrainingSpec
from prefsweep.workers.endings import closing_id, end_ids
from prefsweep.workers.generate import Generator
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.reference import tokenize_pair

from .chat_templates import FAMILIES, ids_of, tokenizer_of
from .preference_data import preference_pairs

SYSTEM = "Be brief."
TURNS = (
    [{"role": "user", "content": "Is the film good?"}],
    [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHello!"},
        {"role": "user", "content": "Is the film good?"},
    ],
)
ANSWERS = ("It is.", " No\n\nnot at all: 这部电影 ")
LONG = TrainingSpec(max_length=10_000)


@pytest.fixture(autouse=True)
def no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def trl_ids(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> list[Any]:
    """(prompt, chosen, rejected) ids of TRL's own trainer."""
    arguments: Any = SimpleNamespace(dataset_num_proc=None, max_length=None)
    made: Any = DPOTrainer._prepare_dataset(  # pyright: ignore[reportPrivateUsage]
        SimpleNamespace(_tokenizer=tokenizer),  # pyright: ignore[reportArgumentType]
        datasets.Dataset.from_list(rows),
        tokenizer,
        arguments,
        "train",
    )
    return [
        tuple(tuple(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        for row in made
    ]


def pair_of(prompt: str, chosen: str = ANSWERS[0], rejected: str = ANSWERS[1]) -> PreferencePair:
    pair = preference_pairs()[0]
    return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected)


def our_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: ChatSpec | None) -> Any:
    tokens = tokenize_pair(pair_of(prompt), tokenizer, LONG, chat)
    assert tokens is not None
    return tokens.prompt_ids, tokens.chosen_ids, tokens.rejected_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_chat_pairs_have_the_tokens_of_trl(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    systems = (None, SYSTEM) if family.system else (None,)
    rows, ours = [], []
    for system, turns in product(systems, TURNS):
        own = [] if system is None else [{"role": "system", "content": system}]
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in ANSWERS)
        rows.append({"prompt": own + turns, "chosen": chosen, "rejected": rejected})
        ours.append(our_ids(tokenizer, json.dumps(turns), ChatSpec(system_prompt=system)))
        assert ours[-1] == our_ids(tokenizer, json.dumps(own + turns), ChatSpec())
    assert ours == trl_ids(tokenizer, rows)
    end = str(tokenizer.decode(ours[0][1]))
    assert end.endswith(("\n", family.turn_end)) or name == "phi3"


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_stops_at_the_end_of_a_turn_and_of_a_text(name: str) -> None:
    family, tokenizer = FAMILIES[name], tokenizer_of(FAMILIES[name])
    turn_end, eos = ids_of(tokenizer, family.turn_end, family.eos)
    assert closing_id(tokenizer, ChatSpec()) == turn_end
    assert closing_id(tokenizer, None) == eos
    assert set(end_ids(tokenizer, None, ChatSpec())) == {turn_end, eos}
    assert end_ids(tokenizer, None, None) == (eos,)


def test_a_template_without_a_system_role_refuses_one_by_name() -> None:
    tokenizer = tokenizer_of(FAMILIES["gemma"])
    with pytest.raises(ModelError, match="System role not supported"):
        our_ids(tokenizer, "Hi.", ChatSpec(system_prompt=SYSTEM))
    assert closing_id(tokenizer, ChatSpec(system_prompt=SYSTEM)) == tokenizer.eos_token_id


def test_a_template_that_ends_an_answer_with_a_text_has_the_end_of_text_token() -> None:
    tokenizer = tokenizer_of(FAMILIES["zephyr"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert closing_id(tokenizer, ChatSpec()) == tokenizer.eos_token_id


def test_every_end_in_the_generation_config_ends_a_completion() -> None:
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    eos, mark = ids_of(tokenizer, "<|endoftext|>", "<|im_start|>")
    for named, found in ((None, ()), (7, (7,)), ([eos, 7, mark], (7, mark))):
        assert end_ids(tokenizer, GenerationConfig(eos_token_id=named), None) == (eos, *found)


def test_an_end_that_is_only_the_default_of_the_architecture_is_no_end() -> None:
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    eos, mark = ids_of(tokenizer, "<|endoftext|>", "<|im_start|>")
    derived = GenerationConfig(eos_token_id=[2, mark], _from_model_config=True)
    assert end_ids(tokenizer, derived, None) == (eos, mark)


def test_a_completion_is_its_tokens_up_to_the_first_end_and_its_text_is_without_it(
    policy_source: ModelSource,
) -> None:
    model, tokenizer = load_policy(policy_source), load_tokenizer(policy_source)
    prompts = [Prompt(prompt_id(t), t) for t in ("I watched this film", "We")]
    spec = GenerationSpec(max_new_tokens=12, num_completions=4)
    plain = Generator(model, tokenizer, spec).sample(prompts, 4)
    end = plain[0].completion_ids[3]  # an ordinary token that the policy says
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, end])
    ended = Generator(model, tokenizer, spec).sample(prompts, 4)
    assert ended[0].finish_reason == "eos"
    for before, after in zip(plain, ended, strict=True):
        cut = after.completion_ids
        assert cut == before.completion_ids[: len(cut)] and end not in cut[:-1]
        told = cut[:-1] if after.finish_reason == "eos" else cut
        assert after.text == tokenizer.decode(told)
        assert after.finish_reason == ("eos" if cut[-1] in (end, 0) else "length")


def test_at_least_min_new_tokens_come_before_any_end(policy_source: ModelSource) -> None:
    model, tokenizer = load_policy(policy_source), load_tokenizer(policy_source)
    model.generation_config = GenerationConfig(eos_token_id=list(range(600)))
    spec = GenerationSpec(max_new_tokens=6, min_new_tokens=4)
    samples = Generator(model, tokenizer, spec).sample([Prompt("a", "We")], 8)
    assert all(min(s.completion_ids[:4]) >= 600 for s in samples)
