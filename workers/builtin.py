"""The embedded default: synthetic labelled movie reviews and tiny untrained models.

Reviews are made from a seed and a count. Models are written as a Hugging Face folder that loads
without a network, with untrained weights (`sft.py` trains them).
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prefsweep.sweeps.errors import ModelError
from prefsweep.workers import review_grammar as grammar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

VERSION = "1"
"""Bumped by hand when the output of `reviews` or `write_base_model` changes."""

ModelName = Literal["tiny-gpt2", "tiny-classifier"]
BUILTIN_MODELS: tuple[ModelName, ...] = ("tiny-gpt2", "tiny-classifier")

LABELS = ("NEGATIVE", "POSITIVE")
"""Label names; the position is the label's ID in the classifier."""

LABEL_SLOPE = 0.9
"""Log-odds of POSITIVE per grade of a review's total. Mixed reviews get either label at random, so
that a classifier trained on the labels has graded logits, not two saturated values."""

TOKENIZER_TEXTS, TOKENIZER_SEED, VOCAB_SIZE = 3000, 20_240, 1200
NUM_POSITIONS = 256
EOS, PAD, START = SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|start|>")
EOS_ID, PAD_ID, START_ID = range(3)
"""IDs of the special tokens; the tokenizer numbers them first."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One review; `label` is one of LABELS."""

    text: str
    label: str


# --- reviews -------------------------------------------------------------------------------------


def reviews(num_texts: int, seed: int) -> list[LabelledText]:
    """Generate `num_texts` reviews of two or three short sentences; equal for equal arguments.

    Each review draws a mood, opinions with grades around the mood, and a label with log-odds
    LABEL_SLOPE times the sum of the grades. The first four words are drawn independently, so they
    contain no information about the label.
    """
    rng = random.Random(seed)
    return [_review(rng) for _ in range(num_texts)]


def _review(rng: random.Random) -> LabelledText:
    opinions = _Opinions(rng, mood=rng.choice((-1, 1)) * rng.uniform(0.4, 2.6))
    sentences = [rng.choice(_OPENINGS)(rng, opinions)]
    sentences.append(rng.choice(_MIDDLES)(rng, opinions))
    if rng.random() < 0.5:
        sentences.append(opinions.verdict())
    text = " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)
    odds = 1 / (1 + math.exp(-LABEL_SLOPE * opinions.total))
    return LabelledText(text, LABELS[rng.random() < odds])


class _Opinions:
    """Draws opinion phrases with grades around a mood, and sums the grades."""

    def __init__(self, rng: random.Random, mood: float) -> None:
        self._rng = rng
        self._mood = mood
        self._aspects = rng.sample(grammar.ASPECTS, 6)
        self.total = 0.0

    def aspect(self) -> str:
        """An aspect of the film that the review has not mentioned yet."""
        return "the " + self._aspects.pop()

    def adjective(self, *, against: bool = False) -> str:
        """An adjective with or without an adverb; `against` the mood for a concession."""
        grade = self._grade(against)
        modifiers = [word for word, factor in grammar.MODIFIERS.items() if factor * abs(grade) <= 3]
        modifier = self._rng.choice(("", "", *modifiers))
        self.total += grade * grammar.MODIFIERS[modifier]
        return f"{modifier} {self._rng.choice(grammar.ADJECTIVES[grade])}".strip()

    def state(self, *, against: bool = False) -> str:
        """A clause about one aspect of the film."""
        if self._rng.random() < 0.65:
            return f"{self.aspect()} {self._rng.choice(('is', 'was'))} " + self.adjective(
                against=against
            )
        return f"{self.aspect()} {self._phrase(grammar.EFFECTS, against)}"

    def feeling(self) -> str:
        """A clause about the writer's feeling towards "it" or an aspect of the film."""
        return f"{self._phrase(grammar.FEELINGS)} {self._rng.choice(('it', self.aspect()))}"

    def verdict(self) -> str:
        """A closing sentence."""
        opening = self._rng.choice(("", "", "in the end ", "all in all ", "still, ", "for me "))
        return opening + self._phrase(grammar.VERDICTS)

    def _phrase(self, phrases: dict[int, tuple[str, ...]], against: bool = False) -> str:
        grade = self._grade(against)
        self.total += grade
        return self._rng.choice(phrases[grade])

    def _grade(self, against: bool = False) -> int:
        if against:
            return -1 if self._mood > 0 else 1
        grade = round(self._rng.gauss(self._mood, 0.8))
        return max(-3, min(3, grade)) or (1 if self._mood > 0 else -1)


def _film(rng: random.Random) -> str:
    return f"{rng.choice(('this', 'the'))} {rng.choice(grammar.GENRES)}"


