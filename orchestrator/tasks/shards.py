"""The stages that workers compute in shards: completions, scores, reference log-probabilities.

A shard is a fixed part of a stage's prompts, independent of the workers. Every class here is small
and can be pickled; a Cluster loads what a stage needs once in each worker.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from prefsweep.orchestrator.state.inputs import named_input
from prefsweep.orchestrator.state.sweep import REFERENCE_SHARD_PROMPTS, Sweep
from prefsweep.orchestrator.store.store import new_manifest
from prefsweep.orchestrator.tasks.stages import read_records
from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import (
    Completion,
    PreferencePair,
    Prompt,
    ScoredCompletion,
    TokenizedPair,
)
from prefsweep.sweeps.spec import CallableReward, ClassifierReward
from prefsweep.workers import tables

TRAINING_PAIRS = "training pairs"
"""Note of the reference stage: number of training pairs that are left."""


@runtime_checkable
class BisectableTask(Protocol):
    """Work that can be done for single prompts; `load` is called once in each worker.

    `work` makes the records of an item (a shard). If `only` is given, it makes only the records of
    these prompts. Prompts that are quarantined at this stage are always skipped.
    """

    @property
    def name(self) -> str: ...

    @property
    def sweep(self) -> Sweep: ...

    @property
    def loads(self) -> str:
        """The field that names what `load` loads, with its value, for messages."""
        ...

    def prompt_ids(self, index: int) -> list[str]: ...

    def load(self) -> Any: ...

    def work(self, worker: Any, index: int, only: Sequence[str] | None = None) -> list[Any]: ...


class ShardStage(BisectableTask, Protocol):
    """A stage that workers compute in shards."""

    @property
    def record_type(self) -> type: ...

    def notes(self, worker: Any, index: int, records: Sequence[Any]) -> dict[str, float]:
        """Counts of a finished shard for the report; they are summed over all shards."""
        ...


@dataclass(frozen=True)
class Generate:
    """A shard of prompts -> its completions."""

    sweep: Sweep
    name: str = "completions"
    record_type: type = Completion

    @property
    def loads(self) -> str:
        return named_input(self.sweep.spec, "policy")

    def load(self) -> Any:
        from prefsweep.workers.generate import Generator
        from prefsweep.workers.models import load_policy, load_tokenizer

        source = self.sweep.policy_source()
        spec = self.sweep.spec
        generator = Generator(
            load_policy(source), load_tokenizer(source), spec.generation, spec.policy.chat
        )
        return generator, read_records(self.sweep, "prompts", Prompt)

    def prompt_ids(self, index: int) -> list[str]:
        prompts: list[Prompt] = read_records(self.sweep, "prompts", Prompt)
        return [prompt.prompt_id for prompt in self._mine(prompts, index)]

    def work(self, worker: Any, index: int, only: Sequence[str] | None = None) -> list[Completion]:
        generator, prompts = worker
        mine = _wanted(self, self._mine(prompts, index), only)
        return generator.complete(mine, self.sweep.spec.generation.num_completions)

    def _mine(self, prompts: list[Prompt], index: int) -> list[Prompt]:
        size = self.sweep.spec.generation.shard_size
        return prompts[index * size : (index + 1) * size]

    def notes(self, worker: Any, index: int, records: Sequence[Any]) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class Score:
    """A shard of completions -> the completions with rewards."""

    sweep: Sweep
    name: str = "scores"
    record_type: type = ScoredCompletion

    @property
    def loads(self) -> str:
        return reward_named(self.sweep)

    def load(self) -> Any:
        from prefsweep.workers.score import make_scorer

        reward = self.sweep.spec.reward
        assert reward is not None, "the spec requires a reward if completions are scored"
        return make_scorer(reward, self.sweep.reward_source(), self.sweep.spec.policy.chat)

    def prompt_ids(self, index: int) -> list[str]:
        return list(dict.fromkeys(row.prompt_id for row in self._completions(index)))

    def work(
        self, worker: Any, index: int, only: Sequence[str] | None = None
    ) -> list[ScoredCompletion]:
        from prefsweep.workers.score import score_completions

        return score_completions(worker, _wanted(self, self._completions(index), only))

    def notes(self, worker: Any, index: int, records: Sequence[Any]) -> dict[str, float]:
        return {}

    def _completions(self, index: int) -> list[Completion]:
        with self.sweep.store.staging() as folder:
            local = self.sweep.store.fetch_shard(self.sweep.shard("completions", index), folder)
            return tables.read_records(Completion, [local])


@dataclass(frozen=True)
class Reference:
    """A shard of pairs -> token IDs with the reference's log-probabilities."""

    sweep: Sweep
    name: str = "reference"
    record_type: type = TokenizedPair

    @property
    def loads(self) -> str:
        return named_input(self.sweep.spec, "policy")

    def load(self) -> Any:
        from prefsweep.workers.models import load_policy, load_tokenizer
        from prefsweep.workers.precision import hold_master_weights

        source = self.sweep.policy_source()
        model = load_policy(source)
        hold_master_weights(self.sweep.spec.training, model)
        return model, load_tokenizer(source), self._by_prompt()

    def prompt_ids(self, index: int) -> list[str]:
        return list(self._mine(self._by_prompt(), index))

    def work(
        self, worker: Any, index: int, only: Sequence[str] | None = None
    ) -> list[TokenizedPair]:
        from prefsweep.workers.reference import reference_pairs

        model, tokenizer, by_prompt = worker
        mine = [pair for pairs in self._mine(by_prompt, index).values() for pair in pairs]
        spec = self.sweep.spec
        pairs = _wanted(self, mine, only)
        half = spec.training.autocast(spec.policy.dtype)
        return reference_pairs(pairs, model, tokenizer, spec.training, spec.policy.chat, half)

    def notes(self, worker: Any, index: int, records: Sequence[Any]) -> dict[str, float]:
        from prefsweep.workers.reference import why_dropped
        from prefsweep.workers.text_checks import text_notes

        _, tokenizer, by_prompt = worker
        kept = {pair.pair_id for pair in records}
        mine = [pair for pairs in self._mine(by_prompt, index).values() for pair in pairs]
        pairs, spec = _wanted(self, mine, None), self.sweep.spec
        how = tokenizer, spec.training, spec.policy.chat
        dropped = [pair for pair in pairs if pair.pair_id not in kept]
        num_train = sum(pair.split == "train" for pair in records)
        return {
            **why_dropped(dropped, *how),
            **text_notes(pairs, *how),
            TRAINING_PAIRS: num_train,
        }

    def _by_prompt(self) -> dict[str, list[PreferencePair]]:
        by_prompt: dict[str, list[PreferencePair]] = {}
        for pair in read_records(self.sweep, "pairs", PreferencePair):
            by_prompt.setdefault(pair.prompt_id, []).append(pair)
        return by_prompt

    def _mine(
        self, by_prompt: dict[str, list[PreferencePair]], index: int
    ) -> dict[str, list[PreferencePair]]:
        first = index * REFERENCE_SHARD_PROMPTS
        return dict(islice(by_prompt.items(), first, first + REFERENCE_SHARD_PROMPTS))


