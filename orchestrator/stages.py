"""What runs in a worker for each stage: fetch from the store, call `workers`, publish the result.

Every class here is small, can be pickled, and is run by a Cluster: a `Task` once, a `ShardStage`
for every shard. Evaluations are in evaluations.py, trials in trials.py.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prefsweep.orchestrator.store import new_manifest
from prefsweep.orchestrator.sweep import Sweep
from prefsweep.sweeps.errors import ModelError
from prefsweep.sweeps.records import (
    Completion,
    PreferencePair,
    Prompt,
    ScoredCompletion,
    TokenizedPair,
)
from prefsweep.sweeps.spec import ClassifierReward, FirstTokens
from prefsweep.workers import tables

REFERENCE_SHARD_PROMPTS = 64
"""Prompts whose pairs make one shard of the reference stage."""


class Task(Protocol):
    """Something a worker does once."""

    @property
    def name(self) -> str: ...

    def done(self) -> bool:
        """Whether its artefacts are in the store."""
        ...

    def run(self) -> None:
        """Make and publish them."""
        ...


class ShardStage(Protocol):
    """Something workers do for every shard; `load` is called once in every worker."""

    @property
    def name(self) -> str: ...

    @property
    def sweep(self) -> Sweep: ...

    def shard_path(self, index: int) -> str: ...

    def load(self) -> Any: ...

    def run(self, worker: Any, index: int) -> None: ...


@dataclass(frozen=True)
class MakePolicy:
    """Base model (+ corpus) -> the policy in Hugging Face layout."""

    sweep: Sweep
    name: str = "policy"

    def done(self) -> bool:
        return self.sweep.store.manifest(self.sweep.path("policy")) is not None

    def run(self) -> None:
        from prefsweep.workers.builtin import write_base_model
        from prefsweep.workers.locations import BUILTIN, model_source
        from prefsweep.workers.models import load_policy, load_tokenizer, save_policy
        from prefsweep.workers.sft import train_policy

        spec, started = self.sweep.spec.policy, time.monotonic()
        with self.sweep.store.staging() as folder:
            base, output = folder / "base", folder / "policy"
            if spec.model.startswith(BUILTIN):
                seed = spec.sft.seed if spec.sft else 0
                write_base_model(spec.model.removeprefix(BUILTIN), base, seed)  # pyright: ignore
            else:
                source = model_source(spec)
                save_policy(load_policy(source), base)
                load_tokenizer(source).save_pretrained(base)
            notes = {} if spec.sft is None else train_policy(base, output, spec.sft)
            _publish(self.sweep, "policy", output if spec.sft else base, 1, started, notes)


@dataclass(frozen=True)
class MakeReward:
    """Base model + labelled corpus -> the reward classifier."""

    sweep: Sweep
    name: str = "reward"

    def done(self) -> bool:
        return self.sweep.store.manifest(self.sweep.path("reward")) is not None

    def run(self) -> None:
        from prefsweep.workers.builtin import write_base_model
        from prefsweep.workers.locations import BUILTIN, model_source
        from prefsweep.workers.models import load_classifier
        from prefsweep.workers.sft import train_classifier

        spec, started = self.sweep.spec.reward, time.monotonic()
        assert isinstance(spec, ClassifierReward)
        with self.sweep.store.staging() as folder:
            base, output = folder / "base", folder / "reward"
            if spec.model.startswith(BUILTIN):
                seed = spec.train.seed if spec.train else 0
                write_base_model(spec.model.removeprefix(BUILTIN), base, seed)  # pyright: ignore
            else:
                model, tokenizer = load_classifier(model_source(spec))
                model.save_pretrained(base)
                tokenizer.save_pretrained(base)
            notes = {}
            if spec.train is not None:
                notes = train_classifier(base, output, spec.train, spec.label)
            _publish(self.sweep, "reward", output if spec.train else base, 1, started, notes)


@dataclass(frozen=True)
class MakePrompts:
    """The prompt source -> training prompts and held-out prompts."""

    sweep: Sweep
    name: str = "prompts"

    def done(self) -> bool:
        store, path = self.sweep.store, self.sweep.path
        return all(store.manifest(path(stage)) for stage in ("prompts", "eval_prompts"))

    def needs_policy(self) -> bool:
        """Whether the policy's tokenizer cuts the prompts."""
        prompts = self.sweep.spec.prompts
        return prompts is not None and isinstance(prompts.take, FirstTokens)

    def run(self) -> None:
        from prefsweep.workers.locations import ModelSource
        from prefsweep.workers.prompts import make_prompts

        started, spec = time.monotonic(), self.sweep.spec.prompts
        assert spec is not None
        source = self.sweep.policy_source() if self.needs_policy() else ModelSource("")
        for stage, prompts in zip(
            ("prompts", "eval_prompts"), make_prompts(spec, source), strict=True
        ):
            if self.sweep.store.manifest(self.sweep.path(stage)) is None:
                publish_records(self.sweep, stage, Prompt, prompts, started)


