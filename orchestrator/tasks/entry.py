"""Stages of a sweep with an `entry` section: the user's data, and the prompts to evaluate.

Both run in the driver before a worker starts, so that errors in the data are reported first. Only
prompts that are cut with the policy's tokenizer have to wait for the policy.
"""

import time
from dataclasses import dataclass
from typing import Any, Protocol

from prefsweep.orchestrator.state.inputs import input_identity, named_input
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tasks.shards import Generate, finish_shards, publish_shard
from prefsweep.orchestrator.tasks.stages import (
    MakePrompts,
    Task,
    publish_records,
    read_records,
    require_same,
)
from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import Completion, PreferencePair, Prompt, ScoredCompletion
from prefsweep.sweeps.spec import EntrySpec, FirstTokens

ENTERED_SHARD_PROMPTS = 128
"""Number of prompts per shard of entered completions."""


class DataTask(Task, Protocol):
    """A task that needs no model, or only the policy's tokenizer."""

    def needs_policy(self) -> bool: ...


def data_tasks(sweep: Sweep) -> list[DataTask]:
    """The tasks that read the prompts, or the data of the `entry` section."""
    if sweep.entered is None:
        return [MakePrompts(sweep)]
    return [EnterData(sweep, sweep.entered), MakeEvalPrompts(sweep)]


@dataclass(frozen=True)
class EnterData:
    """The user's data -> the artefact of the stage that it replaces (`name`)."""

    sweep: Sweep
    name: str

    def done(self) -> bool:
        return self.sweep.store.manifest(self.sweep.path(self.name)) is not None

    def needs_policy(self) -> bool:
        return False

    def run(self) -> None:
        from prefsweep.workers import entry as reader

        started, sweep, entry = time.monotonic(), self.sweep, _entry_of(self.sweep)
        self._require_unchanged()  # since the run started
        records: list[Any]
        chat = sweep.spec.policy.chat is not None
        match entry.stage:
            case "prompts":
                kind, (records, notes) = Prompt, reader.read_prompts(entry, chat=chat)
            case "completions":
                kind, (records, notes) = Completion, reader.read_completions(entry, chat=chat)
            case "scored_completions":
                kind = ScoredCompletion
                records, notes = reader.read_scored_completions(entry, chat=chat)
            case "pairs":
                kind = PreferencePair
                records, notes = reader.read_pairs(entry, sweep.spec.pairs, chat=chat)
        self._require_unchanged()  # while it was read
        if kind is Completion:
            _publish_completions(sweep, records, started, notes)
        else:
            publish_records(sweep, self.name, kind, records, started, notes)

    def _require_unchanged(self) -> None:
        """Raises DataError if the data has changed since the sweep's identities were computed."""
        spec = self.sweep.spec
        if input_identity(spec, "entry") != self.sweep.inputs.entry:
            named = named_input(spec, "entry")
            raise DataError(f"{named}: it has changed; run the sweep's original spec again")


@dataclass(frozen=True)
class MakeEvalPrompts:
    """The held-out prompts of the prompts section, or the data's prompts in the test split."""

    sweep: Sweep
    name: str = "eval_prompts"

    def done(self) -> bool:
        return self.sweep.store.manifest(self.sweep.path(self.name)) is not None

    def needs_policy(self) -> bool:
        """Whether the prompts are cut with the policy's tokenizer."""
        prompts = self.sweep.spec.prompts
        return prompts is not None and isinstance(prompts.take, FirstTokens)

    def run(self) -> None:
        from prefsweep.workers.entry import held_out_prompts, prompts_of_test_split
        from prefsweep.workers.locations import ModelSource

        started, spec, notes = time.monotonic(), self.sweep.located, dict[str, float]()
        texts = _prompts_of_data(self.sweep)
        if spec.prompts is None:
            prompts = prompts_of_test_split(texts, spec.pairs, spec.evaluation.max_prompts)
        else:
            source = self.sweep.policy_source() if self.needs_policy() else ModelSource("")
            prompts, notes = held_out_prompts(spec.prompts, source, texts)
            require_same(spec.prompts, self.sweep.inputs.prompts, "prompts")
        publish_records(self.sweep, self.name, Prompt, prompts, started, notes)


@dataclass(frozen=True, slots=True)
class _PromptOf:
    """The prompt columns of completions and pairs."""

    prompt_id: str
    prompt: str


def _entry_of(sweep: Sweep) -> EntrySpec:
    entry = sweep.spec.entry
    assert entry is not None, "data_tasks makes this only for a sweep with an entry"
    return entry


def _prompts_of_data(sweep: Sweep) -> dict[str, str]:
    """Prompt ID -> text of the entered data, in its order."""
    assert sweep.entered is not None
    if sweep.entered == "prompts":
        prompts: list[Prompt] = read_records(sweep, "prompts", Prompt)
        return {prompt.prompt_id: prompt.text for prompt in prompts}
    rows: list[_PromptOf] = read_records(sweep, sweep.entered, _PromptOf)
    return {row.prompt_id: row.prompt for row in rows}


def _publish_completions(
    sweep: Sweep, completions: list[Completion], started: float, notes: dict[str, float]
) -> None:
    """Publish completions as shards, so that scorers can share the work."""
    stage, by_prompt = Generate(sweep), dict[str, list[Completion]]()
    for completion in completions:
        by_prompt.setdefault(completion.prompt_id, []).append(completion)
    groups = list(by_prompt.values())
    num = -(-len(groups) // ENTERED_SHARD_PROMPTS)
    for index in range(num):
        mine = groups[index * ENTERED_SHARD_PROMPTS : (index + 1) * ENTERED_SHARD_PROMPTS]
        records = [completion for group in mine for completion in group]
        publish_shard(stage, Completion, records, index, started)
    finish_shards(stage, sweep, num, time.monotonic() - started, notes)