def _wanted(stage: ShardStage, rows: list[Any], only: Sequence[str] | None) -> list[Any]:
    left_out = stage.sweep.inputs.quarantined.get(stage.name, ())
    return [
        row
        for row in rows
        if row.prompt_id not in left_out and (only is None or row.prompt_id in only)
    ]


def reward_named(sweep: Sweep) -> str:
    """The field that names the reward, with its value."""
    match sweep.spec.reward:
        case ClassifierReward():
            return named_input(sweep.spec, "reward")
        case CallableReward(function=function):
            return f"reward.function={function}"
        case reward:
            return f"reward.type={'null' if reward is None else reward.type}"


def run_shard(stage: ShardStage, worker: Any, index: int) -> None:
    """Make a shard and publish it, unless another run has published it in the meantime."""
    if not is_missing(stage, index):
        return
    started = time.monotonic()
    records = stage.work(worker, index)
    notes = stage.notes(worker, index, records)
    publish_shard(stage, stage.record_type, records, index, started, notes)


def is_missing(stage: ShardStage, index: int) -> bool:
    """Whether a shard of a stage is missing."""
    manifest = stage.sweep.store.shard_manifest(stage.sweep.shard(stage.name, index))
    return manifest is None and not is_published(stage)


def is_published(stage: ShardStage) -> bool:
    """Whether the complete stage is published."""
    return stage.sweep.store.manifest(stage.sweep.path(stage.name)) is not None


def finish_shards(
    stage: ShardStage,
    sweep: Sweep,
    num: int,
    seconds: float,
    notes: dict[str, float] | None = None,
) -> None:
    """Publish the manifest of all shards of a stage, unless another run has published it.

    Raises DamagedError if a shard is missing.
    """
    if is_published(stage):
        return
    paths = [sweep.shard(stage.name, index) for index in range(num)]
    shards = [sweep.store.finished_shard(path) for path in paths]
    rows = sum(shard.rows for shard in shards)
    counts: Counter[str] = Counter(notes or {})  # pyright: ignore
    for shard in shards:
        counts.update(shard.notes)
    left_out = sweep.inputs.quarantined.get(stage.name, ())
    if left_out:
        counts["quarantined prompts"] = len(left_out)
    if stage.name == "reference":
        _require_training_pairs(sweep, counts)
    manifest = new_manifest(getattr(sweep.fingerprints, stage.name), rows, seconds, counts)
    sweep.store.publish_shards(sweep.path(stage.name), paths, manifest)


def _require_training_pairs(sweep: Sweep, counts: Mapping[str, float]) -> None:
    """Raises DataError if the reference stage leaves no training pair."""
    if counts.get(TRAINING_PAIRS):
        return
    reasons = [f"{name} {count:g}" for name, count in counts.items() if name.startswith("dropped")]
    raise DataError(
        f"reference: no pair is left to train on ({', '.join(reasons)}). Raise "
        f"training.max_length={sweep.spec.training.max_length}, or set training.max_prompt_length"
    )


def publish_shard(
    stage: Any,
    record_type: type,
    records: Sequence[Any],
    index: int,
    started: float,
    notes: Mapping[str, float] | None = None,
) -> None:
    """Publish records as one shard of a stage."""
    sweep: Sweep = stage.sweep
    with sweep.store.staging() as folder:
        file = folder / "shard.parquet"
        tables.write_records(records, record_type, file)
        fingerprint = getattr(sweep.fingerprints, stage.name)
        manifest = new_manifest(fingerprint, len(records), time.monotonic() - started, notes)
        sweep.store.publish_shard(sweep.shard(stage.name, index), file, manifest)