@dataclass(frozen=True)
class CheckPrompts:
    """Refuses prompts that do not fit the model's context, before other workers start."""

    sweep: Sweep
    name: str = "check prompts"

    def done(self) -> bool:
        return False

    def run(self) -> None:
        from prefsweep.workers.generate import check_prompt_lengths

        spec, source = self.sweep.spec, self.sweep.policy_source()
        for stage, sampling, field in (
            ("prompts", spec.generation, "generation.max_new_tokens"),
            ("eval_prompts", spec.evaluation, "evaluation.max_new_tokens"),
        ):
            if stage == "prompts" and stage not in self.sweep.stages:
                continue
            prompts = read_records(self.sweep, stage, Prompt)
            check_prompt_lengths(prompts, source, sampling.max_new_tokens, field, spec.policy.chat)


@dataclass(frozen=True)
class Generate:
    """A shard of prompts -> its completions."""

    sweep: Sweep
    name: str = "completions"

    def shard_path(self, index: int) -> str:
        return self.sweep.store.shard("completions", self.sweep.fingerprints.completions, index)

    def load(self) -> Any:
        from prefsweep.workers.generate import Generator
        from prefsweep.workers.models import load_policy, load_tokenizer

        source = self.sweep.policy_source()
        spec = self.sweep.spec
        generator = Generator(
            load_policy(source), load_tokenizer(source), spec.generation, spec.policy.chat
        )
        return generator, read_records(self.sweep, "prompts", Prompt)

    def run(self, worker: Any, index: int) -> None:
        started = time.monotonic()
        generator, prompts = worker
        spec = self.sweep.spec.generation
        mine = prompts[index * spec.shard_size : (index + 1) * spec.shard_size]
        completions = generator.complete(mine, spec.num_completions)
        publish_shard(self, Completion, completions, index, started)


@dataclass(frozen=True)
class Score:
    """A shard of completions -> the same with rewards."""

    sweep: Sweep
    name: str = "scores"

    def shard_path(self, index: int) -> str:
        return self.sweep.store.shard("scores", self.sweep.fingerprints.scores, index)

    def load(self) -> Any:
        from prefsweep.workers.score import make_scorer

        reward = self.sweep.spec.reward
        assert reward is not None, "the spec asks for one where completions are scored"
        return make_scorer(reward, self.sweep.reward_source(), self.sweep.spec.policy.chat)

    def run(self, worker: Any, index: int) -> None:
        from prefsweep.workers.score import score_completions

        started = time.monotonic()
        path = Generate(self.sweep).shard_path(index)
        with self.sweep.store.staging() as folder:
            local = self.sweep.store.fetch_shard(path, folder)
            completions = tables.read_records(Completion, [local])
        scored = score_completions(worker, completions)
        publish_shard(self, ScoredCompletion, scored, index, started)


@dataclass(frozen=True)
class BuildPairs:
    """All scored completions -> the preference dataset."""

    sweep: Sweep
    name: str = "pairs"

    def done(self) -> bool:
        return self.sweep.store.manifest(self.sweep.path("pairs")) is not None

    def run(self) -> None:
        from prefsweep.workers.pairs import build_pairs

        started = time.monotonic()
        scored = read_records(self.sweep, "scores", ScoredCompletion)
        pairs, counts = build_pairs(scored, self.sweep.spec.pairs)
        notes = counts.notes() | {"test pairs": sum(pair.split == "test" for pair in pairs)}
        publish_records(self.sweep, "pairs", PreferencePair, pairs, started, notes)


