"""The tasks that run once per sweep: fetch inputs from the store, call `workers`, publish outputs.

Every class here is small, can be pickled, and is run by a Cluster. Stages in shards are in
shards.py, evaluations in evaluation.py, trials in attempts.py.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.store.store import new_manifest
from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import (
    PreferencePair,
    Prompt,
    ScoredCompletion,
)
from prefsweep.sweeps.spec import ClassifierReward, Corpus, FirstTokens, Prompts
from prefsweep.workers import tables


class Task(Protocol):
    """Work that a worker does once per sweep."""

    @property
    def name(self) -> str: ...

    @property
    def sweep(self) -> Sweep: ...

    def done(self) -> bool:
        """Whether its artefacts are in the store."""
        ...

    def run(self) -> None:
        """Make and publish its artefacts."""
        ...


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

        spec, started = self.sweep.located.policy, time.monotonic()
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
            if spec.sft is not None:
                require_same(spec.sft.corpus, self.sweep.inputs.policy_corpus, "policy.sft.corpus")
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

        spec, started = self.sweep.located.reward, time.monotonic()
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
                corpus, read = spec.train.corpus, self.sweep.inputs.reward_corpus
                require_same(corpus, read, "reward.train.corpus")
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
        """Whether the prompts are cut with the policy's tokenizer."""
        prompts = self.sweep.spec.prompts
        return prompts is not None and isinstance(prompts.take, FirstTokens)

    def run(self) -> None:
        from prefsweep.workers.locations import ModelSource
        from prefsweep.workers.prompts import make_prompts

        started, spec = time.monotonic(), self.sweep.located.prompts
        assert spec is not None
        source = self.sweep.policy_source() if self.needs_policy() else ModelSource("")
        made = make_prompts(spec, source)
        require_same(spec, self.sweep.inputs.prompts, "prompts")
        for stage, prompts in zip(("prompts", "eval_prompts"), made, strict=True):
            if self.sweep.store.manifest(self.sweep.path(stage)) is None:
                publish_records(self.sweep, stage, Prompt, prompts, started)


@dataclass(frozen=True)
class CheckAdapters:
    """Refuses LoRA adapters that do not fit the policy, before anything is computed."""

    sweep: Sweep
    name: str = "check adapters"

    def done(self) -> bool:
        return False

    def run(self) -> None:
        from prefsweep.workers.adapters import check_adapters
        from prefsweep.workers.builtin import write_base_model
        from prefsweep.workers.locations import BUILTIN, ModelSource, model_source

        spec, training = self.sweep.located.policy, self.sweep.spec.training
        if not spec.model.startswith(BUILTIN):
            check_adapters(training, model_source(spec))
            return
        with self.sweep.store.staging() as folder:
            write_base_model(spec.model.removeprefix(BUILTIN), folder / "base", 0)  # pyright: ignore
            check_adapters(training, ModelSource(str(folder / "base")))


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


def read_records(sweep: Sweep, stage: str, record_type: type) -> list[Any]:
    """All records of a finished stage."""
    folder = sweep.store.fetch(sweep.path(stage))
    return tables.read_records(record_type, sorted(folder.glob("*.parquet")))


def require_same(section: Corpus | Prompts, identity: str, field: str) -> None:
    """Raises DataError if texts changed after their identity was computed, while they were read."""
    from prefsweep.workers.corpus import source_identity

    if source_identity(section) != identity:
        raise DataError(f"{field}: its texts changed while they were read; run the sweep again")


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
    """Publish records as the artefact of a stage without shards."""
    with sweep.store.staging() as folder:
        output = folder / stage
        output.mkdir()
        tables.write_records(records, record_type, output / f"{stage}.parquet")
        _publish(sweep, stage, output, len(records), started, notes or {})
