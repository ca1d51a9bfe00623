"""Starting a sweep from your own data: the `entry` section of the spec, and the stage it replaces.

`workers/entry.py` reads the rows.
"""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from prefsweep.sweeps.sources import Section

EntryStage = Literal["prompts", "completions", "scored_completions", "pairs"]

ARTEFACTS: Mapping[EntryStage, str] = {
    "prompts": "prompts",
    "completions": "completions",
    "scored_completions": "scores",
    "pairs": "pairs",
}
"""Value of `stage` -> the stage whose output the data replaces."""

REQUIRED: Mapping[EntryStage, tuple[str, ...]] = {
    "prompts": ("prompt",),
    "completions": ("prompt", "completions"),
    "scored_completions": ("prompt", "completions", "scores"),
    "pairs": ("prompt", "chosen", "rejected"),
}
"""Columns that every row must have, by prefsweep's names."""

OPTIONAL: Mapping[EntryStage, tuple[str, ...]] = {
    "prompts": (),
    "completions": (),
    "scored_completions": (),
    "pairs": ("chosen_score", "rejected_score"),
}
"""Columns that are read if they exist."""


class EntrySpec(Section):
    """Your own data instead of the first stages, from a file or a Hugging Face dataset.

    A completion is appended to its prompt unchanged, so it must begin with a space if one is
    needed. Common public formats are read: ShareGPT, OpenAI, hh-rlhf transcripts, pairs of message
    lists without a prompt, one row per completion. With policy.chat, a column `system` is the
    system message of its row. The log lists columns that are not read.
    """

    stage: EntryStage
    """Columns of a row. prompts: prompt; completions: prompt and a list of texts, or one text;
    scored_completions: the same with a list of scores, or one; pairs: prompt, chosen, rejected, and
    optionally chosen_score and rejected_score (the first must be higher). A prompt may have several
    rows."""
    path: str | None = None
    """JSON, JSONL, CSV, TSV, parquet or Arrow file, relative to the working folder, or
    `package:PACKAGE/FILE`. Text files may be compressed (.gz, .bz2, .xz, .zst). A list in a CSV
    cell is written as JSON."""
    dataset: str | None = Field(default=None, min_length=1)
    """Hugging Face dataset instead of a file: hub ID, or a local folder with data files or written
    by `save_to_disk`."""
    config: str | None = None
    """Configuration of the dataset; None uses its default."""
    revision: str | None = None
    """Commit, tag or branch of the dataset; None uses the newest commit."""
    split: str = "train"
    """Split of the dataset, in the notation of `datasets` (train[:10%])."""
    columns: dict[str, str] = Field(default_factory=dict)
    """prefsweep's column name -> the data's, where they differ: {prompt: question}. A dot selects a
    field inside a column: {prompt: input.messages}."""

    @property
    def column_names(self) -> dict[str, str]:
        """Every column that may be read: prefsweep's name -> the data's."""
        ours = (*REQUIRED[self.stage], *OPTIONAL[self.stage])
        return {name: self.columns.get(name, name) for name in ours}

    @model_validator(mode="after")
    def source_is_one(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError(
                f"path={self.path!r} and dataset={self.dataset!r}: give exactly one of them"
            )
        return self

    @model_validator(mode="after")
    def dataset_fields_belong_to_dataset(self) -> Self:
        for name in ("config", "revision", "split"):
            value = getattr(self, name)
            if self.dataset is None and value != type(self).model_fields[name].default:
                raise ValueError(f"{name}={value!r} is only used with dataset, not with path")
        return self

    @model_validator(mode="after")
    def columns_belong_to_stage(self) -> Self:
        known = (*REQUIRED[self.stage], *OPTIONAL[self.stage])
        for name in self.columns:
            if name not in known:
                raise ValueError(
                    f"columns has {name!r}, which stage={self.stage} does not read; "
                    f"it reads {', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def columns_are_distinct(self) -> Self:
        ours: dict[str, str] = {}
        for name, theirs in self.column_names.items():
            if theirs in ours:
                raise ValueError(
                    f"columns reads {theirs!r} as both {ours[theirs]} and {name}; "
                    "give each its own column"
                )
            ours[theirs] = name
        return self
