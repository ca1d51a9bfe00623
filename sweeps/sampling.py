"""Sections of the spec on how completions are decoded; `workers/generate.py` reads them."""

from typing import Any, Self, cast

from pydantic import Field, field_validator, model_validator

from prefsweep.sweeps.sources import Section, Seed


class Sampling(Section):
    """How completions are sampled; names and meanings as in transformers' GenerationConfig."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Maximum length of a completion, tokens."""
    min_new_tokens: int = Field(default=0, ge=0)
    """Minimum length of a completion before the end-of-text token, tokens."""
    do_sample: bool = True
    """Sample; false decodes greedily."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by this."""
    top_k: int = Field(default=0, ge=0)
    """Sample from this many most likely tokens; 0 samples from all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the most likely tokens with this total probability; 1 samples from all."""
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    """Length of n-grams that must not repeat; 0 allows all repetitions."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Penalty on tokens that have occurred; 1 is none."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts generated together; affects the result, because padding does."""
    seed: Seed = 0
    """Seed of the sampling."""


class WordBias(Section):
    """A bias on words."""

    words: tuple[str, ...] = Field(min_length=1)
    """The words, as text; each is tokenized with a space before it."""
    bias: float
    """Added to the logit of a word's last token after the word's other tokens."""

    @field_validator("words")
    @classmethod
    def words_have_letters(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return _bare(words)


class GenerationSpec(Sampling):
    """Candidate completions for the pairs."""

    num_completions: int = Field(default=4, ge=2)
    """Completions per prompt."""
    num_beam_groups: int | None = Field(default=None, ge=2)
    """Groups of diverse beam search, one completion each; None samples (or decodes greedily)."""
    diversity_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from a token's log-probability, in nats, for each earlier group that chose the
    token at the same step."""
    sequence_bias: tuple[WordBias, ...] = ()
    """Words made more or less likely."""
    bad_words: tuple[str, ...] = ()
    """Words that are never generated, as text; each is tokenized with a space before it."""
    random_new_tokens: tuple[int, int] | None = None
    """[least, most]: the length at which completions are cut, drawn at random for each prompt,
    tokens; max_new_tokens is then the most. None cuts all at max_new_tokens."""
    shard_size: int = Field(default=32, ge=1)
    """Prompts per shard, the unit that one worker computes, and recomputes if it is lost."""

    @field_validator("bad_words")
    @classmethod
    def bad_words_have_letters(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return _bare(words)

    @model_validator(mode="before")
    @classmethod
    def random_lengths_end_at_max_new_tokens(cls, data: Any) -> Any:
        """Set max_new_tokens to the most of random_new_tokens, so that identities are equal."""
        if not isinstance(data, dict):
            return data
        fields = cast("dict[str, Any]", data)
        match fields.get("random_new_tokens"):
            case [int(), int(most)]:
                given = fields.get("max_new_tokens", most)
            case _:
                return fields
        if given != most:
            raise ValueError(
                f"max_new_tokens={given} is not the most of random_new_tokens="
                f"{fields['random_new_tokens']}; remove max_new_tokens or set it to {most}"
            )
        return {**fields, "max_new_tokens": most}

    @model_validator(mode="after")
    def random_lengths_are_a_range(self) -> Self:
        if self.random_new_tokens is None:
            return self
        least, most = self.random_new_tokens
        if not 1 <= least <= most:
            raise ValueError(
                f"random_new_tokens=[{least}, {most}] is not a range of at least 1 token; "
                "give [least, most]"
            )
        if self.min_new_tokens > least:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} is more than the least of "
                f"random_new_tokens=[{least}, {most}]; lower the first or raise the second"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def beams_are_not_sampled(cls, data: Any) -> Any:
        """Set do_sample to false, because groups are greedy, so that identities are equal."""
        if not isinstance(data, dict):
            return data
        fields = cast("dict[str, Any]", data)
        groups = fields.get("num_beam_groups")
        if groups is None:
            return fields
        if fields.get("do_sample") is True:
            raise ValueError(
                f"do_sample=True is not used with num_beam_groups={groups}, whose groups are "
                "greedy; remove do_sample, or num_beam_groups to sample"
            )
        return {**fields, "do_sample": False}

    @model_validator(mode="after")
    def beams_fit_completions(self) -> Self:
        groups = self.num_beam_groups
        if groups is None:
            if self.diversity_penalty:
                raise ValueError(
                    f"diversity_penalty={self.diversity_penalty} is only used with "
                    f"num_beam_groups; add num_beam_groups: {self.num_completions}, or remove it"
                )
            return self
        if groups != self.num_completions:
            raise ValueError(
                f"num_beam_groups={groups} and num_completions={self.num_completions}: each "
                "group gives one completion; set both to the same number"
            )
        for name in ("temperature", "top_k", "top_p"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)} is not used with num_beam_groups={groups}, "
                    f"whose groups are greedy; remove {name}, or num_beam_groups to sample"
                )
        return self

    @model_validator(mode="after")
    def a_word_is_named_once(self) -> Self:
        named: set[str] = set()
        for word in (
            *(word for each in self.sequence_bias for word in each.words),
            *self.bad_words,
        ):
            if word in named:
                raise ValueError(
                    f"{word!r} occurs more than once in sequence_bias and bad_words; keep one"
                )
            named.add(word)
        return self


def _bare(words: tuple[str, ...]) -> tuple[str, ...]:
    """`words` without white space around them, none of them empty."""
    bare = tuple(word.strip() for word in words)
    if "" in bare:
        raise ValueError("contains an empty word; remove it")
    return bare
