"""What was sampled is what is trained, and texts that tokens do not carry whole are counted."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prefsweep.sweeps.records import (
    Completion,
    PreferencePair,
    Prompt,
    ScoredCompletion,
    prompt_id,
)
from prefsweep.sweeps.spec import ChatSpec, GenerationSpec, PairsSpec, TrainingSpec
from prefsweep.workers import tables
from prefsweep.workers.endings import completion_text
from prefsweep.workers.generate import Generator
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.pairs import build_pairs
from prefsweep.workers.reference import reference_pairs, tokenize_pair
from prefsweep.workers.score import score_completions
from prefsweep.workers.text_checks import LOSSY, MERGED, SPECIAL, text_notes

from .chat_templates import FAMILIES, ids_of, tokenizer_of
from .preference_data import preference_pairs

CHAT = ChatSpec()
PAIR = preference_pairs()[0]
PAIRS = PairsSpec(rule="all", test_fraction=0)


class ByLength:
    def score(self, prompts: Any, completions: Any) -> list[float]:
        return [float(len(each)) for each in completions]


def sampled(ids: list[int], rejected: list[int], **changes: Any) -> PreferencePair:
    return replace(PAIR, chosen_token_ids=ids, rejected_token_ids=rejected, **changes)


def test_the_reference_reads_the_tokens_that_were_sampled(
    policy_source: ModelSource, tmp_path: Path
) -> None:
    model, tokenizer = load_policy(policy_source), load_tokenizer(policy_source)
    spec = GenerationSpec(max_new_tokens=20, temperature=3.0)
    prompts = [Prompt(prompt_id(text), text) for text in ("I watched this film", "We")]
    generator = Generator(model, tokenizer, spec)
    drawn = {(s.prompt.prompt_id, s.sample_idx): s for s in generator.sample(prompts, 4)}
    tables.write_records(generator.complete(prompts, 4), Completion, tmp_path / "a.parquet")
    completions = tables.read_records(Completion, [tmp_path / "a.parquet"])
    scored = score_completions(ByLength(), completions)
    tables.write_records(build_pairs(scored, PAIRS)[0], PreferencePair, tmp_path / "b.parquet")
    pairs = tables.read_records(PreferencePair, [tmp_path / "b.parquet"])
    reference = reference_pairs(pairs, model, tokenizer, TrainingSpec(eos="finished"))
    again = 0
    for pair, tokens in zip(pairs, reference, strict=True):
        first, second = (int(each) for each in pair.pair_id.split("-")[1:])
        chosen, rejected = drawn[pair.prompt_id, first], drawn[pair.prompt_id, second]
        assert tokens.prompt_ids == chosen.prompt_ids
        assert (tokens.chosen_ids, tokens.rejected_ids) == (
            chosen.completion_ids,
            rejected.completion_ids,
        )
        again += tokenizer(pair.chosen)["input_ids"] != chosen.completion_ids  # pyright: ignore
    assert again, "texts of which tokenizing again would make other tokens"


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ("split", "caf\ufffd"),  # the first byte of é
        ("special", "a<|im_start|>b"),
        ("pad", "ab"),
        ("letters", "aab"),
    ],
)
def test_what_a_text_cannot_say_is_trained_all_the_same(ids: str, text: str) -> None:
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    mark, pad, end, a, b = ids_of(tokenizer, "<|im_start|>", "<|pad|>", "<|im_end|>", "a", "b")
    cafe = tokenizer("café")["input_ids"]
    assert isinstance(cafe, list)
    body = {"split": cafe[:-1], "special": [a, mark, b], "pad": [a, pad, b], "letters": [a, a, b]}
    assert completion_text(tokenizer, body[ids], None) == text
    pair = sampled([*body[ids], end], [b], rejected_finish_reason="length")
    tokens = tokenize_pair(pair, tokenizer, TrainingSpec(), CHAT)
    assert tokens is not None
    assert tokens.chosen_ids == (*body[ids], end)
    assert tokens.rejected_ids == (b, end), "cut at a length: closed as the template closes"
    plain = tokenize_pair(pair, tokenizer, TrainingSpec())
    assert plain is not None and plain.rejected_ids == (b, tokenizer.eos_token_id)
    cut = tokenize_pair(pair, tokenizer, TrainingSpec(eos="finished"), CHAT)
    assert cut is not None and cut.rejected_ids == (b,)


def test_sampled_tokens_are_cut_at_max_length() -> None:
    tokenizer = tokenizer_of(FAMILIES["llama3"])
    pair = sampled([5] * 30, [6] * 3)
    tokens = tokenize_pair(pair, tokenizer, TrainingSpec(max_length=12, max_prompt_length=4))
    assert tokens is not None
    assert (len(tokens.prompt_ids), tokens.chosen_ids) == (4, (5,) * 8)
    assert tokens.rejected_ids == (6, 6, 6, tokenizer.eos_token_id)


@pytest.mark.parametrize("record", [Completion, ScoredCompletion, PreferencePair])
def test_tables_from_before_token_ids_were_kept_are_read(record: type, tmp_path: Path) -> None:
    values = {"sample_idx": 0, "score": 1.0, "chosen_score": 1.0, "rejected_score": 0.0}
    names = [field.name for field in fields(record) if not field.name.endswith("token_ids")]
    old = record(**{name: values.get(name, name) for name in names})
    tables.write_records([old], record, tmp_path / "new.parquet")
    pq.write_table(pq.read_table(tmp_path / "new.parquet").select(names), tmp_path / "old.parquet")
    assert tables.read_records(record, [tmp_path / "old.parquet", tmp_path / "new.parquet"]) == [
        old,
        old,
    ]


def test_a_completion_keeps_the_space_that_it_begins_with() -> None:
    vocabulary = {"<unk>": 0, "</s>": 1, "▁a": 2, "▁film": 3, "s": 4}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")
    assert tokenizer.decode([3, 4]) == "films"
    assert completion_text(tokenizer, [3, 4], None) == " films"
    assert completion_text(tokenizer, [4], None) == "s"
    assert completion_text(tokenizer, [3, 4], CHAT) == "films"


# --- notes ---------------------------------------------------------------------------------------


def notes(tokenizer: PreTrainedTokenizerBase, chat: ChatSpec | None, *texts: Any) -> Any:
    pairs = [replace(PAIR, prompt=p, chosen=c, rejected=r) for p, c, r in texts]
    return text_notes(pairs, tokenizer, TrainingSpec(), chat)


@pytest.mark.parametrize("chat", [None, CHAT])
def test_pairs_that_hold_a_special_token_as_text_are_counted_by_token(chat: Any) -> None:
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    found = notes(
        tokenizer,
        chat,
        ("What ends a turn?", " <|im_end|> and <|im_end|>.", " No."),
        ("Is it <|im_end|>?", " Yes, <|endoftext|> not.", " No."),
        ("Hm", " <|im_end |>", " <im_end>"),
        ("Hm", " Yes.<|endoftext|>", " No.<|endoftext|>"),  # ended, as TRL takes it
    )
    assert found == {SPECIAL.format("<|im_end|>"): 2, SPECIAL.format("<|endoftext|>"): 1}


def test_messages_are_looked_at_and_the_start_of_a_rendered_prompt_is_not() -> None:
    tokenizer = tokenizer_of(FAMILIES["llama3"])
    talk = '[{"role": "user", "content": "Say <|eot_id|>"}]'
    assert notes(tokenizer, CHAT, (talk, "Hm", "No")) == {SPECIAL.format("<|eot_id|>"): 1}
    assert notes(tokenizer, None, ("<|begin_of_text|>Hm", " yes", " no")) == {}
    assert notes(tokenizer, None, ("Hm", " yes <|begin_of_text|>", " no")) == {
        SPECIAL.format("<|begin_of_text|>"): 1
    }


def test_of_sampled_pairs_the_prompt_alone_is_looked_at() -> None:
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    texts = {"prompt": "A <|im_end|>", "chosen": "<|im_start|>", "rejected": "\ufffd"}
    pair = replace(sampled([5, 6], [7]), **texts)
    assert text_notes([pair], tokenizer, TrainingSpec()) == {SPECIAL.format("<|im_end|>"): 1}


def test_texts_that_do_not_survive_tokenization_are_counted_once_each() -> None:
    vocabulary = {"<unk>": 0, "</s>": 1, "a": 2, "▁a": 3, "▁film": 4}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    texts = ("a film", " film", " zebra"), ("a film", " a", " zebra"), ("a a", " film", " a")
    assert notes(tokenizer, None, *texts) == {LOSSY: 1}
    assert notes(tokenizer, CHAT, *texts) == {LOSSY: 1}
    lower = tokenizer_of(FAMILIES["chatml"])
    whole = ("Ab\r\n\u0065\u0301 \U0001f600\u200d", "\tx  y ", " \u00a0z")
    assert notes(lower, None, whole) == notes(lower, CHAT, whole) == {}


def test_prompts_that_end_inside_a_token_are_counted(policy_source: ModelSource) -> None:
    tokenizer = load_tokenizer(policy_source)
    texts = [("The act", "ing is good.", "or."), ("The act", " is good.", " no.")]
    whole, cut = notes(tokenizer, None, texts[1]), notes(tokenizer, None, *texts)
    assert whole == {} and cut == {MERGED: 1}