@dataclass(frozen=True)
class Reference:
    """A shard of pairs -> token ids with the reference's log-probabilities."""

    sweep: Sweep
    name: str = "reference"

    def shard_path(self, index: int) -> str:
        return self.sweep.store.shard("reference", self.sweep.fingerprints.reference, index)

    def load(self) -> Any:
        from prefsweep.workers.models import load_policy, load_tokenizer

        source = self.sweep.policy_source()
        by_prompt: dict[str, list[PreferencePair]] = {}
        for pair in read_records(self.sweep, "pairs", PreferencePair):
            by_prompt.setdefault(pair.prompt_id, []).append(pair)
        return load_policy(source), load_tokenizer(source), list(by_prompt.values())

    def run(self, worker: Any, index: int) -> None:
        from prefsweep.workers.reference import reference_pairs

        started = time.monotonic()
        model, tokenizer, by_prompt = worker
        first = index * REFERENCE_SHARD_PROMPTS
        mine = by_prompt[first : first + REFERENCE_SHARD_PROMPTS]
        tokenized = reference_pairs(
            [pair for pairs in mine for pair in pairs],
            model,
            tokenizer,
            self.sweep.spec.training,
            self.sweep.spec.policy.chat,
        )
        publish_shard(self, TokenizedPair, tokenized, index, started)


def is_missing(stage: ShardStage, index: int) -> bool:
    """Whether a shard of a stage is still to be made."""
    return stage.sweep.store.shard_manifest(stage.shard_path(index)) is None


def num_shards(sweep: Sweep, stage: str) -> int:
    """Shards of a sharded stage whose input is finished."""
    if stage == "reference":
        pairs = read_records(sweep, "pairs", PreferencePair)
        num, size = len({pair.prompt_id for pair in pairs}), REFERENCE_SHARD_PROMPTS
    elif sweep.entered == "completions":
        manifest = sweep.store.manifest(sweep.path("completions"))
        assert manifest is not None
        return len(manifest.files)
    else:
        manifest = sweep.store.manifest(sweep.path("prompts"))
        assert manifest is not None
        num, size = manifest.rows, sweep.spec.generation.shard_size
    return -(-num // size)


def read_records(sweep: Sweep, stage: str, record_type: type) -> list[Any]:
    """All records of a finished stage."""
    folder = sweep.store.fetch(sweep.path(stage))
    return tables.read_records(record_type, sorted(folder.glob("*.parquet")))


def finish_shards(
    stage: ShardStage,
    sweep: Sweep,
    num: int,
    seconds: float,
    notes: dict[str, float] | None = None,
) -> None:
    """Publish the manifest over all shards of a stage."""
    paths = [stage.shard_path(index) for index in range(num)]
    shards = [sweep.store.shard_manifest(path) for path in paths]
    rows = sum(shard.rows for shard in shards if shard is not None)
    if stage.name == "reference":
        pairs = sweep.store.manifest(sweep.path("pairs"))
        assert pairs is not None
        notes = {**(notes or {}), "dropped: prompt fills max_length": float(pairs.rows - rows)}
    manifest = new_manifest(getattr(sweep.fingerprints, stage.name), rows, seconds, notes)
    if stage.name == "reference" and rows == 0:
        raise ModelError(
            "reference: every prompt fills training.max_length; raise it, or set "
            "training.max_prompt_length"
        )
    sweep.store.publish_shards(sweep.path(stage.name), paths, manifest)


def _publish(
    sweep: Sweep, stage: str, folder: Path, rows: int, started: float, notes: dict[str, float]
) -> None:
    fingerprint = getattr(sweep.fingerprints, stage)
    manifest = new_manifest(fingerprint, rows, time.monotonic() - started, notes)
    sweep.store.publish(sweep.path(stage), folder, manifest)


def publish_records(
    sweep: Sweep,
    stage: str,
    record_type: type,
    records: Sequence[Any],
    started: float,
    notes: dict[str, float] | None = None,
) -> None:
    """Publish records as the artefact of a stage that has no shards."""
    with sweep.store.staging() as folder:
        output = folder / stage
        output.mkdir()
        tables.write_records(records, record_type, output / f"{stage}.parquet")
        _publish(sweep, stage, output, len(records), started, notes or {})


def publish_shard(
    stage: Any, record_type: type, records: Sequence[Any], index: int, started: float
) -> None:
    """Publish records as one shard of a stage."""
    sweep: Sweep = stage.sweep
    with sweep.store.staging() as folder:
        file = folder / "shard.parquet"
        tables.write_records(records, record_type, file)
        fingerprint = getattr(sweep.fingerprints, stage.name)
        manifest = new_manifest(fingerprint, len(records), time.monotonic() - started)
        sweep.store.publish_shard(stage.shard_path(index), file, manifest)
