import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from prefsweep.sweeps.errors import DataError, ModelError
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.records import Prompt, prompt_id
from prefsweep.sweeps.spec import (
    ChatSpec,
    FilePrompts,
    GenerationSpec,
    SweepSpec,
    TrainingSpec,
    VaderReward,
)
from prefsweep.workers.chat import messages_of, scored_text, written_messages
from prefsweep.workers.generate import Generator, check_prompt_lengths
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.prompts import make_prompts
from prefsweep.workers.reference import reference_pairs, tokenize_pair
from prefsweep.workers.rendering import rendered, token_ids
from prefsweep.workers.score import make_scorer

from .preference_data import preference_pairs

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% if loop.last and not add_generation_prompt %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = ChatSpec(system_prompt="Be kind.")
TALK = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "And the film?"},
]


@pytest.fixture
def tokenizer(policy_source: ModelSource) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(policy_source)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_text_is_a_message_of_the_user_after_the_system_prompt(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert rendered(tokenizer, "Hi.", CHAT) == "<system>Be kind.\n<user>Hi.\n<assistant>"
    assert rendered(tokenizer, "Hi.", ChatSpec()) == "<user>Hi.\n<assistant>"
    assert rendered(tokenizer, "[a film]", ChatSpec()) == "<user>[a film]\n<assistant>"


def test_a_list_of_messages_is_a_conversation(tokenizer: PreTrainedTokenizerBase) -> None:
    talk = "<user>Hi.\n<assistant>Yes?\n<user>And the film?\n<assistant>"
    assert rendered(tokenizer, json.dumps(TALK), ChatSpec()) == talk
    assert rendered(tokenizer, json.dumps(TALK), CHAT) == "<system>Be kind.\n" + talk
    own = [{"role": "system", "content": "Be brief."}, *TALK]
    assert messages_of(json.dumps(own), CHAT) == own


@pytest.mark.parametrize(
    "text", ["", "Hi.", "[", "[]", "[1]", '{"role": "user"}', '[{"role": "user"}]', "[[" * 5000]
)
def test_other_texts_are_no_messages(text: str) -> None:
    assert written_messages(text) is None


def test_generation_and_reference_read_the_same_prompt(
    tokenizer: PreTrainedTokenizerBase, policy_source: ModelSource
) -> None:
    text = preference_pairs()[0].prompt
    model, spec = load_policy(policy_source), GenerationSpec(max_new_tokens=6, batch_size=2)
    prompts = [Prompt(prompt_id(t), t) for t in (text, json.dumps(TALK))]
    samples = Generator(model, tokenizer, spec, CHAT).sample(prompts, 2)
    expected = tokenizer(rendered(tokenizer, text, CHAT), add_special_tokens=False)["input_ids"]
    assert samples[0].prompt_ids == samples[1].prompt_ids == expected
    pairs = [
        replace(
            preference_pairs()[0],
            chosen=samples[0].text,
            rejected=samples[1].text,
            chosen_token_ids=samples[0].completion_ids,
            rejected_token_ids=samples[1].completion_ids,
            chosen_finish_reason="length",
        ),
        replace(preference_pairs()[1], prompt=json.dumps(TALK)),
    ]
    first, second = reference_pairs(pairs, model, tokenizer, TrainingSpec(), CHAT)
    assert first.prompt_ids == expected and second.prompt_ids == samples[2].prompt_ids
    assert samples[0].finish_reason == "length", "so that the end is put behind it"
    assert first.chosen_ids == [*samples[0].completion_ids, tokenizer.eos_token_id]
    ended = f"{preference_pairs()[1].chosen}{tokenizer.eos_token}\n"
    assert tokenizer.decode(second.chosen_ids) == ended
    assert len(first.ref_chosen_token_logps) == len(first.chosen_ids)


def test_long_conversations_are_cut_and_counted_as_rendered(
    tokenizer: PreTrainedTokenizerBase,
    policy_source: ModelSource,
    tmp_path: Path,
) -> None:
    pair = preference_pairs()[0]
    cut = tokenize_pair(pair, tokenizer, TrainingSpec(max_prompt_length=4), CHAT)
    assert cut is not None
    assert cut.prompt_ids == token_ids(tokenizer, pair.prompt, chat=CHAT)[-4:]
    folder = tmp_path / "policy"
    load_policy(policy_source).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source, prompts = ModelSource(path=str(folder)), [Prompt(pair.prompt_id, pair.prompt)]
    room = 256 - len(token_ids(tokenizer, pair.prompt, chat=CHAT))
    check_prompt_lengths(prompts, source, room, "generation.max_new_tokens", CHAT)
    with pytest.raises(ModelError, match=r"Shorten the prompts"):
        check_prompt_lengths(prompts, source, room + 1, "generation.max_new_tokens", CHAT)


def test_what_a_chat_cannot_take_is_refused(
    tokenizer: PreTrainedTokenizerBase, policy_source: ModelSource
) -> None:
    with pytest.raises(DataError, match=r"last message has the role assistant"):
        token_ids(tokenizer, json.dumps(TALK[:2]), chat=CHAT)
    with pytest.raises(DataError, match=r"list of chat messages.*set policy.chat"):
        token_ids(tokenizer, json.dumps(TALK))
    with pytest.raises(ModelError, match=r"has no chat template; remove policy.chat"):
        token_ids(load_tokenizer(policy_source), "Hi.", chat=CHAT)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ModelError, match=r"refuses the messages of prompt 'Hi.': no system role"):
        token_ids(tokenizer, "Hi.", chat=CHAT)
    draws = {"type": "unconditional", "num_train": 3}
    base = {"name": "a", "reward": {"type": "vader"}, "prompts": draws, "grid": [{}]}
    assert SweepSpec.model_validate(base | {"policy": {"model": "a/b"}}).policy.chat is None
    with pytest.raises(ValidationError, match=r"a chat answers a message; remove policy.chat"):
        SweepSpec.model_validate(base | {"policy": {"model": "a/b", "chat": {}}})


def test_messages_are_prompts_when_they_are_taken_whole(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    talks = [json.dumps([{"role": "user", "content": name}]) for name in "abc"]
    path.write_text("\n".join(json.dumps({"text": talk}) for talk in talks))
    spec = FilePrompts(type="file", path=str(path), num_eval=1)
    train, held_out = make_prompts(spec, ModelSource(path="/nowhere"))
    assert [p.text for p in train + held_out] == talks
    cut = spec.model_copy(update={"take": "first_sentence"})
    with pytest.raises(DataError, match=r"set prompts.take: whole"):
        make_prompts(cut, ModelSource(path="/nowhere"))


def test_rewards_read_the_last_user_message_and_the_completion() -> None:
    assert scored_text("A", " film", None) == "A film"
    assert scored_text("A", "film", CHAT) == "A\nfilm"
    assert scored_text(json.dumps(TALK), "Fine.", CHAT) == "And the film?\nFine."
    scorer = make_scorer(VaderReward(type="vader"), None, CHAT)
    kind = json.dumps([{"role": "user", "content": "Awful!"}, *TALK])
    assert scorer.score([kind], ["So so."]) == scorer.score(["And the film?"], ["So so."])
    assert scorer.score(["I love it."], ["So so."]) > scorer.score(["I hate it."], ["So so."])


def test_the_shipped_chat_is_smollm2_with_a_system_prompt() -> None:
    plain, chat = load_spec("smollm2"), load_spec("smollm2_chat")
    assert plain.policy.chat is None and chat.policy.chat is not None
    assert chat.policy.chat.system_prompt
    assert chat.prompts == plain.prompts
