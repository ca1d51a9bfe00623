"""Entering a sweep with your own data: the section of the spec, and which stage it stands in for.

`workers/entry.py` reads the rows.
"""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from prefsweep.sweeps.texts import Section

EntryStage = Literal["prompts", "completions", "scored_completions", "pairs"]

ARTEFACTS: Mapping[EntryStage, str] = {
    "prompts": "prompts",
    "completions": "completions",
    "scored_completions": "scores",
    "pairs": "pairs",
}
"""The stage whose output the data is."""

REQUIRED: Mapping[EntryStage, tuple[str, ...]] = {
    "prompts": ("prompt",),
    "completions": ("prompt", "completions"),
    "scored_completions": ("prompt", "completions", "scores"),
    "pairs": ("prompt", "chosen", "rejected"),
}
"""Columns that every row has, by our names."""

OPTIONAL: Mapping[EntryStage, tuple[str, ...]] = {
    "prompts": (),
    "completions": (),
    "scored_completions": (),
    "pairs": ("chosen_score", "rejected_score"),
}
"""Columns that are read where they are."""


class EntrySpec(Section):
    """Your own data instead of the first stages, from a file or a Hugging Face dataset.

    Completions follow their prompt as they are: begin them with a space where one belongs. Common
    public shapes are read: ShareGPT, OpenAI, hh-rlhf transcripts, pairs of message lists
    without a prompt, one row for each completion. With policy.chat, a column `system` is the system
    message of its row. Columns that are not read are named in the log.
    """

    stage: EntryStage
    """What a row is. prompts: prompt; completions: prompt and a list of texts, or one text;
    scored_completions: the same with a list of scores, or one; pairs: prompt, chosen, rejected, and
    chosen_score and rejected_score where they are known (then the first must be higher). A prompt
    may have several rows."""
    path: str | None = None
    """JSON, JSONL, CSV, TSV, parquet or Arrow file, relative to where the command runs, or
    `package:PACKAGE/FILE`. Text files may be packed (.gz, .bz2, .xz, .zst). A list in a CSV cell is
    written as JSON."""
    dataset: str | None = Field(default=None, min_length=1)
    """Hugging Face dataset instead of a file: hub id or local folder (of data files, or written by
    `save_to_disk`)."""
    config: str | None = None
    """Configuration of the dataset; None takes its default."""
    revision: str | None = None
    """Commit, tag or branch of the dataset; None takes the newest one."""
    split: str = "train"
    """Split of the dataset, in the notation of `datasets` (train[:10%])."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column name to the data's, where they differ: {prompt: question}. A dot leads into a
    column: {prompt: input.messages}."""

    @property
    def column_names(self) -> dict[str, str]:
        """Every column that may be read: our name to the data's."""
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
                raise ValueError(f"{name}={value!r} is read with dataset only, not with path")
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
                    "give each a column of its own"
                )
            ours[theirs] = name
        return self