def _then(rng: random.Random, opinions: _Opinions) -> str:
    """A clause that follows "I saw the film"."""
    occasion = rng.choice(grammar.OCCASIONS)
    return rng.choice(
        (
            lambda: f"{occasion} and {opinions.feeling()}",
            lambda: f"{occasion}, and {opinions.state()}",
            lambda: f"{occasion} and found it {opinions.adjective()}",
        )
    )()


def _i_saw(rng: random.Random, opinions: _Opinions) -> str:
    return f"I {rng.choice(grammar.SAW)} {_film(rng)} {_then(rng, opinions)}"


def _relative_saw(rng: random.Random, opinions: _Opinions) -> str:
    relative, saw = rng.choice(grammar.RELATIVES), rng.choice(grammar.SAW)
    return f"my {relative} {saw} {_film(rng)} {_then(rng, opinions)}"


def _relative_and_i(rng: random.Random, opinions: _Opinions) -> str:
    relative, saw = rng.choice(grammar.RELATIVES), rng.choice(grammar.SAW)
    return f"my {relative} and I {saw} {_film(rng)}, and {opinions.state()}"


def _part_of(rng: random.Random, opinions: _Opinions) -> str:
    part = f"{rng.choice(grammar.PERIODS)} {rng.choice(grammar.PARTS)}"
    return f"the {part} of {_film(rng)} is {opinions.adjective()}"


def _about(rng: random.Random, opinions: _Opinions) -> str:
    film = f"{rng.choice(grammar.ORIGINS)} {rng.choice(grammar.GENRES)}"
    return f"this {film} about a {rng.choice(grammar.HEROES)} is {opinions.adjective()}"


def _on_a_day(rng: random.Random, opinions: _Opinions) -> str:
    day = f"{rng.choice(grammar.WEATHER)} {rng.choice(grammar.TIMES)}"
    who, saw = rng.choice(("I", "we")), rng.choice(grammar.SAW)
    return f"on a {day} {who} {saw} {_film(rng)}, and {opinions.state()}"


def _person_in(rng: random.Random, opinions: _Opinions) -> str:
    person = f"{rng.choice(grammar.AGES)} {rng.choice(grammar.ROLES)}"
    return f"the {person} of {_film(rng)} is {opinions.adjective()}"


_Sentence = Callable[[random.Random, _Opinions], str]
_OPENINGS: tuple[_Sentence, ...] = (
    _i_saw, _i_saw, _relative_saw, _relative_saw, _relative_and_i, _part_of, _about, _on_a_day,
    _person_in,
)  # fmt: skip


def _one_state(_: random.Random, opinions: _Opinions) -> str:
    return opinions.state()


def _two_states(_: random.Random, opinions: _Opinions) -> str:
    return f"{opinions.state()}, and {opinions.state()}"


def _concession(rng: random.Random, opinions: _Opinions) -> str:
    against, with_mood = opinions.state(against=True), opinions.state()
    return rng.choice((f"{against}, but {with_mood}", f"although {against}, {with_mood}"))


_MIDDLES: tuple[_Sentence, ...] = (_one_state, _two_states, _concession)


# --- models --------------------------------------------------------------------------------------


def write_base_model(name: ModelName, folder: Path, seed: int) -> None:
    """Write an untrained model (config, safetensors weights, tokenizer) into `folder`.

    Raises ModelError for a name that is not one of BUILTIN_MODELS.
    """
    import torch

    if name not in BUILTIN_MODELS:
        raise ModelError(
            f"builtin:{name} is not a built-in model; the built-in models are "
            + ", ".join(f"builtin:{known}" for known in BUILTIN_MODELS)
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "tiny-gpt2":
            tokenizer = _tokenizer(with_start=False)
            model = _tiny_gpt2(tokenizer)
        else:
            tokenizer = _tokenizer(with_start=True)
            model = _tiny_classifier(tokenizer)
    with _no_progress_bar():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _tokenizer(*, with_start: bool) -> "PreTrainedTokenizerFast":
    """Byte-level BPE trained on reviews: encodes any text and decodes it back unchanged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [review.text for review in reviews(TOKENIZER_TEXTS, TOKENIZER_SEED)]
    backend.train_from_iterator(texts, trainer)
    if with_start:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, START_ID)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        bos_token=START if with_start else EOS,
        pad_token=PAD,
        padding_side="right",
        model_max_length=NUM_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    had_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_bar:
            logging.enable_progress_bar()


def _tiny_gpt2(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=NUM_POSITIONS,
            n_embd=96,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=EOS_ID,
            eos_token_id=EOS_ID,
            pad_token_id=PAD_ID,
        )
    )


def _tiny_classifier(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    return DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=NUM_POSITIONS,
            dim=64,
            hidden_dim=128,
            n_layers=2,
            n_heads=4,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
            pad_token_id=PAD_ID,
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
        )
    )
