"""Where prompts and training texts come from: built in, a local file, or a Hugging Face dataset.

Sections of the spec only; `workers/prompts.py` and `workers/sft.py` read the texts.
"""

import re
from typing import Annotated, ClassVar, Literal, Self, TypeGuard

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        str_max_length=1_000_000,  # any limit makes pydantic refuse halves of characters, too
    )


_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> TypeGuard[str]:
    """Whether a revision of a model or dataset is a full commit hash, which stays what it is."""
    return _COMMIT.fullmatch(revision or "") is not None


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class BuiltinText(Section):
    """The synthetic labelled movie reviews written for this project."""

    type: Literal["builtin"] = "builtin"
    num_texts: int = Field(default=3000, ge=1)
    """Reviews to write."""
    text_seed: Seed = 0
    """Seed of the synthesis."""


class FileText(Section):
    """A local JSON, JSONL, CSV, TSV, parquet, Arrow or plain-text file (one text a line)."""

    type: Literal["file"]
    path: str
    """Path, relative to the folder where the command runs."""
    column: str = "text"
    """Column that holds the text; not read for .txt files."""
    label_column: str = "label"
    """Column that holds the label; read where a classifier is trained."""
    where: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Rows to keep: column name to the value it must have."""


class DatasetText(Section):
    """A Hugging Face dataset, by hub id or local folder."""

    type: Literal["dataset"]
    dataset: str = Field(min_length=1)
    """Hub id or path, as `datasets.load_dataset` takes it."""
    config: str | None = None
    """Configuration of the dataset; None takes its default."""
    revision: str | None = None
    """Commit, tag or branch; None takes the newest one."""
    split: str = "train"
    """Split, in the notation of `datasets` (train[:10%])."""
    column: str = "text"
    """Column that holds the text."""
    label_column: str = "label"
    """Column that holds the label; read where a classifier is trained."""
    where: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Rows to keep: column name to the value it must have."""


Corpus = Annotated[BuiltinText | FileText | DatasetText, Field(discriminator="type")]


class FirstTokens(Section):
    """Keep the first tokens, counted by the policy's tokenizer."""

    first_tokens: int = Field(ge=1)
    """Tokens to keep."""


class FirstWords(Section):
    """Keep the first words, split at white space."""

    first_words: int = Field(ge=1)
    """Words to keep."""


def _form_of_take(value: object) -> str | None:
    """The member of `Take` that `value` means, so that one message answers a wrong one."""
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
    """How texts become prompts, and how many."""

    take: Take = "whole"
    """Part of each text that is the prompt; first_sentence ends before the first full stop."""
    min_chars: int = Field(default=0, ge=0)
    """Characters of the shortest text that is used; counted before `take`."""
    max_chars: int | None = Field(default=None, ge=1)
    """Characters of the longest text that is used, counted before `take`; None uses all."""
    num_train: int | None = Field(default=None, ge=1)
    """Prompts to make pairs from; None takes all that are left after the held-out ones."""
    num_eval: int = Field(default=50, ge=1)
    """Held-out prompts for the evaluation; never among the training prompts."""
    shuffle_seed: Seed | None = None
    """Seed of a shuffle before prompts are taken; None keeps the order of the source."""

    @model_validator(mode="after")
    def lengths_leave_texts(self) -> Self:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(
                f"min_chars={self.min_chars} is more than max_chars={self.max_chars}, which leaves "
                "no text; lower the first or raise the second"
            )
        return self


class UnconditionalPrompts(Section):
    """No prompts: every completion starts a text, after the beginning-of-text or end-of-text token.

    The draws are independent, and each stands where a prompt would: its completions are compared
    with each other.
    """

    type: Literal["unconditional"]
    num_train: int = Field(ge=1)
    """Draws to make pairs from."""
    num_eval: int = Field(default=50, ge=1)
    """Draws for the evaluation, besides."""
    take: ClassVar[Literal["whole"]] = "whole"


class BuiltinPrompts(BuiltinText, PromptSelection):
    """Openings of the synthetic reviews."""

    take: Take = FirstWords(first_words=4)
    """Part of each text that is the prompt."""
    text_seed: Seed = 1
    """Seed of the synthesis; not the one of the corpora, so that prompts are new to the models."""


class FilePrompts(FileText, PromptSelection):
    """Prompts from a local file."""


class DatasetPrompts(DatasetText, PromptSelection):
    """Prompts from a Hugging Face dataset."""


Prompts = Annotated[
    BuiltinPrompts | FilePrompts | DatasetPrompts | UnconditionalPrompts,
    Field(discriminator="type"),
]
