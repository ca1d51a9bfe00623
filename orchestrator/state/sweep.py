"""A sweep: its spec, identities and store; small enough to be sent to any worker."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from prefsweep.orchestrator.state.inputs import SECTIONS, input_identity, stored_inputs
from prefsweep.orchestrator.state.stored_spec import check_identities
from prefsweep.orchestrator.store.store import Store, absolute
from prefsweep.sweeps.entry import ARTEFACTS
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.functions import function_file
from prefsweep.sweeps.grid import TrialSpec, trial_names
from prefsweep.sweeps.identity import Fingerprints, Inputs, needs_making
from prefsweep.sweeps.load import validate_spec
from prefsweep.sweeps.records import PreferencePair
from prefsweep.sweeps.spec import CallableReward, ClassifierReward, SweepSpec
from prefsweep.sweeps.validation_messages import listed
from prefsweep.workers import tables
from prefsweep.workers.functions import FunctionSource, load_function
from prefsweep.workers.locations import ModelSource, model_source

SHARDED = ("completions", "scores", "reference")
"""Stages that workers compute shard by shard."""
REFERENCE_SHARD_PROMPTS = 64
"""Number of prompts whose pairs form one shard of the reference stage."""
UNTRAINED = "untrained"
"""Used as the trial ID of the policy before training."""


@dataclass(frozen=True)
class Trial:
    """A grid point of this sweep with its identity and name."""

    trial_id: str
    name: str
    spec: TrialSpec


@dataclass(frozen=True)
class Sweep:
    """One resolved sweep. Only its three fields are pickled."""

    spec: SweepSpec
    inputs: Inputs
    storage: str

    def __reduce__(self) -> tuple[type["Sweep"], tuple[Any, ...]]:
        return Sweep, (self.spec, self.inputs, self.storage)

    @cached_property
    def store(self) -> Store:
        """The store with all of the sweep's files."""
        return Store(self.storage)

    @cached_property
    def located(self) -> SweepSpec:
        """The spec with paths that this process can read: local inputs that the driver has copied
        into the store are read from there."""
        return stored_inputs(self.store, self.spec, self.inputs)

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """Identities of all stages and trials."""
        return Fingerprints(self.spec, self.inputs)

    @cached_property
    def trials(self) -> list[Trial]:
        """The trials, in the order of the grid."""
        specs = self.spec.trials()
        ids = [self.fingerprints.trial_id(spec) for spec in specs]
        return [Trial(*fields) for fields in zip(ids, trial_names(specs), specs, strict=True)]

    @cached_property
    def made(self) -> dict[str, bool]:
        """Whether the sweep makes the policy and the reward model, or uses existing ones."""
        return needs_making(self.spec)

    @cached_property
    def entered(self) -> str | None:
        """The stage whose output is the user's own data; None without an `entry` section."""
        return None if self.spec.entry is None else ARTEFACTS[self.spec.entry.stage]

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """The sweep's stages before the trials, in order, from its entry on."""
        models = [stage for stage in ("policy", "reward") if self.made[stage]]
        data = ["prompts", "completions", "scores", "pairs", "reference"]
        if self.entered is not None:
            data = data[data.index(self.entered) :]
            data.insert(1, "eval_prompts")
        return (*models, *data)

    def path(self, stage: str) -> str:
        """Path of a stage's artefact in the store."""
        return self.store.artifact(stage, getattr(self.fingerprints, stage))

    def shard(self, stage: str, index: int) -> str:
        """Path of one shard of a sharded stage."""
        return self.store.shard(stage, getattr(self.fingerprints, stage), index)

    def evaluation_path(self, trial_id: str) -> str:
        """Path of the evaluation of a trial or of the untrained policy."""
        fingerprint = self.fingerprints.evaluation(trial_id)
        if trial_id == UNTRAINED:
            return self.store.artifact(UNTRAINED, fingerprint)
        return self.store.evaluation(trial_id, fingerprint)

    def policy_source(self) -> ModelSource:
        """Where workers load the policy from."""
        if not self.made["policy"]:
            return model_source(self.located.policy)
        folder = self.store.fetch(self.path("policy"))
        return ModelSource(path=str(folder), dtype=self.spec.policy.dtype)

    def reward_source(self) -> ModelSource | FunctionSource | None:
        """Where workers load the reward classifier or the file of a function from; None for other
        rewards."""
        reward = self.located.reward
        if isinstance(reward, CallableReward) and function_file(reward):
            return FunctionSource(reward.function, self.inputs.reward)
        if not isinstance(reward, ClassifierReward):
            return None
        if not self.made["reward"]:
            return model_source(reward)
        return ModelSource(path=str(self.store.fetch(self.path("reward"))))


