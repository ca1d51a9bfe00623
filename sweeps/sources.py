"""Sources of prompts and training texts: built in, a local file, or a Hugging Face dataset.

This module has only sections of the spec; `workers/prompts.py` and `workers/sft.py` read the texts.
"""

import re
from typing import Annotated, ClassVar, Literal, Self, TypeGuard

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


class Section(BaseModel):
    """Base class of all sections: frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        str_max_length=1_000_000,  # any limit makes pydantic refuse lone surrogates, too
    )


_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> TypeGuard[str]:
    """Whether a revision of a model or dataset is a full commit hash, which cannot change."""
    return _COMMIT.fullmatch(revision or "") is not None


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class BuiltinText(Section):
    """Synthetic labelled movie reviews, written for this project."""

    type: Literal["builtin"] = "builtin"
    num_texts: int = Field(default=3000, ge=1)
    """Number of reviews to generate."""
    text_seed: Seed = 0
    """Seed of the reviews."""


class FileText(Section):
    """A local JSON, JSONL, CSV, TSV, parquet, Arrow or plain-text file (one text per line)."""

    type: Literal["file"]
    path: str
    """Path, relative to the working folder."""
    column: str = "text"
    """Column with the text; not used for .txt files."""
    label_column: str = "label"
    """Column with the label; only used to train a classifier."""
    where: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Rows to keep: column name -> the value it must have."""


class DatasetText(Section):
    """A Hugging Face dataset, by hub ID or local folder."""

    type: Literal["dataset"]
    dataset: str = Field(min_length=1)
    """Hub ID or path, as for `datasets.load_dataset`."""
    config: str | None = None
    """Configuration of the dataset; None uses its default."""
    revision: str | None = None
    """Commit, tag or branch; None uses the newest commit."""
    split: str = "train"
    """Split, in the notation of `datasets` (train[:10%])."""
    column: str = "text"
    """Column with the text."""
    label_column: str = "label"
    """Column with the label; only used to train a classifier."""
    where: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Rows to keep: column name -> the value it must have."""


Corpus = Annotated[BuiltinText | FileText | DatasetText, Field(discriminator="type")]


class FirstTokens(Section):
    """Keep the first tokens, counted by the policy's tokenizer."""

    first_tokens: int = Field(ge=1)
    """Number of tokens to keep."""


class FirstWords(Section):
    """Keep the first words, split at white space."""

    first_words: int = Field(ge=1)
    """Number of words to keep."""


def _form_of_take(value: object) -> str | None:
    """The member of `Take` that `value` belongs to, so that a wrong value gives one message."""
    if value in ("whole", "first_sentence"):
        return "word"
    for member, key in ((FirstWords, "first_words"), (FirstTokens, "first_tokens")):
        if isinstance(value, member) or (isinstance(value, dict) and key in value):
            return member.__name__
    return None


Take = Annotated[
    Annotated[Literal["whole", "first_sentence"], Tag("word")]
    | Annotated[FirstWords, Tag("FirstWords")]
    | Annotated[FirstTokens, Tag("FirstTokens")],
    Discriminator(
        _form_of_take,
        custom_error_type="take_form",
        custom_error_message=("use whole, first_sentence, {first_words: N} or {first_tokens: N}"),
    ),
]


class PromptSelection(Section):
    """How prompts are made from texts, and how many."""

    take: Take = "whole"
    """Part of each text that is the prompt; first_sentence ends before the first full stop."""
    min_chars: int = Field(default=0, ge=0)
    """Minimum length of a text, before `take`, characters; shorter texts are skipped."""
    max_chars: int | None = Field(default=None, ge=1)
    """Maximum length of a text, before `take`, characters; None has no limit."""
    num_train: int | None = Field(default=None, ge=1)
    """Prompts to make pairs from; None takes all but the share of `eval_fraction`."""
    num_eval: int = Field(default=50, ge=1)
    """Held-out prompts for the evaluation; never among the training prompts."""
    eval_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of all prompts that is kept for the evaluation, by a hash of the prompt: appended texts
    or a larger num_train never turn one of them into a training prompt. Where one side has too few
    for num_eval or num_train, the other gives what it does not need, with a line in the log."""
    shuffle_seed: Seed | None = None
    """Seed of a shuffle before prompts are taken; None keeps the order of the source."""

    @model_validator(mode="after")
    def lengths_leave_texts(self) -> Self:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(
                f"min_chars={self.min_chars} is more than max_chars={self.max_chars}, so no text "
                "qualifies; lower the first or raise the second"
            )
        return self


class UnconditionalPrompts(Section):
    """No prompts: every completion starts after the beginning-of-text or end-of-text token.

    Each draw takes the place of a prompt: its completions are compared with each other. The draws
    are independent.
    """

    type: Literal["unconditional"]
    num_train: int = Field(ge=1)
    """Number of draws to make pairs from."""
    num_eval: int = Field(default=50, ge=1)
    """Number of further draws for the evaluation."""
    take: ClassVar[Literal["whole"]] = "whole"


class BuiltinPrompts(BuiltinText, PromptSelection):
    """Openings of the synthetic reviews."""

    take: Take = FirstWords(first_words=4)
    """Part of each text that is the prompt."""
    text_seed: Seed = 1
    """Seed of the reviews; differs from that of the corpora, so that prompts are new to models."""


class FilePrompts(FileText, PromptSelection):
    """Prompts from a local file."""


class DatasetPrompts(DatasetText, PromptSelection):
    """Prompts from a Hugging Face dataset."""


Prompts = Annotated[
    BuiltinPrompts | FilePrompts | DatasetPrompts | UnconditionalPrompts,
    Field(discriminator="type"),
]