def resolve(spec: SweepSpec, storage: str) -> Sweep:
    """Resolve a spec: look up every model and file it names. Raises UsageError."""
    if isinstance(spec.reward, CallableReward):
        load_function(spec.reward.function)
    found: dict[str, Any] = {member: input_identity(spec, member) for member in SECTIONS}
    return Sweep(spec, Inputs(**found), absolute(storage))


def open_sweep(name: str, storage: str) -> Sweep:
    """Read a sweep that was run before from the store. Raises UsageError."""
    store = Store(storage)
    path = store.sweep(name, "spec.json")
    document = store.read_json(path)
    where = store.display(path)
    if document is None and store.read_record(path) is not None:
        raise UsageError(
            f"{where} is damaged; run the sweep's original spec again, which rewrites it"
        )
    if document is None:
        known = listed(store.sweeps())
        raise UsageError(
            f"there is no sweep {name!r} in --storage {storage} (it contains: {known}); "
            "start it with `prefsweep run`, or pass the storage that contains it"
        )
    try:
        inputs = Inputs(**document["inputs"])
        sweep = Sweep(validate_spec(document["spec"], where), inputs, absolute(storage))
        check_identities(sweep.spec, inputs, where)
        assert sweep.fingerprints  # reads all inputs
        left_out = [item for ids in inputs.quarantined.values() for item in ids]
        if not all(isinstance(item, str) for item in left_out):
            raise TypeError("prompt IDs must be strings")
        return sweep
    except (TypeError, KeyError, AttributeError) as error:
        remedy = "run the sweep's original spec again"
        raise UsageError(f"{where} is damaged ({error}); {remedy}") from None


def find_trial(sweep: Sweep, word: str) -> Trial:
    """Find a trial by id, name or unique id prefix. Raises UsageError."""
    found = [trial for trial in sweep.trials if word in (trial.trial_id, trial.name)]
    if not found:
        found = [trial for trial in sweep.trials if word and trial.trial_id.startswith(word)]
    if len(found) == 1:
        return found[0]
    problem = "is the prefix of several ids" if found else "is not a trial"
    known = listed(f"{trial.trial_id} {trial.name}" for trial in found or sweep.trials)
    raise UsageError(f"{word!r} {problem} of {sweep.spec.name}; choose from: {known}")


def spec_document(sweep: Sweep) -> dict[str, object]:
    """The content of spec.json, from which `status`, `report` and `resume` open the sweep."""
    return {"spec": sweep.spec.model_dump(mode="json"), "inputs": asdict(sweep.inputs)}


def num_shards(sweep: Sweep, stage: str) -> int | None:
    """Number of shards of a sharded stage; None until the stage it reads is finished."""
    if stage == "reference":
        num, size = _num_prompts_with_pairs(sweep), REFERENCE_SHARD_PROMPTS
    elif sweep.entered == "completions":
        manifest = sweep.store.manifest(sweep.path("completions"))
        num, size = None if manifest is None else len(manifest.files), 1
    else:
        manifest = sweep.store.manifest(sweep.path("prompts"))
        num, size = None if manifest is None else manifest.rows, sweep.spec.generation.shard_size
    return None if num is None else -(-num // size)


def _num_prompts_with_pairs(sweep: Sweep) -> int | None:
    """From the note in the manifest of the pairs; counted if the manifest has no such note."""
    path = sweep.path("pairs")
    manifest = sweep.store.manifest(path)
    if manifest is None:
        return None
    if "prompts with pairs" in manifest.notes:
        return int(manifest.notes["prompts with pairs"])
    files = sorted(sweep.store.fetch(path).glob("*.parquet"))
    return len({pair.prompt_id for pair in tables.read_records(PreferencePair, files)})
